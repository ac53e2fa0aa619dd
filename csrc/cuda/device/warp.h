// Threads, warps and what they do together. Every mask names the lanes that take part, and all of them must.
#pragma once

#include <cstdint>

#include "cuda/device/launch.h"

namespace gristmill::cuda {

constexpr int kWarp = 32;
constexpr uint32_t kFullWarp = 0xffffffffu;

// One-dimensional blocks: the lane and the warp of this thread.
DEVICE int lane_id() { return int(threadIdx.x % kWarp); }
DEVICE int warp_id() { return int(threadIdx.x / kWarp); }

DEVICE void sync_block() { __syncthreads(); }
// Of `threads` threads (whole warps) at barrier 1 to 15.
DEVICE void sync_threads(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
DEVICE void sync_warp(uint32_t mask = kFullWarp) { __syncwarp(mask); }

template <class T>
DEVICE T shuffle(T value, int from_lane, uint32_t mask = kFullWarp) {
  return __shfl_sync(mask, value, from_lane);
}
template <class T>
DEVICE T shuffle_xor(T value, int lane_mask, uint32_t mask = kFullWarp) {
  return __shfl_xor_sync(mask, value, lane_mask);
}
DEVICE uint32_t warp_ballot(bool predicate, uint32_t mask = kFullWarp) { return __ballot_sync(mask, predicate); }

}  // namespace gristmill::cuda

#include "cuda/device/reduce.h"

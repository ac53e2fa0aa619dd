// Sums and maxima over a warp or a block, in an order that depends on nothing but the number of threads. The same
// source serves device and emulation.
#pragma once

#include "cuda/device/warp.h"

namespace gristmill::cuda {

// Over aligned groups of `width` lanes (a power of two); every lane gets the result.
template <int width = kWarp>
DEVICE float warp_sum(float v) {
  UNROLL
  for (int step = width / 2; step > 0; step /= 2) v += shuffle_xor(v, step);
  return v;
}

template <int width = kWarp>
DEVICE int warp_sum(int v) {
  UNROLL
  for (int step = width / 2; step > 0; step /= 2) v += shuffle_xor(v, step);
  return v;
}

template <int width = kWarp>
DEVICE float warp_max(float v) {
  UNROLL
  for (int step = width / 2; step > 0; step /= 2) v = fmaxf(v, shuffle_xor(v, step));
  return v;
}

// As unsigned integers: of magnitudes, a NaN is the largest.
template <int width = kWarp>
DEVICE uint32_t warp_max(uint32_t v) {
  UNROLL
  for (int step = width / 2; step > 0; step /= 2) {
    const uint32_t other = shuffle_xor(v, step);
    v = v > other ? v : other;
  }
  return v;
}

// Every thread gets the sum over the block; scratch: float[threads / 32 + 1] of shared memory, free for use again after
// the next barrier.
DEVICE float block_sum(float v, float* scratch) {
  const int n_warps = int(blockDim.x) / kWarp;
  v = warp_sum(v);
  if (lane_id() == 0) scratch[warp_id()] = v;
  sync_block();
  float sum = 0.0f;
  for (int i = 0; i < n_warps; ++i) sum += scratch[i];
  return sum;
}

}  // namespace gristmill::cuda

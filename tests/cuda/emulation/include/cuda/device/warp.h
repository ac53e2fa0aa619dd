// Emulation of csrc/cuda/device/warp.h.
#pragma once

#include <cmath>
#include <cstdint>

#include "cuda/device/launch.h"

namespace gristmill::cuda {

using emulation::Site;

constexpr int kWarp = 32;
constexpr uint32_t kFullWarp = 0xffffffffu;

inline int lane_id() { return int(threadIdx.x % kWarp); }
inline int warp_id() { return int(threadIdx.x / kWarp); }

inline void sync_block(const Site& site = Site::current()) {
  emulation::meet_block(0, emulation::block_threads(), site);
}
inline void sync_threads(int barrier, int threads, const Site& site = Site::current()) {
  if (barrier < 1 || barrier > 15) emulation::fail(site, "barrier %d, expected 1 to 15", barrier);
  emulation::meet_block(barrier, unsigned(threads), site);
}
inline void sync_warp(uint32_t mask = kFullWarp, const Site& site = Site::current()) {
  emulation::meet_warp(mask, [](void* const*, uint32_t) {}, nullptr, site);
}

namespace emulation {

template <class T>
struct Shuffle {
  T value, result;
  int from;
};

template <class T>
T exchange(T value, int from, uint32_t mask, const Site& site) {
  Shuffle<T> mine{value, value, from};
  if (!(mask >> from & 1)) fail(site, "shuffle from lane %d, which is not in the mask %08x", from, mask);
  meet_warp(
      mask,
      [](void* const* lanes, uint32_t) {
        for (int i = 0; i < kWarp; ++i)
          if (auto* to = static_cast<Shuffle<T>*>(lanes[i]))
            to->result = static_cast<const Shuffle<T>*>(lanes[to->from])->value;
      },
      &mine, site);
  return mine.result;
}

}  // namespace emulation

template <class T>
T shuffle(T value, int from_lane, uint32_t mask = kFullWarp, const Site& site = Site::current()) {
  return emulation::exchange(value, from_lane & 31, mask, site);
}
template <class T>
T shuffle_xor(T value, int lane_mask, uint32_t mask = kFullWarp, const Site& site = Site::current()) {
  return emulation::exchange(value, (emulation::lane() ^ lane_mask) & 31, mask, site);
}
inline uint32_t warp_ballot(bool predicate, uint32_t mask = kFullWarp, const Site& site = Site::current()) {
  struct Vote {
    bool value;
    uint32_t result;
  } mine{predicate, 0};
  emulation::meet_warp(
      mask,
      [](void* const* lanes, uint32_t) {
        uint32_t bits = 0;
        for (int i = 0; i < kWarp; ++i)
          if (lanes[i] && static_cast<const Vote*>(lanes[i])->value) bits |= 1u << i;
        for (int i = 0; i < kWarp; ++i)
          if (lanes[i]) static_cast<Vote*>(lanes[i])->result = bits;
      },
      &mine, site);
  return mine.result;
}

}  // namespace gristmill::cuda

#include "cuda/device/reduce.h"

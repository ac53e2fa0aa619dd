// How decoding reads a task's rows: as lanes, each a run of neighbouring rows that it reads from end to end.
#pragma once

#include <algorithm>
#include <cstdint>

namespace gristmill::cpu {
namespace {  // each instruction set has its own, compiled with its flags

// How many rows apart n_lanes lanes are, of `left` rows: each then reads on where it stopped, a stream that the
// hardware runs ahead of, which it does not for neighbouring rows in a few pages.
inline int64_t lane_distance(int64_t left, int64_t row_bytes, int n_lanes) {
  int64_t distance = std::max<int64_t>(1, left / n_lanes);
  // Streams that lie a multiple of 4 KiB apart would share the few places of L1.
  while (distance > 1 && (distance * row_bytes + 128) % 4096 < 256) --distance;
  return distance;
}

}  // namespace
}  // namespace gristmill::cpu

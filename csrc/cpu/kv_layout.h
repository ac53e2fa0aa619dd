// How the CPU's KV cache lies in memory: [chunk of 512 positions][layer][KV head], and in each of those
//   K: blocks of 16 positions     F32, F16: [head_dim][16]
//                                 Q8_0: for each 32 dimensions 16 scales f16, then [32][16] int8
//   V: one row a position         F32, F16: [head_dim]      Q8_0: Q8_0 blocks along the row
// Chunks come first so that what a sequence uses lies together: in large pages, which a region for each layer and head
// would fill to a part only.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backend.h"

namespace gristmill::cpu {

constexpr int kPositions = 16;
// Positions that attention scores together. Kernels read whole tiles, so a cache holds whole tiles of K.
constexpr int kTile = 64;
static_assert(kTile % kPositions == 0);
// Positions of a chunk; a context that is shorter has one, of whole tiles. Decoding attends to a chunk at a time
// whatever the number of threads, so its sums, and the bits of logits, follow from this too.
constexpr int64_t kChunk = 512;
static_assert(kChunk % kTile == 0);

inline int64_t bytes_of(KvType type, int64_t n) {
  switch (type) {
    case KvType::F32:
      return n * 4;
    case KvType::F16:
      return n * 2;
    case KvType::Q8_0:
      return n / 32 * 34;
  }
  return 0;
}

inline int64_t k_block_bytes(KvType type, int head_dim) { return bytes_of(type, int64_t(head_dim) * kPositions); }
inline int64_t v_row_bytes(KvType type, int head_dim) { return bytes_of(type, head_dim); }

}  // namespace gristmill::cpu

// How the CPU's KV cache lies in memory: [chunk of 512 positions][layer][KV head], and in each of those
// tiles of 64 positions:
//   K  F32, F16: four blocks of 16 positions, [head_dim][16]
//   V  F32, F16: a row a position, [64][head_dim]
//   K and V  Q8_0: for each 32 dimensions 64 scales f16, one a position, and as many codes int8, four of what a product
//            sums up side by side: in K four dimensions, [4 blocks][8][16 positions][4], in V four positions,
//            [16][32 dimensions][4]
// Chunks come first so that what a sequence uses lies together: in large pages, which a region for each layer and head
// would fill to a part only.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backend.h"

namespace gristmill::cpu {

constexpr int kPositions = 16;
// Positions that attention scores together. Kernels read whole tiles, so a cache holds whole tiles.
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

inline int64_t kv_tile_bytes(KvType type, int head_dim) { return bytes_of(type, int64_t(head_dim) * kTile); }
// Of a block of K and a row of V; Q8_0 has neither.
inline int64_t k_block_bytes(KvType type, int head_dim) { return kv_tile_bytes(type, head_dim) / (kTile / kPositions); }
inline int64_t v_row_bytes(KvType type, int head_dim) { return bytes_of(type, head_dim); }

// Of a tile of Q8_0, dimensions that share scales.
constexpr int kPartDims = 32;
struct BytePart {
  uint16_t scale[kTile];
  int8_t code[kTile * kPartDims];
};
// Which code has dimension d of a position of the tile.
constexpr int k_code(int position, int d) {
  return position / kPositions * (kPositions * kPartDims) + d / 4 * (kPositions * 4) + position % kPositions * 4 +
         d % 4;
}
constexpr int v_code(int position, int d) { return position / 4 * (kPartDims * 4) + d * 4 + position % 4; }

}  // namespace gristmill::cpu

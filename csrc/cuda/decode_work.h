// What a decode product is launched with, and how warps that share its results meet. decode_line.h has who takes what.
#pragma once

#include <cstdint>

#include "cuda/activations.h"
#include "cuda/decode_line.h"
#include "cuda/device/memory.h"
#include "cuda/device/warp.h"
#include "cuda/kv_layout.h"
#include "cuda/rope_kv.h"

namespace gristmill::cuda {

constexpr int kDecodeParts = 4;     // products in one launch
constexpr int kDecodeColumns = 32;  // tokens at most in one launch

constexpr int kDecodeShares = 16;  // row tiles of a group at most

// What the product's rows are, where that matters to what is done with them.
enum class Role { kPlain, kQuery, kKey, kValue };

struct DecodePart {
  const std::byte* tiles;
  const float* bias;
  float* y;  // [n][n_rows]
  int64_t n_rows;
  int first_row_tile;  // among all parts
  Role role;
  int first_group;  // of DecodeFinish::arrivals
};

// What happens to results as soon as all that it takes are in y: the warp that completes a group of row tiles does it.
//   kHeads   a group is a head: queries are rotated in place, keys on their way to the cache, where values go as well
//   kGate    a group is 32 rows of the gate and the same ones of the other: silu(gate) * up in the forms asked for
enum class FinishKind { kNothing, kHeads, kGate };

struct HeadFinish {
  int head_dim_k, head_dim_v;  // multiples of 32, at most 128
  int half;                    // pairs that are rotated, a multiple of 4
  bool neox;
  const float* cos_sin;  // [n][2 half]
  DeviceBatch batch;
  KvPlane keys, values;
  int64_t layer_at, head_bytes;  // in a cache
};

struct DecodeFinish {
  FinishKind kind = FinishKind::kNothing;
  unsigned* arrivals = nullptr;  // [groups], row tiles of the group that are done; 0 before and after
  int64_t first_token = 0;       // of the launch, among the rows of the batch
  HeadFinish heads;
  // Which may come from launches of their own: the whole batch's rows.
  const float *gate = nullptr, *up = nullptr;
  int64_t n_gated = 0;  // columns
  RowOutputs gated;
};

struct DecodeWork {
  DecodePart parts[kDecodeParts];
  int n_parts;
  bool alternate;  // row tiles of the line are taken from the two parts in turn, which are of equal size
  int row_tiles, column_tiles;
  DecodeLine line;
  int n;  // tokens
  int64_t n_cols;
  const float* floats;
  const int8_t* planes;
  const float* scales;
  const int32_t* sums;
  int64_t padded;
  int resident;        // blocks an SM that one token is made for: DecodeWorkspace
  int stages;          // of activations in shared memory: decode_staging.h
  float* partials;     // [blocks][2][kDecodeShares][16][tokens]: of the block's first and last group of row tiles
  unsigned* counters;  // [row_tiles], blocks that have come to a row tile; 0 before and after
  DecodeFinish finish;
};

// One arrival of a warp at a counter. True for the last of `warps`, which then sees what all of them stored before they
// came (by load_coherent), and sets the counter to 0 again.
DEVICE bool arrives_last(unsigned* counter, int warps) {
  sync_warp();  // lane 0 speaks for all
  unsigned before = 0;
  if (lane_id() == 0) before = add_release(counter, 1u);
  if (int(shuffle(before, 0)) != warps - 1) return false;
  if (lane_id() == 0) {
    fence_acquire();
    *counter = 0;
  }
  sync_warp();  // a shuffle orders no memory
  return true;
}

// The same for warps of one block and a counter in shared memory, which stays as it is.
DEVICE bool arrives_last_in_block(unsigned* counter, int warps) {
  sync_warp();
  unsigned before = 0;
  if (lane_id() == 0) before = add_in_block(counter, 1u);
  if (int(shuffle(before, 0)) != warps - 1) return false;
  sync_warp();
  return true;
}

// Where a row tile of the line comes from.
struct RowTile {
  int part, index;
};
DEVICE RowTile locate(const DecodeWork& work, int row_tile) {
  if (work.alternate) return {row_tile % 2, row_tile / 2};
  int p = 0;
  while (p + 1 < work.n_parts && row_tile >= work.parts[p + 1].first_row_tile) ++p;
  return {p, row_tile - work.parts[p].first_row_tile};
}

}  // namespace gristmill::cuda

// How a decode product is shared out. Its tiles in order (row tile, then column tile) are one long line; each block
// takes an equal stretch of it, and each warp of a block an equal stretch of the block's ("stream-K"). A row tile that
// lies in several stretches is summed from its parts in order, so a result depends on the device and the shapes only.
#pragma once

#include <cstdint>

#include "cuda/device/launch.h"

namespace gristmill::cuda {

constexpr int kDecodeParts = 4;    // products in one launch
constexpr int kDecodeColumns = 8;  // tokens at most in one launch
constexpr int kDecodeStages = 4;   // tiles in flight for a warp
constexpr int kDecodeMaxWarps = 16;

struct DecodePart {
  const std::byte* tiles;
  const float* bias;
  float* y;
  int64_t n_rows;
  int first_row_tile;  // among all parts
};

struct DecodeWork {
  DecodePart parts[kDecodeParts];
  int n_parts;
  int row_tiles, column_tiles;
  int n;  // tokens
  int64_t n_cols;
  const float* floats;
  const int8_t* planes;
  const float* scales;
  const int32_t* sums;
  int64_t padded;
  float* partials;     // [blocks][2][16][kDecodeColumns]: of the block's first and last row tile
  unsigned* counters;  // [row_tiles]
};

// Stretch i of n of [begin, begin + count): where it begins. Its end is where the next begins.
HOST_DEVICE int64_t stretch_begin(int64_t begin, int64_t count, int64_t i, int64_t n) { return begin + count * i / n; }
// The stretch that holds the tile at `offset` from the beginning.
HOST_DEVICE int64_t stretch_of(int64_t offset, int64_t count, int64_t n) { return ((offset + 1) * n - 1) / count; }

}  // namespace gristmill::cuda

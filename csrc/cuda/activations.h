// Activations as the matrix kernels read them; all pointers are to device memory. Rows are padded with zeros to whole
// tiles of kTileColumns.
#pragma once

#include <cstdint>

namespace gristmill::cuda {

constexpr int kTileRows = 16, kTileColumns = 256;

constexpr int64_t padded_columns(int64_t n_cols) { return (n_cols + kTileColumns - 1) / kTileColumns * kTileColumns; }

// Two int8 planes: x = scale * (128 hi + lo), one scale for each 32, |128 hi + lo| <= 16256, hi = (q + 64) >> 7. The
// scale follows csrc/cpu/generic/activation_scale.h: NaN where the group is not finite, 0 where it is next to nothing.
// In each group of 32, bytes 4t..4t+3 and 16+4t..16+4t+3 lie together at 8t (t < 4): one 8-byte load is a lane's part
// of a B fragment of mma.m16n8k32, in its first half that of m16n8k16 for the first 16.
struct QuantizedRows {
  int8_t* planes = nullptr;  // [n][2: hi, lo][padded]
  float* scales = nullptr;   // [n][padded / 32]
  int32_t* sums = nullptr;   // [n][padded / 16], of 128 hi + lo
  int64_t padded = 0;
};

// One half each: x = scale * value, one power of two for each row, so that the largest |value| lies in [2^14, 2^15) and
// nothing overflows (0 for rows of zeros; NaN where the row is not finite). In the order of columns.
struct HalfRows {
  uint16_t* values = nullptr;  // [n][padded]
  float* scales = nullptr;     // [n]
  int64_t padded = 0;
};

// Where an operation leaves its rows: wherever a pointer is given.
struct RowOutputs {
  float* floats = nullptr;  // [n][n_cols]
  QuantizedRows quantized;  // where planes is given
  HalfRows halves;          // where values is given
};

}  // namespace gristmill::cuda

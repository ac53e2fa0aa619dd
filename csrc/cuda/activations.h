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
  float* scales = nullptr;   // [n][padded / 32][2]: the scale, and it times the sum of 128 hi + lo
  int32_t* sums = nullptr;   // [n][padded / 16], of 128 hi + lo
  int64_t padded = 0;
};

// How halves lie in memory. Panels are what wgmma reads from shared memory, so that plain copies bring them there: 64
// rows x 64 columns, 8 KiB, row block after row block; in a panel rows of eight chunks of 16 bytes, chunk c of row r at
// c ^ (r % 8).
enum class HalfOrder { kRows, kPanels };
constexpr int kPanel = 64;

// One half each: x = scale * value, one power of two for each row, so that the largest |value| lies in [2^14, 2^15) and
// nothing overflows (0 for rows of zeros; NaN where the row is not finite).
struct HalfRows {
  uint16_t* values = nullptr;  // [n][padded], of panels a multiple of 128 rows
  float* scales = nullptr;     // [n]
  int64_t padded = 0;
  HalfOrder order = HalfOrder::kRows;
};

// Where an operation leaves its rows: wherever a pointer is given.
struct RowOutputs {
  float* floats = nullptr;  // [n][n_cols]
  QuantizedRows quantized;  // where planes is given
  HalfRows halves;          // where values is given
};

}  // namespace gristmill::cuda

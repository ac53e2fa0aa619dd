// A matrix on the device, in tiles (tile_layout.h).
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/activations.h"
#include "cuda/runtime.h"
#include "formats/format.h"

namespace gristmill::cuda {

struct Matrix {
  formats::TypeId format{};
  const std::byte* tiles = nullptr;
  int64_t n_rows = 0, n_cols = 0;

  int64_t row_tiles() const { return (n_rows + kTileRows - 1) / kTileRows; }
  int64_t column_tiles() const { return padded_columns(n_cols) / kTileColumns; }
};

// Bytes of one tile; 0 for a format that the device has no tiles of.
int64_t tile_bytes(formats::TypeId format);
int64_t matrix_bytes(formats::TypeId format, int64_t n_rows, int64_t n_cols);

// Makes the tiles of n_rows rows as the file has them (on the device, any alignment): those from row tile `first_tile`
// on. n_rows is a multiple of 16, or the rest of the matrix.
void repack(const Matrix& matrix, int64_t first_tile, const std::byte* rows, int64_t n_rows, Stream stream);

// out[i] [n_cols] = row rows[i] of the matrix as float32; rows and out on the device.
void dequantize_rows(const Matrix& matrix, const int32_t* rows, int n, float* out, Stream stream);

// Row tiles from first_row_tile on as halves, [16 row_tiles][padded columns] (values beyond a half's range become
// infinite).
void dequantize_halves(const Matrix& matrix, int64_t first_row_tile, int row_tiles, HalfOrder order, uint16_t* out,
                       Stream stream);

}  // namespace gristmill::cuda

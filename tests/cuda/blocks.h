// Random matrices of valid blocks for the tests of the CUDA kernels.
#pragma once

#include <cstddef>
#include <cstring>
#include <random>
#include <vector>

#include "cuda/matrix.h"
#include "cuda/runtime.h"
#include "formats/registry.h"

namespace gristmill::cuda::test {

struct HostMatrix {
  const formats::FormatInfo* format;
  int64_t n_rows, n_cols;
  std::vector<std::byte> bytes;  // as in a file
  std::vector<float> values;     // [n_rows][n_cols]

  int64_t row_bytes() const { return n_cols / format->block_size * format->type_size; }
};

// Normal weights of spread 1, quantized. Rows repeat after `distinct` (quantizing takes its time under a sanitizer).
inline HostMatrix make_matrix(const formats::FormatInfo& format, int64_t n_rows, int64_t n_cols, unsigned seed,
                              int64_t distinct = 24) {
  HostMatrix m{&format, n_rows, n_cols, {}, {}};
  m.bytes.resize(size_t(n_rows * m.row_bytes()));
  m.values.resize(size_t(n_rows * n_cols));
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> row(static_cast<size_t>(n_cols));
  for (int64_t r = 0; r < n_rows; ++r) {
    std::byte* to = m.bytes.data() + r * m.row_bytes();
    if (r < distinct) {
      for (float& v : row) v = normal(random);
      format.from_float(row.data(), nullptr, to, n_cols);
    } else {
      std::memcpy(to, to - distinct * m.row_bytes(), size_t(m.row_bytes()));
    }
  }
  format.to_float(m.bytes.data(), m.values.data(), n_rows * n_cols);
  return m;
}

// The same on the device; the tiles are freed with it.
struct DeviceMatrix {
  DevicePointer<std::byte> tiles;
  Matrix matrix;

  explicit DeviceMatrix(const HostMatrix& m, int64_t piece = 0) {
    const formats::TypeId id = m.format->id;
    tiles = make_device<std::byte>(size_t(matrix_bytes(id, m.n_rows, m.n_cols)));
    matrix = {id, tiles.get(), m.n_rows, m.n_cols};
    if (piece == 0) piece = m.n_rows;
    for (int64_t r = 0; r < m.n_rows; r += piece) {
      const int64_t n = std::min(piece, m.n_rows - r);
      auto rows = make_device<std::byte>(size_t(n * m.row_bytes()));
      copy_to_device(rows.get(), m.bytes.data() + r * m.row_bytes(), size_t(n * m.row_bytes()), nullptr);
      repack(matrix, r / kTileRows, rows.get(), n, nullptr);
      synchronize(Stream{});
    }
  }
};

}  // namespace gristmill::cuda::test

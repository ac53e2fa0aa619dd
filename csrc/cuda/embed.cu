// Single rows of a matrix in tiles as float32: a few tokens' embeddings.
#include "cuda/device/arithmetic.h"
#include "cuda/device/memory.h"
#include "cuda/matrix.h"
#include "cuda/tile_codes.h"
#include "cuda/tile_scales.h"

namespace gristmill::cuda {
namespace {

template <class T>
DEVICE int code_at(const std::byte* tile, int plane_at, int bits, int row, int k) {
  const PlaneByte from = plane_byte(8 / bits, row, k);
  return int(reinterpret_cast<const uint8_t*>(tile)[plane_at + from.byte]) >> bits * from.slot & ((1 << bits) - 1);
}

// Weight (row, k) of a tile, by the float32 operations of csrc/formats.
template <TypeId id>
DEVICE float value_at(const std::byte* tile, int row, int k) {
  using T = Tile<id>;
  using Traits = CodeTraits<id>;
  if constexpr (id == TypeId::F32) {
    return reinterpret_cast<const float*>(tile)[row * kTileColumns + k];
  } else if constexpr (!T::kQuantized) {
    const uint16_t half = *reinterpret_cast<const uint16_t*>(tile + half_byte(row, k));
    return id == TypeId::F16 ? f16_to_f32(half) : bf16_to_f32(half);
  } else {
    int code = 0;
    if constexpr (T::kCode8) code = int(int8_t(code_at<T>(tile, T::kCode8At, 8, row, k)));
    if constexpr (T::kCode4) code = code_at<T>(tile, T::kCode4At, 4, row, k);
    if constexpr (T::kCode2) code |= code_at<T>(tile, T::kCode2At, 2, row, k) << (T::kCode4 ? 4 : 0);
    if constexpr (T::kCode1) code |= code_at<T>(tile, T::kCode1At, 1, row, k) << (T::kCode4 ? 4 : 2);
    if constexpr (Traits::kLevels) code = int(int8_t(iq4_levels(uint32_t(code))));
    const TileScales<id> scales(tile, row);
    GroupScale s{0.0f, 0.0f};
    // Scales lie in registers, which have no variable index.
    UNROLL
    for (int group = 0; group < kTileColumns / Traits::kGroup; ++group) {
      const GroupScale candidate = scales.at(group);
      const bool mine = group == k / Traits::kGroup;
      s.scale = mine ? candidate.scale : s.scale;
      s.min = mine ? candidate.min : s.min;
    }
    const float product = s.scale * float(code - Traits::kZero);
    return Traits::kHasMin ? product + s.min : product;
  }
}

// Block (x, y): column tile x of row rows[y].
template <TypeId id>
KERNEL(kTileColumns, 4)
dequantize_rows_kernel(const std::byte* tiles, const int32_t* rows, int64_t n_cols, float* out) {
  grid_dependency_launch();
  grid_dependency_wait();
  const int row = rows[blockIdx.y];
  const int64_t column = int64_t(blockIdx.x) * kTileColumns + threadIdx.x;
  const std::byte* tile = tiles + (int64_t(row / kTileRows) * gridDim.x + blockIdx.x) * Tile<id>::kTileBytes;
  if (column < n_cols)
    out[int64_t(blockIdx.y) * n_cols + column] = value_at<id>(tile, row % kTileRows, int(threadIdx.x));
}

}  // namespace

void dequantize_rows(const Matrix& matrix, const int32_t* rows, int n, float* out, Stream stream) {
  constexpr int kMost = 32768;  // of a launch: gridDim.y
  with_format(matrix.format, [&]<TypeId id>() {
    for (int first = 0; first < n; first += kMost) {
      const int some = n - first < kMost ? n - first : kMost;
      launch("dequantize_rows", dequantize_rows_kernel<id>,
             {{unsigned(matrix.column_tiles()), unsigned(some)}, {unsigned(kTileColumns)}, 0, stream}, matrix.tiles,
             rows + first, matrix.n_cols, out + int64_t(first) * matrix.n_cols);
    }
  });
}

}  // namespace gristmill::cuda

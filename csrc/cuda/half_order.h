// Where an element of a matrix of halves lies.
#pragma once

#include "cuda/activations.h"
#include "cuda/device/launch.h"

namespace gristmill::cuda {

// Where element (row, column) lies; `padded` columns, a multiple of kTileColumns.
HOST_DEVICE constexpr int64_t half_at(HalfOrder order, int64_t padded, int64_t row, int64_t column) {
  if (order == HalfOrder::kRows) return row * padded + column;
  const int64_t panel = row / kPanel * (padded / kPanel) + column / kPanel, r = row % kPanel, c = column % kPanel;
  return panel * kPanel * kPanel + r * kPanel + (c / 8 ^ r % 8) * 8 + c % 8;
}

}  // namespace gristmill::cuda

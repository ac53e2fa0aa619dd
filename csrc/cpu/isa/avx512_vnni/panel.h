// Weights ready to multiply: 256 k of 16 rows as bytes, four k of each row side by side, so that vpdpbusd's 16 lanes
// are 16 rows and nothing has to be added across lanes.
//     u[k / 4][16 rows][4]      scale[group][16 rows]      minimum[group][16 rows]
// Rows are turned while they are packed still (rows.h): a nibble moves half as often as a byte. Decoding makes one for
// one to eight tokens, prefill for all of a batch; formats are taken apart in panel_formats.h.
#pragma once

#include <algorithm>

#include "cpu/isa/avx512_vnni/panel_formats.h"
#include "cpu/kernels.h"

namespace gristmill::cpu {
namespace {

// Weights [k0, k0 + n_k) of rows r, r + distance, ..., n_rows <= 16 of them, n_k <= 256. Where there are fewer, rows
// repeat the last and blocks are zero bytes, which are weights of scale zero.
template <class Layout, class Sink>
inline void unpack_piece(const Weight& w, int64_t r, int n_rows, int64_t distance, int64_t k0, int64_t n_k,
                         Sink& sink) {
  using Format = typename Layout::Format;
  constexpr int kBytes = kPieceK / Format::kBlockSize * int(sizeof(typename Format::Block));
  const int64_t stride = distance * w.row_bytes();
  const auto* p = reinterpret_cast<const uint8_t*>(w.data) + r * w.row_bytes() +
                  k0 / Format::kBlockSize * int64_t(sizeof(typename Format::Block));
  if (n_rows >= kPanelRows && n_k == kPieceK) {
    return Layout::unpack(Rows{p, stride}, sink);
  }
  alignas(64) uint8_t copy[kPanelRows][kBytes];
  const size_t n_bytes = size_t(n_k / Format::kBlockSize) * sizeof(typename Format::Block);
  for (int i = 0; i < kPanelRows; ++i) {
    std::memcpy(copy[i], p + std::min(i, n_rows - 1) * stride, n_bytes);
    std::memset(copy[i] + n_bytes, 0, kBytes - n_bytes);
  }
  Layout::unpack(Rows{copy[0], kBytes}, sink);
}

}  // namespace
}  // namespace gristmill::cpu

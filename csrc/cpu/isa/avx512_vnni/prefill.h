// Prefill: a panel of 16 rows is unpacked once per piece of k into bytes, four k of each row side by side,
//     panel[k / 4][16 rows][4]      scale[group][16 rows], minimum[group][16 rows]
// and serves every token: vpdpbusd's 16 lanes are 16 rows, its activation operand is one 4-byte broadcast from memory.
#pragma once

#include <algorithm>

#include "cpu/isa/avx512_vnni/decode_formats.h"
#include "cpu/kernels.h"

namespace gristmill::cpu {
namespace {

constexpr int kPanelRows = 16;
constexpr int kPanels = 4;         // that share a tile of activations while it is in L1
constexpr int64_t kPieceK = 1024;  // weights of a row in a piece: 16 KiB a panel
constexpr int kTokens = 8;         // of a tile: 8 sums of integers and 8 of floats stay in registers

// 16 rows x 16 dwords -> transposed.
inline void transpose_16x16(__m512i (&r)[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

template <int kGroup>
struct Panel {
  alignas(64) uint8_t u[kPieceK / 4][kPanelRows][4];
  alignas(64) float scale[kPieceK / kGroup][kPanelRows];
  alignas(64) float minimum[kPieceK / kGroup][kPanelRows];
};

// Unpacks weights [k0, k0 + n_k) of rows [r, r + n_rows); missing rows repeat the last. n_k is padded to 64.
template <class Format>
inline void pack_panel(const Weight& w, int64_t r, int n_rows, int64_t k0, int64_t n_k, Panel<Format::kGroup>& panel) {
  using U = Unpack<Format>;
  using Block = typename Format::Block;
  constexpr int kBlocks = U::kWeights / Format::kBlockSize, kGroups = 64 / Format::kGroup;
  const int64_t row_bytes = w.row_bytes();
  for (int64_t k = 0; k < n_k; k += U::kWeights) {
    alignas(64) __m512i u[U::kChunks][16];
    for (int i = 0; i < kPanelRows; ++i) {
      const Block* block = reinterpret_cast<const Block*>(w.data + (r + std::min(i, n_rows - 1)) * row_bytes) +
                           (k0 + k) / Format::kBlockSize;
      const bool whole = k + U::kWeights <= n_k;
      const U unpacked(block, whole ? block + (kBlocks - 1) : block);
      alignas(64) float scale[16], minimum[16];
      unpacked.store_minima(minimum);
      __m512i bytes[U::kChunks], scales[U::kChunks];
      for (int c = 0; c < U::kChunks; ++c) {
        bytes[c] = unpacked.u[c];
        scales[c] = _mm512_castps_si512(unpacked.s[c]);
      }
      U::arrange(bytes);  // back to the order of the row; lanes of scales lie as their bytes do
      U::arrange(scales);
      for (int c = 0; c < U::kChunks; ++c) {
        u[c][i] = bytes[c];
        _mm512_store_si512(scale, scales[c]);
        for (int g = 0; g < kGroups; ++g) {
          const int64_t at = k / Format::kGroup + c * kGroups + g;
          panel.scale[at][i] = scale[g * 16 / kGroups];
          panel.minimum[at][i] = minimum[c * kGroups + g];
        }
      }
    }
    for (int c = 0; c < U::kChunks; ++c) {
      transpose_16x16(u[c]);
      for (int i = 0; i < 16; ++i) _mm512_store_si512(panel.u[k / 4 + 16 * c + i], u[c][i]);
    }
  }
}

inline __m512i broadcast4(const int8_t* p) {
  int32_t four;
  __builtin_memcpy(&four, p, 4);
  return _mm512_set1_epi32(four);
}

// sum[t][16 rows] += panel . x[t] for T tokens over weights [k0, k0 + n_k) of the row.
template <int kGroup, int T>
inline void multiply_panel(const Panel<kGroup>& panel, int64_t k0, int64_t n_k, const ActivationRow* x,
                           __m512 (&sum)[T]) {
  for (int64_t k = 0; k < n_k; k += kGroup) {
    const int64_t offset = (k0 + k) / 64 * 128 + (k0 + k) % 64, group = (k0 + k) / kGroup;
    __m512i acc[T];
    for (int t = 0; t < T; ++t) acc[t] = _mm512_setzero_si512();
    for (int i = 0; i < kGroup / 4; ++i) {
      const __m512i u = _mm512_load_si512(panel.u[k / 4 + i]);
      for (int t = 0; t < T; ++t) acc[t] = _mm512_dpbusd_epi32(acc[t], u, broadcast4(x[t].planes + offset + 4 * i));
    }
    for (int t = 0; t < T; ++t) acc[t] = _mm512_slli_epi32(acc[t], 7);
    for (int i = 0; i < kGroup / 4; ++i) {
      const __m512i u = _mm512_load_si512(panel.u[k / 4 + i]);
      for (int t = 0; t < T; ++t)
        acc[t] = _mm512_dpbusd_epi32(acc[t], u, broadcast4(x[t].planes + offset + 64 + 4 * i));
    }
    const __m512 scale = _mm512_load_ps(panel.scale[k / kGroup]), minimum = _mm512_load_ps(panel.minimum[k / kGroup]);
    for (int t = 0; t < T; ++t) {
      const float activation_sum = kGroup == 32 ? x[t].sum32[group] : x[t].sum16[group];
      sum[t] = _mm512_fmadd_ps(minimum, _mm512_set1_ps(activation_sum), sum[t]);
      const __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(x[t].scale[(k0 + k) / 32]));
      sum[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[t]), both, sum[t]);
    }
  }
}

template <class Format>
void prefill_affine(const MatmulTask& task) {
  constexpr int kGroup = Format::kGroup;
  const Weight& w = *task.w;
  const int64_t m = w.n_rows;
  auto* panels = reinterpret_cast<Panel<kGroup>*>(thread_scratch(sizeof(Panel<kGroup>) * kPanels));
  for (int64_t r0 = task.row_begin; r0 < task.row_end; r0 += kPanels * kPanelRows) {
    const int n_panels = int(std::min<int64_t>(kPanels, (task.row_end - r0 + kPanelRows - 1) / kPanelRows));
    const auto rows_of = [&](int p) { return int(std::min<int64_t>(kPanelRows, task.row_end - r0 - p * kPanelRows)); };
    for (int64_t k0 = 0; k0 < w.n_cols; k0 += kPieceK) {
      const int64_t n_k = std::min(kPieceK, w.n_cols - k0);
      for (int p = 0; p < n_panels; ++p) pack_panel<Format>(w, r0 + p * kPanelRows, rows_of(p), k0, n_k, panels[p]);
      const auto tokens = [&]<int T>(int t) {
        ActivationRow x[T];
        for (int j = 0; j < T; ++j) x[j] = ActivationRow::at(task.x + (t + j) * task.x_stride, w.n_cols);
        for (int p = 0; p < n_panels; ++p) {
          const __mmask16 mask = __mmask16((1u << rows_of(p)) - 1);
          const int64_t r = r0 + p * kPanelRows;
          __m512 sum[T];
          for (int j = 0; j < T; ++j) {
            const float* from = k0 ? task.y + int64_t(t + j) * m + r : task.bias ? task.bias + r : nullptr;
            sum[j] = from ? _mm512_maskz_loadu_ps(mask, from) : _mm512_setzero_ps();
          }
          multiply_panel<kGroup, T>(panels[p], k0, n_k, x, sum);
          for (int j = 0; j < T; ++j) _mm512_mask_storeu_ps(task.y + int64_t(t + j) * m + r, mask, sum[j]);
        }
      };
      int t = 0;
      for (; t + kTokens <= task.n; t += kTokens) tokens.template operator()<kTokens>(t);
      for (; t + 2 <= task.n; t += 2) tokens.template operator()<2>(t);
      for (; t < task.n; ++t) tokens.template operator()<1>(t);
    }
  }
}

}  // namespace
}  // namespace gristmill::cpu

// Weights for prefill: 256 k of 16 rows, unpacked once for all tokens of a batch into bytes, four k of each row side by
// side, so that vpdpbusd's 16 lanes are 16 rows.
//     u[k / 4][16 rows][4]      scale[group][16 rows]      minimum[group][16 rows]
// Where small codes times integer scales still fit a byte, they are multiplied here and a superblock keeps one scale.
#pragma once

#include <algorithm>

#include "cpu/isa/avx512_vnni/decode_formats.h"
#include "cpu/isa/avx512_vnni/tile.h"
#include "cpu/kernels.h"

namespace gristmill::cpu {
namespace {

constexpr int kPanelRows = 16;

struct Panel {
  alignas(64) uint8_t u[kPieceK / 4][kPanelRows][4];
  alignas(64) float scale[kPieceK / 16][kPanelRows];
  alignas(64) float minimum[kPieceK / 16][kPanelRows];
};

// How a format lies in a panel: w = scale * (u - kZero) + minimum, scales by groups of kGroup, minima of kMinGroup.
template <class Format>
struct PanelLayout {
  static constexpr int kGroup = Format::kGroup, kMinGroup = Format::kGroup, kZero = Format::kZero;
  static constexpr bool kHasMin = Format::kHasMin;
};
// Codes of 0 to 3 times scales of 0 to 15.
template <>
struct PanelLayout<formats::Q2_K> {
  static constexpr int kGroup = 32, kMinGroup = 16, kZero = 0;
  static constexpr bool kHasMin = true;
};
// Codes of -4 to 3 times scales of -32 to 31 reach from -124 to 128: taken from 128 they are bytes, and the scale
// changes its sign.
template <>
struct PanelLayout<formats::Q3_K> {
  static constexpr int kGroup = 32, kMinGroup = 32, kZero = 128;
  static constexpr bool kHasMin = false;
};

// 256 weights of one row.
struct PanelRow {
  __m512i u[4];
  alignas(64) float scale[16], minimum[16];
};

template <class Format>
inline void unpack_row(const typename Format::Block* block, int64_t n_k, PanelRow& row) {
  using U = Unpack<Format>;
  constexpr int kBlocks = U::kWeights / Format::kBlockSize, kGroups = 64 / Format::kGroup;
  for (int64_t k = 0; k < n_k; k += U::kWeights, block += kBlocks) {
    const bool whole = k + U::kWeights <= n_k;
    const U unpacked(block, whole ? block + (kBlocks - 1) : block);
    __m512i bytes[U::kChunks], scales[U::kChunks];
    for (int c = 0; c < U::kChunks; ++c) {
      bytes[c] = unpacked.u[c];
      scales[c] = _mm512_castps_si512(unpacked.s[c]);
    }
    U::arrange(bytes);  // back to the order of the row; lanes of scales lie as their bytes do
    U::arrange(scales);
    const int first = int(k / 64);
    for (int c = 0; c < U::kChunks; ++c) {
      row.u[first + c] = bytes[c];
      alignas(64) float lanes[16];
      _mm512_store_si512(lanes, scales[c]);
      for (int g = 0; g < kGroups; ++g) row.scale[(first + c) * kGroups + g] = lanes[g * 16 / kGroups];
    }
    if constexpr (Format::kHasMin) unpacked.store_minima(row.minimum + k / Format::kGroup);
  }
}

// Bytes of 64 weights times a byte each group of 16: products stay below 256.
inline __m512i multiply_groups(__m512i u, __m512i factors) {
  const __m512i low = _mm512_and_si512(_mm512_mullo_epi16(u, factors), _mm512_set1_epi16(0xff));
  return _mm512_or_si512(low, _mm512_slli_epi16(_mm512_mullo_epi16(_mm512_srli_epi16(u, 8), factors), 8));
}
// Factors of chunk c from sixteen codes of a superblock, as 16-bit lanes.
inline __m512i factors_of_16(__m256i codes, int c) {
  const __m512i index = _mm512_add_epi16(
      _mm512_set_epi16(3, 3, 3, 3, 3, 3, 3, 3, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0),
      _mm512_set1_epi16(short(4 * c)));
  return _mm512_permutexvar_epi16(index, _mm512_castsi256_si512(codes));
}

template <>
inline void unpack_row<formats::Q2_K>(const formats::Q2_K::Block* b, int64_t, PanelRow& row) {
  const Unpack<formats::Q2_K> unpacked(b, b);
  const __m256i codes = _mm256_cvtepu8_epi16(_mm_and_si128(load16(b->scales), _mm_set1_epi8(15)));
  for (int c = 0; c < 4; ++c) row.u[c] = multiply_groups(unpacked.u[c], factors_of_16(codes, c));
  _mm512_store_ps(row.scale, _mm512_set1_ps(half(b->d)));
  unpacked.store_minima(row.minimum);
}

template <>
inline void unpack_row<formats::Q3_K>(const formats::Q3_K::Block* b, int64_t, PanelRow& row) {
  const Unpack<formats::Q3_K> unpacked(b, b);
  const __m256i codes = _mm256_sub_epi16(_mm256_cvtepu8_epi16(q3_k_scales(b->scales)), _mm256_set1_epi16(32));
  for (int c = 0; c < 4; ++c) {
    const __m512i factors = factors_of_16(codes, c);
    // 128 - (u - 4) * factor, for even and odd bytes
    const __m512i zero = _mm512_add_epi16(_mm512_set1_epi16(128), _mm512_slli_epi16(factors, 2));
    const __m512i even = _mm512_and_si512(unpacked.u[c], _mm512_set1_epi16(0xff));
    const __m512i odd = _mm512_srli_epi16(unpacked.u[c], 8);
    row.u[c] = _mm512_or_si512(_mm512_sub_epi16(zero, _mm512_mullo_epi16(even, factors)),
                               _mm512_slli_epi16(_mm512_sub_epi16(zero, _mm512_mullo_epi16(odd, factors)), 8));
  }
  _mm512_store_ps(row.scale, _mm512_set1_ps(-half(b->d)));
}

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

// One float vector a row -> one a group.
inline void transpose_floats(const float (&from)[16][16], float (&to)[kPieceK / 16][kPanelRows]) {
  __m512i v[16];
  for (int i = 0; i < 16; ++i) v[i] = load64(from[i]);
  transpose_16x16(v);
  for (int i = 0; i < 16; ++i) _mm512_store_si512(to[i], v[i]);
}

// Weights [k0, k0 + n_k) of rows [r, r + n_rows), n_k <= 256; missing rows repeat the last. What lies beyond n_k is
// multiplied by activations that are zero, or not at all.
template <class Format>
inline void pack_panel(const Weight& w, int64_t r, int n_rows, int64_t k0, int64_t n_k, Panel& panel) {
  const int64_t row_bytes = w.row_bytes();
  __m512i u[4][16];
  alignas(64) float scale[16][16], minimum[16][16];
  for (int i = 0; i < kPanelRows; ++i) {
    PanelRow row;
    const auto* blocks =
        reinterpret_cast<const typename Format::Block*>(w.data + (r + std::min(i, n_rows - 1)) * row_bytes);
    if (n_k < kPieceK) {
      for (int c = 0; c < 4; ++c) row.u[c] = _mm512_setzero_si512();
      std::memset(row.scale, 0, sizeof row.scale + sizeof row.minimum);
    }
    unpack_row<Format>(blocks + k0 / Format::kBlockSize, n_k, row);
    for (int c = 0; c < 4; ++c) u[c][i] = row.u[c];
    std::memcpy(scale[i], row.scale, sizeof row.scale);
    if constexpr (PanelLayout<Format>::kHasMin) std::memcpy(minimum[i], row.minimum, sizeof row.minimum);
  }
  for (int c = 0; c < 4; ++c) {
    transpose_16x16(u[c]);
    for (int i = 0; i < 16; ++i) _mm512_store_si512(panel.u[16 * c + i], u[c][i]);
  }
  transpose_floats(scale, panel.scale);
  if constexpr (PanelLayout<Format>::kHasMin) transpose_floats(minimum, panel.minimum);
}

}  // namespace
}  // namespace gristmill::cpu

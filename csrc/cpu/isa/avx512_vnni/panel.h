// Weights ready to multiply: 256 k of 16 rows as bytes, four k of each row side by side, so that vpdpbusd's 16 lanes
// are 16 rows and nothing has to be added across lanes.
//     u[k / 4][16 rows][4]      scale[group][16 rows], offset[group][16 rows]      minimum[group][16 rows]
// Rows are turned while they are packed still (rows.h): a nibble moves half as often as a byte.
#pragma once

#include <bit>

#include "cpu/isa/avx512_vnni/rows.h"

namespace gristmill::cpu {
namespace {

constexpr int kPieceK = 256;

// Sums of integers that are floats all along: what is added to the bits of this float is added to its value, as long as
// it stays within 2^22. Such a sum needs no conversion: (kSumBase + sum) scale - kSumBase scale is one instruction, and
// exact but for its own rounding, since kSumBase has two bits and scales have 19 at most (a half times a byte).
constexpr float kSumBase = 0x1.8p23f;
static_assert(32 * 128 * 255 < 1 << 22);  // of a group, at most
constexpr int32_t kSumBaseBits = std::bit_cast<int32_t>(kSumBase);

struct Panel {
  alignas(64) uint8_t u[kPieceK / 4][kPanelRows][4];
  alignas(64) float scale[kPieceK / 16][kPanelRows];
  alignas(64) float offset[kPieceK / 16][kPanelRows];  // kSumBase * scale
  alignas(64) float minimum[kPieceK / 16][kPanelRows];

  void set_u(int i, __m512i x) { _mm512_store_si512(u[i], x); }
  void set_scale(int group, __m512 x) {
    _mm512_store_ps(scale[group], x);
    _mm512_store_ps(offset[group], _mm512_mul_ps(x, _mm512_set1_ps(kSumBase)));
  }
  void set_minimum(int group, __m512 x) { _mm512_store_ps(minimum[group], x); }
};

}  // namespace
}  // namespace gristmill::cpu

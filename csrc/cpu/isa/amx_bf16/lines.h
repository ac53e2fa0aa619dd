// A line of a tile, 32 values as bfloat16 in one plane or two: hi = bfloat16(x), lo = bfloat16(x - hi), which together
// have 16 bits.
#pragma once

#include <immintrin.h>

#include "cpu/isa/amx_bf16/tile_registers.h"

namespace gristmill::cpu {
namespace {

using Bf16Tile = uint16_t[kTileRows][32];

// low's in the lower half, high's in the upper.
inline __m512i to_bf16(__m512 low, __m512 high) { return __m512i(_mm512_cvtne2ps_pbh(high, low)); }
inline __m512 low_bf16(__m512i x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(x)), 16));
}
inline __m512 high_bf16(__m512i x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(x, 1)), 16));
}

template <int kPlanes>
GRISTMILL_INLINE void split(__m512 low, __m512 high, __m512i (&planes)[kPlanes]) {
  planes[0] = to_bf16(low, high);
  if constexpr (kPlanes == 2)
    planes[1] = to_bf16(_mm512_sub_ps(low, low_bf16(planes[0])), _mm512_sub_ps(high, high_bf16(planes[0])));
}

template <int kPlanes>
GRISTMILL_INLINE void set_line(Bf16Tile (&to)[kPlanes], int line, __m512 low, __m512 high) {
  __m512i planes[kPlanes];
  split<kPlanes>(low, high, planes);
  for (int p = 0; p < kPlanes; ++p) _mm512_store_si512(to[p][line], planes[p]);
}

}  // namespace
}  // namespace gristmill::cpu

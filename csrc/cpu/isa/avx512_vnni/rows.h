// Sixteen rows of a matrix side by side: their bytes at one offset, turned so that a lane is a row.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "cpu/generic/constants.h"

namespace gristmill::cpu {
namespace {

// Left to themselves compilers add into the factor that is needed no longer and copy that back. A copy takes one of the
// two ports that multiply wherever it is not renamed away.
GRISTMILL_INLINE void multiply_add(__m512& sum, __m512 a, __m512 b) {
  asm("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
}

constexpr int kPanelRows = 16;

// Rows p + i * stride by what an address can hold: four bases, one and three strides.
struct Rows {
  const uint8_t *p, *p4, *p8, *p12;
  int64_t stride, stride3;
  Rows(const uint8_t* first, int64_t row_stride)
      : p(first),
        p4(first + 4 * row_stride),
        p8(first + 8 * row_stride),
        p12(first + 12 * row_stride),
        stride(row_stride),
        stride3(3 * row_stride) {}
  GRISTMILL_INLINE const uint8_t* at(int row, int offset) const {
    const uint8_t* base = row < 4 ? p : row < 8 ? p4 : row < 12 ? p8 : p12;
    return base + (row % 4 == 3 ? stride3 : row % 4 * stride) + offset;
  }
  // Left alone, compilers compute every row's address ahead and keep them all in memory.
  GRISTMILL_INLINE void hide() { asm("" : "+r"(p), "+r"(p4), "+r"(p8), "+r"(p12), "+r"(stride), "+r"(stride3)); }
};

inline __m128i load16(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
inline void store16(void* p, __m128i x) { _mm_storeu_si128(static_cast<__m128i*>(p), x); }
// 16 bytes and 16 bytes.
inline __m256i two(const void* low, const void* high) {
  return _mm256_inserti128_si256(_mm256_castsi128_si256(load16(low)), load16(high), 1);
}
inline __m512i load64(const void* p) { return _mm512_loadu_si512(p); }
inline __m512i broadcast4(const void* p) {
  int32_t four;
  std::memcpy(&four, p, 4);
  return _mm512_set1_epi32(four);
}

// 16 bytes of every row -> four registers of one dword a row. Half of the moves between lanes are inserts of 128 bits
// from memory into 256, which cost half of what others do where the hardware takes 512 bits in two halves (Zen 4).
GRISTMILL_INLINE void columns(Rows& rows, int offset, __m512i (&c)[4]) {
  rows.hide();
  __m512i a[4];
  for (int j = 0; j < 4; ++j)  // block b of 128 bits: row j + 4 b
    a[j] = _mm512_inserti64x4(_mm512_castsi256_si512(two(rows.at(j, offset), rows.at(j + 4, offset))),
                              two(rows.at(j + 8, offset), rows.at(j + 12, offset)), 1);
  const __m512i t0 = _mm512_unpacklo_epi32(a[0], a[1]), t1 = _mm512_unpackhi_epi32(a[0], a[1]);
  const __m512i t2 = _mm512_unpacklo_epi32(a[2], a[3]), t3 = _mm512_unpackhi_epi32(a[2], a[3]);
  c[0] = _mm512_unpacklo_epi64(t0, t2);
  c[1] = _mm512_unpackhi_epi64(t0, t2);
  c[2] = _mm512_unpacklo_epi64(t1, t3);
  c[3] = _mm512_unpackhi_epi64(t1, t3);
}

// The lower and the upper halves of dwords.
inline __m512 low_halves(__m512i x) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(x)); }
inline __m512 high_halves(__m512i x) { return low_halves(_mm512_srli_epi32(x, 16)); }

// N dwords of every row, each row's first at its start: f(constant<0>, word), f(constant<1>, word), ...
template <int N, class F>
GRISTMILL_INLINE void for_words(Rows& rows, const F& f) {
  for_constants<(N + 3) / 4>([&](auto i) GRISTMILL_LAMBDA {
    constexpr int first = 4 * i < N - 4 ? 4 * i : N - 4;  // the last may overlap those before
    __m512i c[4];
    columns(rows, 4 * first, c);
    for_constants<4>([&](auto j) GRISTMILL_LAMBDA {
      if constexpr (first + j >= 4 * i) f(constant<first + j>, c[j]);
    });
  });
}

// Blocks of a half d and kWords dwords q, in pairs: the first block's dwords lie half a dword off, its second half with
// the other's d, and are put together again. head(b, d) before word(b, 0, q) to word(b, kWords - 1, q).
//   first:  d q0 | q0 q1 | q1 q2 | ... | q3 d'    second: | q0' q0' | q1' q1' | ...
template <int kBlocks, int kWords, class Head, class Word>
GRISTMILL_INLINE void for_half_blocks(Rows& rows, const Head& head, const Word& word) {
  static_assert(kBlocks % 2 == 0);
  constexpr int kPair = 2 * kWords + 1;
  __m512i before = _mm512_setzero_si512();
  for_words<kBlocks / 2 * kPair>(rows, [&](auto i, __m512i w) GRISTMILL_LAMBDA {
    constexpr int first = i / kPair * 2, at = i % kPair;
    if constexpr (at == 0) head(constant<first>, low_halves(w));
    if constexpr (at <= kWords) {
      const __m512i turned = _mm512_rol_epi32(w, 16);
      if constexpr (at > 0)
        word(constant<first>, constant<at - 1>, _mm512_mask_blend_epi16(0xaaaaaaaau, before, turned));
      before = turned;
    }
    if constexpr (at == kWords) head(constant<first + 1>, high_halves(w));
    if constexpr (at > kWords) word(constant<first + 1>, constant<at - kWords - 1>, w);
  });
}

// Small fields, copied by the scalar ports, which have nothing else to do. Read them back late: a vector load waits
// until its stores have left the store buffer.
template <class Field>
struct RowFields {
  alignas(64) Field of[kPanelRows];
  GRISTMILL_INLINE void copy(Rows& rows, int offset) {
    rows.hide();
#pragma GCC unroll 16
    for (int i = 0; i < kPanelRows; ++i) std::memcpy(&of[i], rows.at(i, offset), sizeof(Field));
    asm("" : "+m"(of));  // or the compiler gathers them with inserts, on the ports that multiply
  }
};

inline __m512 floats(const RowFields<uint16_t>& halves) {
  return _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(halves.of)));
}

// Byte j of each dword, as a float.
inline __m512 byte_to_float(__m512i x, int j) {
  return _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(x, unsigned(8 * j)), _mm512_set1_epi32(255)));
}
inline __m512 signed_byte_to_float(__m512i x, int j) {
  return _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(x, unsigned(24 - 8 * j)), 24));
}

inline __m512i bytes(int x) { return _mm512_set1_epi8(char(x)); }
inline __m512i low_nibbles(__m512i x) { return _mm512_and_si512(x, bytes(15)); }
inline __m512i high_nibbles(__m512i x) { return _mm512_and_si512(_mm512_srli_epi32(x, 4), bytes(15)); }
// mask ? a : b, bit by bit.
inline __m512i select_bits(__m512i mask, __m512i a, __m512i b) { return _mm512_ternarylogic_epi32(mask, a, b, 0xca); }

// Two bits of each byte from bit 2 k on.
inline __m512i bit_pairs(__m512i x, int k) { return _mm512_and_si512(_mm512_srli_epi32(x, unsigned(2 * k)), bytes(3)); }
// Bits from `kFrom` on moved to kTo, inside bytes; others carry what belongs to no one.
template <int kFrom, int kTo>
GRISTMILL_INLINE __m512i shift_bits(__m512i x) {
  if constexpr (kFrom == kTo) return x;
  return kFrom < kTo ? _mm512_slli_epi32(x, unsigned(kTo - kFrom) % 32)
                     : _mm512_srli_epi32(x, unsigned(kFrom - kTo) % 32);
}
// The dword's byte j in all of its four bytes.
inline __m512i repeat_byte(__m512i x, int j) {
  const __m128i index = _mm_add_epi8(_mm_setr_epi32(0, 0x04040404, 0x08080808, 0x0c0c0c0c), _mm_set1_epi8(char(j)));
  return _mm512_shuffle_epi8(x, _mm512_broadcast_i32x4(index));
}

}  // namespace
}  // namespace gristmill::cpu

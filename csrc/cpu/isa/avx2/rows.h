// Eight rows of a matrix side by side: their bytes at one offset, turned so that a lane is a row.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "cpu/generic/constants.h"

namespace gristmill::cpu {
namespace {

constexpr int kPanelRows = 8;

// Rows p + i * stride by what an address can hold: two bases, one and three strides.
struct Rows {
  const uint8_t *p, *p4;
  int64_t stride, stride3;
  Rows(const uint8_t* first, int64_t row_stride)
      : p(first), p4(first + 4 * row_stride), stride(row_stride), stride3(3 * row_stride) {}
  const uint8_t* at(int row, int offset) const {
    return (row < 4 ? p : p4) + (row % 4 == 3 ? stride3 : row % 4 * stride) + offset;
  }
  // Left alone, compilers compute every row's address ahead and keep them all in memory.
  GRISTMILL_INLINE Rows opaque() const {
    Rows same = *this;
    asm("" : "+r"(same.p), "+r"(same.p4), "+r"(same.stride), "+r"(same.stride3));
    return same;
  }
};

inline __m128i load16(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
inline __m256i load32(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline void store32(void* p, __m256i x) { _mm256_storeu_si256(static_cast<__m256i*>(p), x); }

inline __m256i broadcast4(const void* p) {
  int32_t four;
  std::memcpy(&four, p, 4);
  return _mm256_set1_epi32(four);
}

// Left alone, compilers add in a tree, whose many partial sums fit no registers.
inline __m256i in_order(__m256i sum) {
  asm("" : "+x"(sum));
  return sum;
}

// 16 bytes of every row -> four registers of one dword a row. Half of the moves between lanes are inserts from memory,
// which do not wait for the one port that shuffles.
GRISTMILL_INLINE void columns(const Rows& all, int offset, __m256i (&c)[4]) {
  const Rows rows = all.opaque();
  __m256i a[4];
  for (int j = 0; j < 4; ++j)  // low half: row j, high half: row j + 4
    a[j] =
        _mm256_inserti128_si256(_mm256_castsi128_si256(load16(rows.at(j, offset))), load16(rows.at(j + 4, offset)), 1);
  const __m256i t0 = _mm256_unpacklo_epi32(a[0], a[1]), t1 = _mm256_unpackhi_epi32(a[0], a[1]);
  const __m256i t2 = _mm256_unpacklo_epi32(a[2], a[3]), t3 = _mm256_unpackhi_epi32(a[2], a[3]);
  c[0] = _mm256_unpacklo_epi64(t0, t2);
  c[1] = _mm256_unpackhi_epi64(t0, t2);
  c[2] = _mm256_unpacklo_epi64(t1, t3);
  c[3] = _mm256_unpackhi_epi64(t1, t3);
}

// Small fields, copied by the scalar ports, which have nothing else to do. Read them back late: a vector load waits
// until its stores have left the store buffer.
template <class Field>
struct RowFields {
  alignas(32) Field of[kPanelRows];
  GRISTMILL_INLINE void copy(const Rows& all, int offset) {
    const Rows rows = all.opaque();
#pragma GCC unroll 8
    for (int i = 0; i < kPanelRows; ++i) std::memcpy(&of[i], rows.at(i, offset), sizeof(Field));
  }
};

inline __m256 floats(const RowFields<uint16_t>& halves) { return _mm256_cvtph_ps(load16(halves.of)); }
// The lower and the upper halves of dwords.
inline __m256 low_halves(__m256i x) {
  const __m256i in_lanes = _mm256_shuffle_epi8(
      x, _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, -1, -1, -1, -1, -1, -1, -1, -1)));
  return _mm256_cvtph_ps(_mm256_castsi256_si128(_mm256_permute4x64_epi64(in_lanes, 0x08)));
}
inline __m256 high_halves(__m256i x) { return low_halves(_mm256_srli_epi32(x, 16)); }

// Byte j of each dword, as an integer.
inline __m256i byte_of(__m256i x, int j) {
  return _mm256_and_si256(_mm256_srli_epi32(x, 8 * j), _mm256_set1_epi32(255));
}
inline __m256i signed_byte_of(__m256i x, int j) { return _mm256_srai_epi32(_mm256_slli_epi32(x, 24 - 8 * j), 24); }

inline __m256i bytes(int x) { return _mm256_set1_epi8(char(x)); }
inline __m256i low_nibbles(__m256i x) { return _mm256_and_si256(x, bytes(15)); }
inline __m256i high_nibbles(__m256i x) { return _mm256_and_si256(_mm256_srli_epi32(x, 4), bytes(15)); }

// Bits from `kFrom` on moved to kTo, inside bytes, of which `mask` keeps what belongs there.
template <int kFrom, int kTo>
GRISTMILL_INLINE __m256i move_bits(__m256i x, int mask) {
  if constexpr (kFrom < kTo) x = _mm256_slli_epi32(x, kTo - kFrom);
  if constexpr (kFrom > kTo) x = _mm256_srli_epi32(x, kFrom - kTo);
  return _mm256_and_si256(x, bytes(mask));
}
// The dword's byte j in all of its four bytes.
inline __m256i repeat_byte(__m256i x, int j) {
  const __m128i index = _mm_add_epi8(_mm_setr_epi32(0, 0x04040404, 0x08080808, 0x0c0c0c0c), _mm_set1_epi8(char(j)));
  return _mm256_shuffle_epi8(x, _mm256_broadcastsi128_si256(index));
}

}  // namespace
}  // namespace gristmill::cpu

// Taking blocks apart in registers, 256 weights at a time: one superblock, or eight blocks of 32. For each format
// Unpack<Format> gives
//   weights<P>(w)   weights 64 P .. 64 P + 63 as 16-bit integers, zero point subtracted, in order
//   scale[]         kScales floats: of each 32 weights, or of each 16
//   minimum[]       kMinima floats (0, 8 or 16) that multiply sums of activations
// Formats with 6- or 8-bit scale codes for each 16 weights multiply the codes into the integers: |code * (q - zero)|
// <= 4096, so sums over 32 stay exact (4096 * 16256 * 32 < 2^31) and one float scale serves them all.
#pragma once

#include <immintrin.h>

#include <bit>
#include <cstdint>
#include <cstring>

#include "cpu/isa/avx2/activations.h"
#include "cpu/isa/avx2/rows.h"
#include "formats/registry.h"

namespace gristmill::cpu {
namespace {

inline __m256i words(const void* p) { return _mm256_cvtepu8_epi16(load16(p)); }
inline __m256i words(int x) { return _mm256_set1_epi16(int16_t(x)); }
inline float half(uint16_t h) { return _cvtsh_ss(h); }

template <class Format>
constexpr int kBlocksOf256 = 256 / Format::kBlockSize;

// Scales and minima as they lie: arrays of floats in whole registers.
template <int kScaleCount, int kMinimumCount>
struct Factors {
  static constexpr int kScales = kScaleCount, kMinima = kMinimumCount;
  __m256 scale[kScales / 8];
  __m256 minimum[kMinima ? kMinima / 8 : 1];
};

// A format without a specialization goes through its to_affine(); correct everywhere, fast nowhere.
template <class Format>
struct Unpack : Factors<256 / Format::kGroup, Format::kHasMin ? 256 / Format::kGroup : 0> {
  static_assert(Format::kGroup == 16 || Format::kGroup == 32);
  static_assert(256 % Format::kBlockSize == 0 && Format::kBlockSize % Format::kGroup == 0);
  uint8_t q[256];

  explicit Unpack(const typename Format::Block* b) {
    float scales[256 / Format::kGroup], minima[256 / Format::kGroup];
    for (int i = 0; i < kBlocksOf256<Format>; ++i) {
      const int at = i * Format::kBlockSize;
      Format::to_affine(b[i], q + at, scales + at / Format::kGroup, minima + at / Format::kGroup);
    }
    for (int i = 0; i < 256 / Format::kGroup; i += 8) {
      this->scale[i / 8] = _mm256_loadu_ps(scales + i);
      if (Format::kHasMin) this->minimum[i / 8] = _mm256_loadu_ps(minima + i);
    }
  }
  template <int P>
  void weights(__m256i (&w)[4]) const {
    for (int i = 0; i < 4; ++i) w[i] = _mm256_sub_epi16(words(q + 64 * P + 16 * i), words(Format::kZero));
  }
};

// ---- blocks of 32 ----

inline __m256 halves(const uint16_t (&h)[8]) { return _mm256_cvtph_ps(load16(h)); }

template <class Format, bool has_minimum>
struct UnpackSmall : Factors<8, has_minimum ? 8 : 0> {
  using Block = typename Format::Block;
  const Block* blocks;

  explicit UnpackSmall(const Block* b) : blocks(b) {
    const uint16_t d[8] = {b[0].d, b[1].d, b[2].d, b[3].d, b[4].d, b[5].d, b[6].d, b[7].d};
    this->scale[0] = halves(d);
    if constexpr (has_minimum) {
      const uint16_t m[8] = {b[0].m, b[1].m, b[2].m, b[3].m, b[4].m, b[5].m, b[6].m, b[7].m};
      this->minimum[0] = halves(m);
    }
  }
};

// All ones in the 16-bit lanes whose bit of two bytes is set.
inline __m256i set_bits(const uint8_t* p) {
  uint16_t bits;
  std::memcpy(&bits, p, 2);
  const __m256i one = _mm256_setr_epi16(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, -32768);
  return _mm256_cmpeq_epi16(_mm256_and_si256(words(bits), one), one);
}

template <>
struct Unpack<formats::Q4_0> : UnpackSmall<formats::Q4_0, false> {
  using UnpackSmall::UnpackSmall;
  template <int P>
  void weights(__m256i (&w)[4]) const {
    for (int i = 0; i < 2; ++i) {
      const __m256i bytes = words(blocks[2 * P + i].qs);
      w[2 * i] = _mm256_sub_epi16(_mm256_and_si256(bytes, words(15)), words(8));
      w[2 * i + 1] = _mm256_sub_epi16(_mm256_srli_epi16(bytes, 4), words(8));
    }
  }
};

template <>
struct Unpack<formats::Q4_1> : UnpackSmall<formats::Q4_1, true> {
  using UnpackSmall::UnpackSmall;
  template <int P>
  void weights(__m256i (&w)[4]) const {
    for (int i = 0; i < 2; ++i) {
      const __m256i bytes = words(blocks[2 * P + i].qs);
      w[2 * i] = _mm256_and_si256(bytes, words(15));
      w[2 * i + 1] = _mm256_srli_epi16(bytes, 4);
    }
  }
};

template <>
struct Unpack<formats::Q5_0> : UnpackSmall<formats::Q5_0, false> {
  using UnpackSmall::UnpackSmall;
  template <int P>
  void weights(__m256i (&w)[4]) const {
    for (int i = 0; i < 2; ++i) {
      const Block& b = blocks[2 * P + i];
      const __m256i bytes = words(b.qs);
      // A clear high bit is -16: the zero point costs nothing.
      const __m256i low = _mm256_andnot_si256(set_bits(b.qh), words(-16));
      const __m256i high = _mm256_andnot_si256(set_bits(b.qh + 2), words(-16));
      w[2 * i] = _mm256_or_si256(_mm256_and_si256(bytes, words(15)), low);
      w[2 * i + 1] = _mm256_or_si256(_mm256_srli_epi16(bytes, 4), high);
    }
  }
};

template <>
struct Unpack<formats::Q5_1> : UnpackSmall<formats::Q5_1, true> {
  using UnpackSmall::UnpackSmall;
  template <int P>
  void weights(__m256i (&w)[4]) const {
    for (int i = 0; i < 2; ++i) {
      const Block& b = blocks[2 * P + i];
      const __m256i bytes = words(b.qs);
      const __m256i low = _mm256_and_si256(set_bits(b.qh), words(16));
      const __m256i high = _mm256_and_si256(set_bits(b.qh + 2), words(16));
      w[2 * i] = _mm256_or_si256(_mm256_and_si256(bytes, words(15)), low);
      w[2 * i + 1] = _mm256_or_si256(_mm256_srli_epi16(bytes, 4), high);
    }
  }
};

template <>
struct Unpack<formats::Q8_0> : UnpackSmall<formats::Q8_0, false> {
  using UnpackSmall::UnpackSmall;
  template <int P>
  void weights(__m256i (&w)[4]) const {
    for (int i = 0; i < 4; ++i) w[i] = _mm256_cvtepi8_epi16(load16(blocks[2 * P + i / 2].qs + 16 * (i % 2)));
  }
};

// The levels of 16 bytes' low nibbles, then of their high ones.
inline void iq4_levels(const uint8_t* qs, __m256i& low, __m256i& high) {
  alignas(16) int8_t levels[16];
  for (int i = 0; i < 16; ++i) levels[i] = int8_t(formats::iq4_level(i));
  const __m128i table = _mm_load_si128(reinterpret_cast<const __m128i*>(levels)), mask = _mm_set1_epi8(15);
  const __m128i bytes = load16(qs);
  low = _mm256_cvtepi8_epi16(_mm_shuffle_epi8(table, _mm_and_si128(bytes, mask)));
  high = _mm256_cvtepi8_epi16(_mm_shuffle_epi8(table, _mm_and_si128(_mm_srli_epi16(bytes, 4), mask)));
}

template <>
struct Unpack<formats::IQ4_NL> : UnpackSmall<formats::IQ4_NL, false> {
  using UnpackSmall::UnpackSmall;
  template <int P>
  void weights(__m256i (&w)[4]) const {
    for (int i = 0; i < 2; ++i) iq4_levels(blocks[2 * P + i].qs, w[2 * i], w[2 * i + 1]);
  }
};

// ---- superblocks of 256 ----

// Q4_K's and Q5_K's twelve bytes (formats/k_scales.h): eight scales in the low half, eight minima in the high.
inline __m128i k_scales(const uint8_t* bytes) {
  uint32_t w[3];
  std::memcpy(w, bytes, 12);
  const uint32_t scale_low = w[0] & 0x3f3f3f3fu, min_low = w[1] & 0x3f3f3f3fu;
  const uint32_t scale_high = (w[2] & 0x0f0f0f0fu) | ((w[0] >> 2) & 0x30303030u);
  const uint32_t min_high = ((w[2] >> 4) & 0x0f0f0f0fu) | ((w[1] >> 2) & 0x30303030u);
  return _mm_setr_epi32(int(scale_low), int(scale_high), int(min_low), int(min_high));
}

inline __m256 bytes_to_floats(__m128i bytes) { return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)); }

template <class Format>
struct UnpackQ45K : Factors<8, 8> {
  const typename Format::Block& block;
  explicit UnpackQ45K(const typename Format::Block* b) : block(*b) {
    const __m128i codes = k_scales(b->scales);
    scale[0] = _mm256_mul_ps(bytes_to_floats(codes), _mm256_set1_ps(half(b->d)));
    minimum[0] = _mm256_mul_ps(bytes_to_floats(_mm_srli_si128(codes, 8)), _mm256_set1_ps(-half(b->dmin)));
  }
};

template <>
struct Unpack<formats::Q4_K> : UnpackQ45K<formats::Q4_K> {
  using UnpackQ45K::UnpackQ45K;
  template <int P>
  void weights(__m256i (&w)[4]) const {
    for (int i = 0; i < 2; ++i) {
      const __m256i bytes = words(block.qs + 32 * P + 16 * i);
      w[i] = _mm256_and_si256(bytes, words(15));
      w[i + 2] = _mm256_srli_epi16(bytes, 4);
    }
  }
};

// Bits that weigh `from` in 16-bit lanes, moved to where they weigh `to`; both are powers of two.
template <int from, int to>
inline __m256i move_word_bits(__m256i x, int mask) {
  constexpr int left = std::countr_zero(unsigned(to)) - std::countr_zero(unsigned(from));
  const __m256i moved =
      left > 0 ? _mm256_slli_epi16(x, left > 0 ? left : 0) : _mm256_srli_epi16(x, left > 0 ? 0 : -left);
  return _mm256_and_si256(moved, words(mask));
}

template <>
struct Unpack<formats::Q5_K> : UnpackQ45K<formats::Q5_K> {
  using UnpackQ45K::UnpackQ45K;
  template <int P>
  void weights(__m256i (&w)[4]) const {
    for (int i = 0; i < 2; ++i) {
      const __m256i bytes = words(block.qs + 32 * P + 16 * i), bits = words(block.qh + 16 * i);
      w[i] = _mm256_or_si256(_mm256_and_si256(bytes, words(15)), move_word_bits<1 << (2 * P), 16>(bits, 16));
      w[i + 2] = _mm256_or_si256(_mm256_srli_epi16(bytes, 4), move_word_bits<2 << (2 * P), 16>(bits, 16));
    }
  }
};

// Sixteen integer codes, each in both 16-bit halves of a dword: what a broadcast spreads over a register.
struct Codes {
  alignas(32) int32_t twice[16];
  explicit Codes(__m128i bytes) {  // signed
    for (int i = 0; i < 2; ++i) {
      const __m256i code = _mm256_cvtepi8_epi32(i ? _mm_srli_si128(bytes, 8) : bytes);
      const __m256i both = _mm256_blend_epi16(code, _mm256_slli_epi32(code, 16), 0xaa);
      _mm256_store_si256(reinterpret_cast<__m256i*>(twice + 8 * i), both);
    }
  }
  __m256i times(int group, __m256i w) const { return _mm256_mullo_epi16(w, _mm256_set1_epi32(twice[group])); }
};

template <>
struct Unpack<formats::Q6_K> : Factors<8, 0> {
  const formats::Q6_K::Block& block;
  Codes codes;
  explicit Unpack(const formats::Q6_K::Block* b) : block(*b), codes(load16(b->scales)) {
    scale[0] = _mm256_set1_ps(half(b->d));
  }
  template <int P>
  void weights(__m256i (&w)[4]) const {
    for (int i = 0; i < 4; ++i) {  // w[i]: l = 16 (i % 2) .. of k = 2 (P % 2) + i / 2 in the header's picture
      const __m256i bytes = words(block.ql + 64 * (P / 2) + 16 * i);
      const __m256i low = P % 2 ? _mm256_srli_epi16(bytes, 4) : _mm256_and_si256(bytes, words(15));
      const __m256i pairs = words(block.qh + 32 * (P / 2) + 16 * (i % 2));
      const __m256i high = i / 2 ? move_word_bits<P % 2 ? 64 : 4, 16>(pairs, 48) : move_word_bits<P % 2 ? 16 : 1, 16>(pairs, 48);
      w[i] = codes.times(4 * P + i, _mm256_sub_epi16(_mm256_or_si256(low, high), words(32)));
    }
  }
};

template <>
struct Unpack<formats::Q3_K> : Factors<8, 0> {
  const formats::Q3_K::Block& block;
  Codes codes;
  static __m128i scale_codes(const uint8_t* bytes) {
    uint32_t w[3];
    std::memcpy(w, bytes, 12);
    const __m128i low = _mm_setr_epi32(int(w[0] & 0x0f0f0f0fu), int(w[1] & 0x0f0f0f0fu), int((w[0] >> 4) & 0x0f0f0f0fu),
                                       int((w[1] >> 4) & 0x0f0f0f0fu));
    const __m128i pairs = _mm_srlv_epi32(_mm_set1_epi32(int(w[2])), _mm_setr_epi32(0, 2, 4, 6));
    const __m128i high = _mm_slli_epi16(_mm_and_si128(pairs, _mm_set1_epi8(3)), 4);
    return _mm_sub_epi8(_mm_or_si128(low, high), _mm_set1_epi8(32));
  }
  explicit Unpack(const formats::Q3_K::Block* b) : block(*b), codes(scale_codes(b->scales)) {
    scale[0] = _mm256_set1_ps(half(b->d));
  }
  template <int P>
  void weights(__m256i (&w)[4]) const {
    for (int i = 0; i < 4; ++i) {
      const __m256i pairs = words(block.qs + 32 * (P / 2) + 16 * (i % 2));
      const __m256i low = i / 2 ? move_word_bits<P % 2 ? 64 : 4, 1>(pairs, 3) : move_word_bits<P % 2 ? 16 : 1, 1>(pairs, 3);
      // A clear high bit is -4.
      const __m256i bit = _mm256_and_si256(words(block.hmask + 16 * (i % 2)), words(1 << (2 * P + i / 2)));
      const __m256i high = _mm256_and_si256(_mm256_cmpeq_epi16(bit, _mm256_setzero_si256()), words(-4));
      w[i] = codes.times(4 * P + i, _mm256_or_si256(low, high));
    }
  }
};

template <>
struct Unpack<formats::Q2_K> : Factors<8, 16> {
  const formats::Q2_K::Block& block;
  Codes codes;
  explicit Unpack(const formats::Q2_K::Block* b)
      : block(*b), codes(_mm_and_si128(load16(b->scales), _mm_set1_epi8(15))) {
    scale[0] = _mm256_set1_ps(half(b->d));
    const __m128i high = _mm_and_si128(_mm_srli_epi16(load16(b->scales), 4), _mm_set1_epi8(15));
    const __m256 dmin = _mm256_set1_ps(-half(b->dmin));
    minimum[0] = _mm256_mul_ps(bytes_to_floats(high), dmin);
    minimum[1] = _mm256_mul_ps(bytes_to_floats(_mm_srli_si128(high, 8)), dmin);
  }
  template <int P>
  void weights(__m256i (&w)[4]) const {
    for (int i = 0; i < 4; ++i) {
      const __m256i pairs = words(block.qs + 32 * (P / 2) + 16 * (i % 2));
      const __m256i q = i / 2 ? move_word_bits<P % 2 ? 64 : 4, 1>(pairs, 3) : move_word_bits<P % 2 ? 16 : 1, 1>(pairs, 3);
      w[i] = codes.times(4 * P + i, q);
    }
  }
};

template <>
struct Unpack<formats::IQ4_XS> : Factors<8, 0> {
  const formats::IQ4_XS::Block& block;
  explicit Unpack(const formats::IQ4_XS::Block* b) : block(*b) {
    uint32_t low;
    std::memcpy(&low, b->scales_l, 4);
    const __m256i nibbles =
        _mm256_srlv_epi32(_mm256_set1_epi32(int(low)), _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
    const __m256i pairs =
        _mm256_srlv_epi32(_mm256_set1_epi32(b->scales_h), _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14));
    const __m256i high = _mm256_slli_epi32(_mm256_and_si256(pairs, _mm256_set1_epi32(3)), 4);
    const __m256i code = _mm256_or_si256(_mm256_and_si256(nibbles, _mm256_set1_epi32(15)), high);
    scale[0] =
        _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_sub_epi32(code, _mm256_set1_epi32(32))), _mm256_set1_ps(half(b->d)));
  }
  template <int P>
  void weights(__m256i (&w)[4]) const {
    for (int i = 0; i < 2; ++i) iq4_levels(block.qs + 32 * P + 16 * i, w[2 * i], w[2 * i + 1]);
  }
};

// The 256 weights that start at block b, of which n blocks are left in the row: where that is fewer than 256 weights
// need, a copy filled up with zeros, so that nothing behind the row is read.
template <class Format>
struct Blocks256 {
  using Block = typename Format::Block;
  Block padded[kBlocksOf256<Format>];
  const Block* whole(const Block* b, int64_t n) {
    constexpr int kBlocks = kBlocksOf256<Format>;
    if (kBlocks == 1 || n >= kBlocks) return b;
    std::memset(padded, 0, sizeof padded);
    std::memcpy(padded, b, size_t(n) * sizeof(Block));
    return padded;
  }
};

// f.template operator()<P>() for the four 64ths of 256 weights.
template <class F>
[[gnu::always_inline]] inline void for_each_64(const F& f) {
  f.template operator()<0>();
  f.template operator()<1>();
  f.template operator()<2>();
  f.template operator()<3>();
}

}  // namespace
}  // namespace gristmill::cpu

// Taking blocks apart in registers. For each format, Unpack<Format> turns kWeights consecutive weights of a row into
//   u[c]  64 unsigned bytes each                  w = scale * (u - zero) + min, group by group
//   s[c]  the scale of each 4 bytes, in 16 lanes: what vpdpbusd's sums are multiplied with
// and, for the part that multiplies sums of activations (minima and zero points), add_minimum() that adds it to a row's
// sum, and store_minima() that writes one float a group.
// Where taking the bytes in another order is cheaper, arrange() puts registers of activations, or back, into it.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "cpu/isa/avx512_vnni/activations.h"
#include "formats/registry.h"

namespace gristmill::cpu {
namespace {

inline __m128i load16(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
inline __m256i load32(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline __m512i load64(const void* p) { return _mm512_loadu_si512(p); }
inline __m128 load_two(const float* p) {
  return _mm_castsi128_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
inline float half(uint16_t h) { return _cvtsh_ss(h); }

// Two scales over the lanes of 64 weights in groups of 32.
inline __m512 two_scales(float a, float b) { return _mm512_mask_mov_ps(_mm512_set1_ps(a), 0xff00, _mm512_set1_ps(b)); }

// Nibbles of two 16-byte fields in the order low 16, high 16 of the first, then of the second.
inline __m512i nibbles_2x16(const void* a, const void* b) {
  const __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(load16(a)), load16(b), 1);
  const __m512i twice =
      _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 1, 0, 1, 2, 3, 2, 3), _mm512_castsi256_si512(both));
  const __m512i shifted = _mm512_srlv_epi64(twice, _mm512_setr_epi64(0, 0, 4, 4, 0, 0, 4, 4));
  return _mm512_and_si512(shifted, _mm512_set1_epi8(15));
}

// The same 32 bytes in both halves, shifted right by 2 j and 2 j + 2 bits: pairs of bits for 64 weights.
inline __m512i bit_pairs_32(const void* p, int j) {
  const __m512i twice = _mm512_broadcast_i64x4(load32(p));
  const __m512i count = _mm512_add_epi64(_mm512_setr_epi64(0, 0, 0, 0, 2, 2, 2, 2), _mm512_set1_epi64(2 * j));
  return _mm512_and_si512(_mm512_srlv_epi64(twice, count), _mm512_set1_epi8(3));
}

// Bit g of each of 32 bytes for the first 32 weights, bit h for the second, as a mask.
inline __mmask64 bits_32(const void* p, int g, int h) {
  const __m512i select = _mm512_inserti64x4(_mm512_set1_epi8(char(1 << g)), _mm256_set1_epi8(char(1 << h)), 1);
  return _mm512_test_epi8_mask(_mm512_broadcast_i64x4(load32(p)), select);
}

// Lanes of chunk c from eight scales of 32 weights, or sixteen of 16.
inline __m512 lanes_of_8(__m256 scales, int c) {
  const __m512i index =
      _mm512_add_epi32(_mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1), _mm512_set1_epi32(2 * c));
  return _mm512_permutexvar_ps(index, _mm512_castps256_ps512(scales));
}
// Groups g and g + 2, as Q4_K's nibbles pair them.
inline __m512 paired_lanes_of_8(__m256 scales, int g) {
  const __m512i index =
      _mm512_add_epi32(_mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 2, 2, 2, 2, 2, 2, 2, 2), _mm512_set1_epi32(g));
  return _mm512_permutexvar_ps(index, _mm512_castps256_ps512(scales));
}
inline __m512 lanes_of_16(__m512 scales, int c) {
  const __m512i index =
      _mm512_add_epi32(_mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3), _mm512_set1_epi32(4 * c));
  return _mm512_permutexvar_ps(index, scales);
}

// A format without a specialization goes through its to_affine(); correct everywhere, fast nowhere.
template <class Format>
struct Unpack {
  static constexpr int kWeights = Format::kBlockSize == 32 ? 64 : 256;
  static constexpr int kChunks = kWeights / 64;
  static constexpr int kGroups = kWeights / Format::kGroup;
  static_assert(Format::kBlockSize == 32 || Format::kBlockSize == 256);
  static_assert(Format::kGroup == 16 || Format::kGroup == 32);
  using Block = typename Format::Block;

  __m512i u[kChunks];
  __m512 s[kChunks];
  float minimum[kGroups];

  Unpack(const Block* a, const Block* b) {
    alignas(64) uint8_t q[kWeights];
    alignas(64) float scale[kGroups], lanes[kWeights / 4];
    Format::to_affine(*a, q, scale, minimum);
    if constexpr (Format::kBlockSize == 32) Format::to_affine(*b, q + 32, scale + kGroups / 2, minimum + kGroups / 2);
    for (int g = 0; g < kGroups; ++g) {
      minimum[g] -= float(Format::kZero) * scale[g];
      for (int i = 0; i < Format::kGroup / 4; ++i) lanes[g * (Format::kGroup / 4) + i] = scale[g];
    }
    for (int c = 0; c < kChunks; ++c) {
      u[c] = load64(q + 64 * c);
      s[c] = _mm512_load_ps(lanes + 16 * c);
    }
  }
  static void arrange(__m512i (&)[kChunks]) {}
  __m512 add_minimum(const ActivationRow& x, int64_t chunk, __m512 sum) const {
    const float* sums = Format::kGroup == 32 ? x.sum32 + 2 * chunk : x.sum16 + 4 * chunk;
    return _mm512_fmadd_ps(_mm512_maskz_loadu_ps(first_lanes(kGroups), minimum),
                           _mm512_maskz_loadu_ps(first_lanes(kGroups), sums), sum);
  }
  void store_minima(float* out) const { std::memcpy(out, minimum, sizeof minimum); }
};

// ---- blocks of 32, two at a time: a and b are the blocks, b == a where the row ends on an odd one ----

// Shared by them: one scale a block, minimum or zero point as one float a block.
template <class Format>
struct UnpackPair {
  static constexpr int kWeights = 64;
  static constexpr int kChunks = 1;
  using Block = typename Format::Block;

  __m512i u[1];
  __m512 s[1];
  static void arrange(__m512i (&)[1]) {}
  float minimum[2];

  void set(float scale_a, float scale_b, float minimum_a, float minimum_b) {
    s[0] = two_scales(scale_a, scale_b);
    minimum[0] = minimum_a;
    minimum[1] = minimum_b;
  }
  // Lane 0 and 1 of the row's sums take the two groups.
  __m512 add_minimum(const ActivationRow& x, int64_t chunk, __m512 sum) const {
    const __m128 m = load_two(minimum), a = load_two(x.sum32 + 2 * chunk);
    return _mm512_fmadd_ps(_mm512_zextps128_ps512(m), _mm512_zextps128_ps512(a), sum);
  }
  void store_minima(float* out) const { std::memcpy(out, minimum, sizeof minimum); }
};

template <>
struct Unpack<formats::Q4_0> : UnpackPair<formats::Q4_0> {
  Unpack(const Block* a, const Block* b) {
    u[0] = nibbles_2x16(a->qs, b->qs);
    const float da = half(a->d), db = half(b->d);
    set(da, db, -8.0f * da, -8.0f * db);
  }
};

template <>
struct Unpack<formats::Q4_1> : UnpackPair<formats::Q4_1> {
  Unpack(const Block* a, const Block* b) {
    u[0] = nibbles_2x16(a->qs, b->qs);
    set(half(a->d), half(b->d), half(a->m), half(b->m));
  }
};

inline __mmask64 high_bits(const void* a, const void* b) {
  uint32_t low, high;
  std::memcpy(&low, a, 4);
  std::memcpy(&high, b, 4);
  return low | uint64_t(high) << 32;
}

template <>
struct Unpack<formats::Q5_0> : UnpackPair<formats::Q5_0> {
  Unpack(const Block* a, const Block* b) {
    const __m512i low = nibbles_2x16(a->qs, b->qs);
    u[0] = _mm512_mask_add_epi8(low, high_bits(a->qh, b->qh), low, _mm512_set1_epi8(16));
    const float da = half(a->d), db = half(b->d);
    set(da, db, -16.0f * da, -16.0f * db);
  }
};

template <>
struct Unpack<formats::Q5_1> : UnpackPair<formats::Q5_1> {
  Unpack(const Block* a, const Block* b) {
    const __m512i low = nibbles_2x16(a->qs, b->qs);
    u[0] = _mm512_mask_add_epi8(low, high_bits(a->qh, b->qh), low, _mm512_set1_epi8(16));
    set(half(a->d), half(b->d), half(a->m), half(b->m));
  }
};

template <>
struct Unpack<formats::Q8_0> : UnpackPair<formats::Q8_0> {
  Unpack(const Block* a, const Block* b) {
    const __m512i q = _mm512_inserti64x4(_mm512_castsi256_si512(load32(a->qs)), load32(b->qs), 1);
    u[0] = _mm512_xor_si512(q, _mm512_set1_epi8(char(0x80)));  // + 128: vpdpbusd's weights are unsigned
    const float da = half(a->d), db = half(b->d);
    set(da, db, -128.0f * da, -128.0f * db);
  }
};

inline __m512i iq4_levels(__m512i index) {
  alignas(16) uint8_t levels[16];
  for (int i = 0; i < 16; ++i) levels[i] = uint8_t(formats::iq4_level(i) + 128);
  return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(levels))), index);
}

template <>
struct Unpack<formats::IQ4_NL> : UnpackPair<formats::IQ4_NL> {
  Unpack(const Block* a, const Block* b) {
    u[0] = iq4_levels(nibbles_2x16(a->qs, b->qs));
    const float da = half(a->d), db = half(b->d);
    set(da, db, -128.0f * da, -128.0f * db);
  }
};

// ---- superblocks of 256 ----

template <class Format>
struct UnpackSuper {
  static constexpr int kWeights = 256;
  static constexpr int kChunks = 4;
  using Block = typename Format::Block;
  __m512i u[4];
  __m512 s[4];
  static void arrange(__m512i (&)[4]) {}
};

template <class Format>
struct UnpackSuper8 : UnpackSuper<Format> {
  __m256 minimum;
  __m512 add_minimum(const ActivationRow& x, int64_t chunk, __m512 sum) const {
    const __m256 sums = _mm256_loadu_ps(x.sum32 + 2 * chunk);
    return _mm512_fmadd_ps(_mm512_zextps256_ps512(minimum), _mm512_zextps256_ps512(sums), sum);
  }
  void store_minima(float* out) const { _mm256_storeu_ps(out, minimum); }
};
template <class Format>
struct UnpackSuper16 : UnpackSuper<Format> {
  __m512 minimum;
  __m512 add_minimum(const ActivationRow& x, int64_t chunk, __m512 sum) const {
    return _mm512_fmadd_ps(minimum, _mm512_loadu_ps(x.sum16 + 4 * chunk), sum);
  }
  void store_minima(float* out) const { _mm512_storeu_ps(out, minimum); }
};

// Q4_K's and Q5_K's twelve bytes (formats/k_scales.h): eight scales in the low half, eight minima in the high.
inline __m128i k_scales(const uint8_t* bytes) {
  // The load takes four bytes of what follows the twelve, inside the block.
  const __m128i w = load16(bytes);
  const __m128i low = _mm_and_si128(_mm_srlv_epi32(_mm_shuffle_epi32(w, 0x98), _mm_setr_epi32(0, 0, 0, 4)),
                                    _mm_setr_epi32(0x3f3f3f3f, 0x0f0f0f0f, 0x3f3f3f3f, 0x0f0f0f0f));
  const __m128i high =
      _mm_and_si128(_mm_srli_epi32(_mm_shuffle_epi32(w, 0x50), 2), _mm_setr_epi32(0, 0x30303030, 0, 0x30303030));
  return _mm_or_si128(low, high);
}

template <class Format>
struct UnpackQ45K : UnpackSuper8<Format> {
  explicit UnpackQ45K(const typename Format::Block* b) {
    const __m512 both = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(k_scales(b->scales)));
    const __m256 scale = _mm256_mul_ps(_mm512_castps512_ps256(both), _mm256_set1_ps(half(b->d)));
    this->minimum = _mm256_mul_ps(_mm512_extractf32x8_ps(both, 1), _mm256_set1_ps(-half(b->dmin)));
    for (int h = 0; h < 2; ++h) {
      const __m512i bytes = load64(b->qs + 64 * h);
      this->u[2 * h] = _mm512_and_si512(bytes, _mm512_set1_epi8(15));
      this->u[2 * h + 1] = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), _mm512_set1_epi8(15));
      this->s[2 * h] = paired_lanes_of_8(scale, 4 * h);
      this->s[2 * h + 1] = paired_lanes_of_8(scale, 4 * h + 1);
    }
  }

  // 64 bytes hold groups 0 and 2 in their low nibbles, 1 and 3 in the high ones: that order needs no moves. It is its
  // own inverse.
  static void arrange(__m512i (&x)[4]) {
    for (int h = 0; h < 4; h += 2) {
      const __m512i even = _mm512_shuffle_i64x2(x[h], x[h + 1], 0x44);
      x[h + 1] = _mm512_shuffle_i64x2(x[h], x[h + 1], 0xee);
      x[h] = even;
    }
  }
};

template <>
struct Unpack<formats::Q4_K> : UnpackQ45K<formats::Q4_K> {
  Unpack(const Block* b, const Block*) : UnpackQ45K(b) {}
};

template <>
struct Unpack<formats::Q5_K> : UnpackQ45K<formats::Q5_K> {
  Unpack(const Block* b, const Block*) : UnpackQ45K(b) {
    for (int c = 0; c < 4; ++c) {
      const int group = c / 2 * 4 + c % 2;
      u[c] = _mm512_mask_add_epi8(u[c], bits_32(b->qh, group, group + 2), u[c], _mm512_set1_epi8(16));
    }
  }
};

template <>
struct Unpack<formats::Q6_K> : UnpackSuper16<formats::Q6_K> {
  Unpack(const Block* b, const Block*) {
    const __m512 scale =
        _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load16(b->scales))), _mm512_set1_ps(half(b->d)));
    minimum = _mm512_mul_ps(scale, _mm512_set1_ps(-32.0f));
    for (int h = 0; h < 2; ++h) {
      const __m512i low = load64(b->ql + 64 * h);
      for (int k = 0; k < 2; ++k) {
        const __m512i nibble = _mm512_and_si512(k ? _mm512_srli_epi16(low, 4) : low, _mm512_set1_epi8(15));
        const __m512i high = _mm512_slli_epi16(bit_pairs_32(b->qh + 32 * h, 2 * k), 4);
        u[2 * h + k] = _mm512_or_si512(nibble, high);
      }
    }
    for (int c = 0; c < 4; ++c) s[c] = lanes_of_16(scale, c);
  }
};

// Q3_K's twelve bytes (formats/q3_k.h): sixteen codes of 6 bits.
inline __m128i q3_k_scales(const uint8_t* bytes) {
  uint32_t w[3];
  std::memcpy(w, bytes, 12);
  const __m128i low = _mm_setr_epi32(int(w[0] & 0x0f0f0f0fu), int(w[1] & 0x0f0f0f0fu), int((w[0] >> 4) & 0x0f0f0f0fu),
                                     int((w[1] >> 4) & 0x0f0f0f0fu));
  const __m128i high =
      _mm_and_si128(_mm_srlv_epi32(_mm_set1_epi32(int(w[2])), _mm_setr_epi32(0, 2, 4, 6)), _mm_set1_epi8(3));
  return _mm_or_si128(low, _mm_slli_epi16(high, 4));
}

template <>
struct Unpack<formats::Q3_K> : UnpackSuper16<formats::Q3_K> {
  Unpack(const Block* b, const Block*) {
    const __m128i code = q3_k_scales(b->scales);
    const __m512i centred = _mm512_sub_epi32(_mm512_cvtepu8_epi32(code), _mm512_set1_epi32(32));
    const __m512 scale = _mm512_mul_ps(_mm512_cvtepi32_ps(centred), _mm512_set1_ps(half(b->d)));
    minimum = _mm512_mul_ps(scale, _mm512_set1_ps(-4.0f));
    for (int c = 0; c < 4; ++c) {
      const __m512i pair = bit_pairs_32(b->qs + 32 * (c / 2), 2 * (c % 2));
      u[c] = _mm512_mask_add_epi8(pair, bits_32(b->hmask, 2 * c, 2 * c + 1), pair, _mm512_set1_epi8(4));
      s[c] = lanes_of_16(scale, c);
    }
  }
};

template <>
struct Unpack<formats::Q2_K> : UnpackSuper16<formats::Q2_K> {
  Unpack(const Block* b, const Block*) {
    const __m128i codes = load16(b->scales);
    const __m128i low = _mm_and_si128(codes, _mm_set1_epi8(15)),
                  high = _mm_and_si128(_mm_srli_epi16(codes, 4), _mm_set1_epi8(15));
    const __m512 scale = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(low)), _mm512_set1_ps(half(b->d)));
    minimum = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(high)), _mm512_set1_ps(-half(b->dmin)));
    for (int c = 0; c < 4; ++c) {
      u[c] = bit_pairs_32(b->qs + 32 * (c / 2), 2 * (c % 2));
      s[c] = lanes_of_16(scale, c);
    }
  }
};

template <>
struct Unpack<formats::IQ4_XS> : UnpackSuper8<formats::IQ4_XS> {
  Unpack(const Block* b, const Block*) {
    uint32_t low;
    std::memcpy(&low, b->scales_l, 4);
    const __m256i l =
        _mm256_and_si256(_mm256_srlv_epi32(_mm256_set1_epi32(int(low)), _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28)),
                         _mm256_set1_epi32(15));
    const __m256i h = _mm256_and_si256(
        _mm256_srlv_epi32(_mm256_set1_epi32(b->scales_h), _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14)),
        _mm256_set1_epi32(3));
    const __m256i code = _mm256_sub_epi32(_mm256_or_si256(l, _mm256_slli_epi32(h, 4)), _mm256_set1_epi32(32));
    const __m256 scale = _mm256_mul_ps(_mm256_cvtepi32_ps(code), _mm256_set1_ps(half(b->d)));
    minimum = _mm256_mul_ps(scale, _mm256_set1_ps(-128.0f));
    for (int c = 0; c < 4; ++c) {
      u[c] = iq4_levels(nibbles_2x16(b->qs + 32 * c, b->qs + 32 * c + 16));
      s[c] = lanes_of_8(scale, c);
    }
  }
};

}  // namespace
}  // namespace gristmill::cpu

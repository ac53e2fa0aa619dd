// A row's weights as bfloat16, format by format; the pictures of the bits are in csrc/formats. 32 weights of a row are
// a line of a tile, 64 bytes. Up to five bits a weight are not converted one by one: a group's weights are a table of
// at most 32 bfloat16, vpermw looks 32 of them up at once, and bits that are none of the index's five do not matter.
//
//   RowLayout<Format>::unpack<kPlanes>(p, n_k, to, row)    n_k <= 256 weights from p on, whole blocks, to row `row` of
//                                                          n_k / 32 tiles. Reads no byte behind the last block
#pragma once

#include <algorithm>

#include "cpu/isa/amx_bf16/lines.h"
#include "cpu/isa/avx512_vnni/rows.h"
#include "formats/registry.h"

namespace gristmill::cpu {
namespace {

constexpr int kUnpackK = 256;  // of a row, at once

// A format without a specialization goes through its to_affine(); correct everywhere, fast nowhere.
template <class F>
struct RowLayout {
  template <int kPlanes>
  static void unpack(const uint8_t* p, int n_k, Bf16Tile (*to)[kPlanes], int row) {
    constexpr int kBlock = F::kBlockSize, kGroups = kBlock / F::kGroup;
    static_assert(kUnpackK % kBlock == 0 && kBlock % 32 == 0);
    const auto* block = reinterpret_cast<const typename F::Block*>(p);
    for (int b = 0; b < n_k / kBlock; ++b) {
      uint8_t q[kBlock];
      float scale[kGroups], minimum[kGroups];
      F::to_affine(block[b], q, scale, minimum);
      for (int k = 0; k < kBlock; k += 32) {
        __m512 w[2];
        for (int i = 0; i < 2; ++i) {
          const int at = k + 16 * i;
          const __m512 s = _mm512_set1_ps(scale[at / F::kGroup]);
          const __m512 start = _mm512_fnmadd_ps(s, _mm512_set1_ps(F::kZero), _mm512_set1_ps(minimum[at / F::kGroup]));
          w[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(load16(q + at))), s, start);
        }
        set_line<kPlanes>(to[(b * kBlock + k) / 32], row, w[0], w[1]);
      }
    }
  }
};

// ---- parts ----

inline __m256i load32(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
template <class T>
GRISTMILL_INLINE T read(const void* p) {
  T x;
  std::memcpy(&x, p, sizeof x);
  return x;
}

inline __m512i words(int x) { return _mm512_set1_epi16(int16_t(x)); }
// Of 16 words each.
inline __m512i words(int low, int high) {
  return _mm512_inserti64x4(_mm512_set1_epi16(int16_t(low)), _mm256_set1_epi16(int16_t(high)), 1);
}
inline __m512i bytes_to_words(const uint8_t* p) { return _mm512_cvtepu8_epi16(load32(p)); }
// 16 bytes: their low nibbles, then their high ones; above them what does not matter.
inline __m512i nibbles_to_words(const uint8_t* p) {
  return _mm512_srlv_epi16(_mm512_cvtepu8_epi16(_mm256_broadcastsi128_si256(load16(p))), words(0, 4));
}
// Bit kFrom of each word to bit kTo.
template <int kFrom, int kTo>
GRISTMILL_INLINE __m512i shift_words(__m512i x) {
  if constexpr (kFrom == kTo) return x;
  return kFrom < kTo ? _mm512_slli_epi16(x, unsigned(kTo - kFrom) % 16)
                     : _mm512_srli_epi16(x, unsigned(kFrom - kTo) % 16);
}
inline __m512 bytes_to_floats(__m128i x) { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(x)); }
inline __m512 signed_bytes_to_floats(__m128i x) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(x)); }
inline __m512 half_to_floats(const uint8_t* p) { return _mm512_cvtph_ps(_mm256_set1_epi16(read<int16_t>(p))); }

// Codes of kN values from kFirst on, again and again.
template <int kN, int kFirst = 0>
inline __m512 codes() {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return _mm512_cvtepi32_ps(
      _mm512_add_epi32(_mm512_and_si512(lane, _mm512_set1_epi32(kN - 1)), _mm512_set1_epi32(kFirst)));
}
inline __m512 iq4_codes() {
  alignas(64) float levels[16];
  for (int i = 0; i < 16; ++i) levels[i] = float(formats::iq4_level(i));
  return _mm512_load_ps(levels);
}

// In memory, for a broadcast from there takes none of the ports that the rest waits for.
struct RowScales {
  alignas(64) float scale[16];
  alignas(64) float start[16];
  // Before they are read: or the compiler keeps them in registers and shuffles.
  void settle() { asm("" : "+m"(scale), "+m"(start)); }
};
// code * scale + start. Codes have no zero point left; + 0 keeps zeros positive.
GRISTMILL_INLINE __m512 weights(__m512 code, const RowScales& s, int group) {
  return _mm512_fmadd_ps(code, _mm512_set1_ps(s.scale[group]), _mm512_set1_ps(s.start[group]));
}
GRISTMILL_INLINE __m512 symmetric_weights(__m512 code, const RowScales& s, int group) {
  return _mm512_fmadd_ps(code, _mm512_set1_ps(s.scale[group]), _mm512_setzero_ps());
}
template <bool kStart>
GRISTMILL_INLINE __m512 weights_of(__m512 code, const RowScales& s, int group) {
  return kStart ? weights(code, s, group) : symmetric_weights(code, s, group);
}

template <int kPlanes>
struct Table {
  __m512i plane[kPlanes];
  Table(__m512 low, __m512 high) { split<kPlanes>(low, high, plane); }
  GRISTMILL_INLINE void look_up(__m512i index, Bf16Tile (&to)[kPlanes], int row) const {
    for (int p = 0; p < kPlanes; ++p) _mm512_store_si512(to[p][row], _mm512_permutexvar_epi16(index, plane[p]));
  }
};

// Groups g and g + 1 of four bits: a table holds both, the second one's from 16 on.
template <bool kStart, int kPlanes>
GRISTMILL_INLINE void look_up_two(__m512 codes, const RowScales& s, int g, __m512i first, __m512i second,
                                  Bf16Tile (*to)[kPlanes], int row) {
  const Table<kPlanes> table(weights_of<kStart>(codes, s, g), weights_of<kStart>(codes, s, g + 1));
  table.look_up(_mm512_and_si512(first, words(15)), to[g], row);
  table.look_up(select_bits(words(15), second, words(16)), to[g + 1], row);
}

// ---- blocks of 32 ----

// unpack_blocks<kBlocks, kPlanes>() of Blocks, eight or one.
template <class F, class Blocks>
struct BlockRows {
  template <int kPlanes>
  GRISTMILL_INLINE static void unpack(const uint8_t* p, int n_k, Bf16Tile (*to)[kPlanes], int row) {
    if (n_k == kUnpackK) return Blocks::template unpack_blocks<kUnpackK / 32, kPlanes>(p, to, row);
    for (int b = 0; b < n_k / 32; ++b)
      Blocks::template unpack_blocks<1, kPlanes>(p + b * int(sizeof(typename F::Block)), to + b, row);
  }
};

// The halves at p, p + kStride, ...
template <int kBlocks, int kStride>
GRISTMILL_INLINE __m256 halves(const uint8_t* p) {
  const auto at = [&](int b) GRISTMILL_LAMBDA { return read<int16_t>(p + b * kStride); };
  if constexpr (kBlocks == 1) return _mm256_cvtph_ps(_mm_cvtsi32_si128(at(0)));
  if constexpr (kBlocks != 1)
    return _mm256_cvtph_ps(_mm_setr_epi16(at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7)));
}
template <class F, int kBlocks>
GRISTMILL_INLINE void set_scales(const uint8_t* p, RowScales& s) {
  constexpr int kStride = int(sizeof(typename F::Block));
  _mm256_store_ps(s.scale, halves<kBlocks, kStride>(p));
  if constexpr (F::kHasMin) _mm256_store_ps(s.start, halves<kBlocks, kStride>(p + 2));
  s.settle();
}

template <class F>
struct NibbleBlocks : BlockRows<F, NibbleBlocks<F>> {
  template <int kBlocks, int kPlanes>
  GRISTMILL_INLINE static void unpack_blocks(const uint8_t* p, Bf16Tile (*to)[kPlanes], int row) {
    constexpr int kStride = int(sizeof(typename F::Block));
    RowScales s;
    set_scales<F, kBlocks>(p, s);
    const __m512 code = F::kId == formats::TypeId::IQ4_NL ? iq4_codes() : codes<16, -F::kZero>();
    const uint8_t* q = p + kStride - 16;
    if constexpr (kBlocks == 1) {
      const __m512 w = weights_of<F::kHasMin>(code, s, 0);
      Table<kPlanes>(w, w).look_up(nibbles_to_words(q), to[0], row);
    } else {
      for_constants<kBlocks / 2>([&](auto i) GRISTMILL_LAMBDA {
        const uint8_t* const two = q + 2 * i * kStride;
        look_up_two<F::kHasMin>(code, s, 2 * i, nibbles_to_words(two), nibbles_to_words(two + kStride), to, row);
      });
    }
  }
};
template <>
struct RowLayout<formats::Q4_0> : NibbleBlocks<formats::Q4_0> {};
template <>
struct RowLayout<formats::Q4_1> : NibbleBlocks<formats::Q4_1> {};
template <>
struct RowLayout<formats::IQ4_NL> : NibbleBlocks<formats::IQ4_NL> {};

template <class F>
struct FiveBitBlocks : BlockRows<F, FiveBitBlocks<F>> {
  template <int kBlocks, int kPlanes>
  GRISTMILL_INLINE static void unpack_blocks(const uint8_t* p, Bf16Tile (*to)[kPlanes], int row) {
    constexpr int kStride = int(sizeof(typename F::Block));
    RowScales s;
    set_scales<F, kBlocks>(p, s);
    const __m512 low = codes<16, -F::kZero>(), high = codes<16, 16 - F::kZero>();
    for_constants<kBlocks>([&](auto b) GRISTMILL_LAMBDA {
      const uint8_t* const q = p + (b + 1) * kStride - 16;
      const __m512i nibbles = _mm512_and_si512(nibbles_to_words(q), words(15));
      const __m512i index = _mm512_mask_add_epi16(nibbles, read<__mmask32>(q - 4), nibbles, words(16));
      Table<kPlanes>(weights_of<F::kHasMin>(low, s, b), weights_of<F::kHasMin>(high, s, b)).look_up(index, to[b], row);
    });
  }
};
template <>
struct RowLayout<formats::Q5_0> : FiveBitBlocks<formats::Q5_0> {};
template <>
struct RowLayout<formats::Q5_1> : FiveBitBlocks<formats::Q5_1> {};

template <>
struct RowLayout<formats::Q8_0> : BlockRows<formats::Q8_0, RowLayout<formats::Q8_0>> {
  template <int kBlocks, int kPlanes>
  GRISTMILL_INLINE static void unpack_blocks(const uint8_t* p, Bf16Tile (*to)[kPlanes], int row) {
    RowScales s;
    set_scales<formats::Q8_0, kBlocks>(p, s);
    for_constants<kBlocks>([&](auto b) GRISTMILL_LAMBDA {
      const uint8_t* const q = p + b * int(sizeof(formats::Q8_0::Block)) + 2;
      set_line<kPlanes>(to[b], row, symmetric_weights(signed_bytes_to_floats(load16(q)), s, b),
                        symmetric_weights(signed_bytes_to_floats(load16(q + 16)), s, b));
    });
  }
};

// ---- superblocks of 256 ----

// Q4_K's and Q5_K's eight scales and minima (formats/k_scales.h), taken apart by the scalar ports.
GRISTMILL_INLINE void set_k_scales(const uint8_t* p, RowScales& s) {
  const auto a = read<uint32_t>(p + 4), b = read<uint32_t>(p + 8), c = read<uint32_t>(p + 12);
  constexpr uint32_t kSix = 0x3f3f3f3f, kFour = 0x0f0f0f0f, kUpper = 0x30303030;
  const uint64_t scale = (a & kSix) | uint64_t((c & kFour) | (a >> 2 & kUpper)) << 32;
  const uint64_t minimum = (b & kSix) | uint64_t((c >> 4 & kFour) | (b >> 2 & kUpper)) << 32;
  const __m512 code = bytes_to_floats(_mm_set_epi64x(int64_t(minimum), int64_t(scale)));
  const __m128 d = _mm_xor_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(read<int32_t>(p))), _mm_setr_ps(0.0f, -0.0f, 0.0f, 0.0f));
  const __m512i which = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
  const __m512 both = _mm512_mul_ps(code, _mm512_permutexvar_ps(which, _mm512_castps128_ps512(d)));
  _mm256_store_ps(s.scale, _mm512_castps512_ps256(both));
  _mm256_store_ps(s.start, _mm512_extractf32x8_ps(both, 1));
  s.settle();
}

template <>
struct RowLayout<formats::Q4_K> {
  template <int kPlanes>
  GRISTMILL_INLINE static void unpack(const uint8_t* p, int, Bf16Tile (*to)[kPlanes], int row) {
    RowScales s;
    set_k_scales(p, s);
    const __m512 code = codes<16>();
    for_constants<4>([&](auto i) GRISTMILL_LAMBDA {
      const __m512i q = bytes_to_words(p + 16 + 32 * i);
      look_up_two<true>(code, s, 2 * i, q, _mm512_srli_epi16(q, 4), to, row);
    });
  }
};

template <>
struct RowLayout<formats::Q5_K> {
  template <int kPlanes>
  GRISTMILL_INLINE static void unpack(const uint8_t* p, int, Bf16Tile (*to)[kPlanes], int row) {
    RowScales s;
    set_k_scales(p, s);
    const __m512 low = codes<16>(), high = codes<16, 16>();
    const __m512i fifth = bytes_to_words(p + 16);
    for_constants<4>([&](auto i) GRISTMILL_LAMBDA {
      const __m512i q = bytes_to_words(p + 48 + 32 * i);
      for_constants<2>([&](auto j) GRISTMILL_LAMBDA {
        constexpr int g = 2 * i + j;
        const __m512i index = select_bits(words(15), shift_words<4 * j, 0>(q), shift_words<g, 4>(fifth));
        Table<kPlanes>(weights(low, s, g), weights(high, s, g)).look_up(index, to[g], row);
      });
    });
  }
};

template <>
struct RowLayout<formats::Q6_K> {
  template <int kPlanes>
  GRISTMILL_INLINE static void unpack(const uint8_t* p, int, Bf16Tile (*to)[kPlanes], int row) {
    RowScales s;
    _mm512_store_ps(s.scale, _mm512_mul_ps(signed_bytes_to_floats(load16(p + 192)), half_to_floats(p + 208)));
    s.settle();
    alignas(64) int8_t q[kUnpackK];
    for_constants<2>([&](auto h) GRISTMILL_LAMBDA {
      const __m512i nibbles = load64(p + 64 * h), pairs = _mm512_broadcast_i64x4(load32(p + 128 + 32 * h));
      const auto join = [](__m512i low, __m512i high) GRISTMILL_LAMBDA {
        const __m512i u = _mm512_and_si512(select_bits(bytes(15), low, high), bytes(63));
        return _mm512_sub_epi8(u, bytes(32));
      };
      _mm512_store_si512(q + 128 * h, join(nibbles, _mm512_sllv_epi16(pairs, words(4, 2))));
      _mm512_store_si512(q + 128 * h + 64, join(_mm512_srli_epi16(nibbles, 4), _mm512_srlv_epi16(pairs, words(0, 2))));
    });
    asm("" : "+m"(q));  // widened from memory, or it would be taken apart by shuffles first
    for_constants<8>([&](auto i) GRISTMILL_LAMBDA {
      set_line<kPlanes>(to[i], row, symmetric_weights(signed_bytes_to_floats(load16(q + 32 * i)), s, 2 * i),
                        symmetric_weights(signed_bytes_to_floats(load16(q + 32 * i + 16)), s, 2 * i + 1));
    });
  }
};

// Where a line's two groups have a table together with others: kFirst and what follows it in `kBits` bits.
template <int kGroup, int kBits>
inline __m512i group_words() {
  return words(kGroup << kBits, (kGroup + 1) << kBits);
}
// x[kN i], kN lanes each, then x[kN i + 1] ...: 16 / kN groups from 16 / kN * i on.
template <int kN, int kI>
GRISTMILL_INLINE __m512 repeat(__m512 x) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i group = _mm512_add_epi32(_mm512_srli_epi32(lane, kN == 4 ? 2 : 3), _mm512_set1_epi32(16 / kN * kI));
  return _mm512_permutexvar_ps(group, x);
}

// Eight groups have a table.
template <>
struct RowLayout<formats::Q2_K> {
  template <int kPlanes>
  GRISTMILL_INLINE static void unpack(const uint8_t* p, int, Bf16Tile (*to)[kPlanes], int row) {
    const __m128i both = load16(p), four = _mm_set1_epi8(15);
    const __m512 scale = _mm512_mul_ps(bytes_to_floats(_mm_and_si128(both, four)), half_to_floats(p + 80));
    const __m512 minimum = _mm512_mul_ps(bytes_to_floats(_mm_and_si128(_mm_srli_epi16(both, 4), four)),
                                         _mm512_xor_ps(half_to_floats(p + 82), _mm512_set1_ps(-0.0f)));
    for_constants<2>([&](auto h) GRISTMILL_LAMBDA {
      const auto four_groups = [&](auto i) GRISTMILL_LAMBDA {
        return _mm512_fmadd_ps(codes<4>(), repeat<4, i>(scale), repeat<4, i>(minimum));
      };
      const Table<kPlanes> table(four_groups(constant<2 * h>), four_groups(constant<2 * h + 1>));
      const __m512i q = bytes_to_words(p + 16 + 32 * h);
      for_constants<4>([&](auto k) GRISTMILL_LAMBDA {
        table.look_up(select_bits(words(3), shift_words<2 * k, 0>(q), group_words<2 * k, 2>()), to[4 * h + k], row);
      });
    });
  }
};

// Four groups have a table.
template <>
struct RowLayout<formats::Q3_K> {
  template <int kPlanes>
  GRISTMILL_INLINE static void unpack(const uint8_t* p, int, Bf16Tile (*to)[kPlanes], int row) {
    const auto low = read<uint64_t>(p + 96);
    const auto high = read<uint32_t>(p + 104);
    const auto upper = [&](int shift) { return high >> shift & 0x03030303u; };
    const auto join = [](uint64_t nibbles, uint32_t first, uint32_t second) {
      return int64_t((nibbles & 0x0f0f0f0f0f0f0f0fu) | (first | uint64_t(second) << 32) << 4);
    };
    const __m128i six = _mm_set_epi64x(join(low >> 4, upper(4), upper(6)), join(low, upper(0), upper(2)));
    const __m512 scale =
        _mm512_mul_ps(_mm512_sub_ps(bytes_to_floats(six), _mm512_set1_ps(32.0f)), half_to_floats(p + 108));
    const __m512i third = bytes_to_words(p);
    for_constants<4>([&](auto i) GRISTMILL_LAMBDA {
      const auto two_groups = [&](auto j) GRISTMILL_LAMBDA {
        return _mm512_fmadd_ps(codes<8, -4>(), repeat<8, j>(scale), _mm512_setzero_ps());
      };
      const Table<kPlanes> table(two_groups(constant<2 * i>), two_groups(constant<2 * i + 1>));
      const __m512i q = bytes_to_words(p + 32 + 32 * (i / 2));
      for_constants<2>([&](auto j) GRISTMILL_LAMBDA {
        constexpr int line = 2 * i + j;
        const __m512i code = select_bits(words(3), shift_words<2 * (line % 4), 0>(q), shift_words<line, 2>(third));
        table.look_up(select_bits(words(7), code, group_words<2 * j, 3>()), to[line], row);
      });
    });
  }
};

template <>
struct RowLayout<formats::IQ4_XS> {
  template <int kPlanes>
  GRISTMILL_INLINE static void unpack(const uint8_t* p, int, Bf16Tile (*to)[kPlanes], int row) {
    const __m256i group = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i low = _mm256_srlv_epi32(_mm256_set1_epi32(read<int32_t>(p + 4)), _mm256_slli_epi32(group, 2));
    const __m256i high = _mm256_srlv_epi32(_mm256_set1_epi32(read<uint16_t>(p + 2) << 4), _mm256_slli_epi32(group, 1));
    const __m256i code =
        _mm256_or_si256(_mm256_and_si256(low, _mm256_set1_epi32(15)), _mm256_and_si256(high, _mm256_set1_epi32(0x30)));
    RowScales s;
    _mm256_store_ps(s.scale, _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_sub_epi32(code, _mm256_set1_epi32(32))),
                                           _mm512_castps512_ps256(half_to_floats(p))));
    s.settle();
    const __m512 levels = iq4_codes();
    for_constants<4>([&](auto i) GRISTMILL_LAMBDA {
      const uint8_t* const q = p + 8 + 32 * i;
      look_up_two<false>(levels, s, 2 * i, nibbles_to_words(q), nibbles_to_words(q + 16), to, row);
    });
  }
};

// ---- floats: any number of them, and zeros behind the last ----

template <>
struct RowLayout<formats::BF16> {
  template <int kPlanes>
  GRISTMILL_INLINE static void unpack(const uint8_t* p, int n_k, Bf16Tile (*to)[kPlanes], int row) {
    static_assert(kPlanes == 1);
    for (int k = 0; k < n_k; k += 32)
      _mm512_store_si512(to[k / 32][0][row], _mm512_maskz_loadu_epi16(first_words(n_k - k), p + 2 * k));
  }
  static __mmask32 first_words(int n) { return n >= 32 ? ~__mmask32(0) : (__mmask32(1) << n) - 1; }
};

template <>
struct RowLayout<formats::F16> {
  template <int kPlanes>
  GRISTMILL_INLINE static void unpack(const uint8_t* p, int n_k, Bf16Tile (*to)[kPlanes], int row) {
    for (int k = 0; k < n_k; k += 32) {
      const __m512i x = _mm512_maskz_loadu_epi16(RowLayout<formats::BF16>::first_words(n_k - k), p + 2 * k);
      set_line<kPlanes>(to[k / 32], row, _mm512_cvtph_ps(_mm512_castsi512_si256(x)),
                        _mm512_cvtph_ps(_mm512_extracti64x4_epi64(x, 1)));
    }
  }
};

}  // namespace
}  // namespace gristmill::cpu

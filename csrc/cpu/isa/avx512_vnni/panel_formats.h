// Taking 256 weights of sixteen rows apart, format by format; the pictures of the bits are in csrc/formats. A layout
// says how: w = scale * (u - kZero) + minimum, scales by groups of kGroup, minima by groups of kMinGroup. Its
// unpack<kBlocks>(), a superblock or up to eight blocks of 32, fills a sink, a panel or what multiplies at once:
//
//   set_u(i, x)          weights 4 i to 4 i + 3 of each row, a byte each. i is a constant, for it may name registers;
//                        of the calls for one group of scales the lowest i comes first and the highest last
//   set_scale(g, x), set_minimum(g, x)
#pragma once

#include <algorithm>

#include "cpu/isa/avx512_vnni/panel.h"
#include "cpu/kernels.h"
#include "formats/registry.h"

namespace gristmill::cpu {
namespace {

template <class F>
struct LayoutOf {
  using Format = F;
  static constexpr int kGroup = F::kGroup, kMinGroup = F::kGroup, kZero = F::kZero;
  static constexpr bool kHasMin = F::kHasMin;
  static constexpr int kBlocks = kPieceK / F::kBlockSize;  // of a piece
};

// A format without a specialization goes through its to_affine(); correct everywhere, fast nowhere.
template <class F, int kBlocks>
inline void unpack_generic(Rows& rows, Panel& panel) {
  constexpr int kBlock = F::kBlockSize, kGroups = kBlock / F::kGroup;
  for (int r = 0; r < kPanelRows; ++r)
    for (int b = 0; b < kBlocks; ++b) {
      uint8_t q[kBlock];
      float scale[kGroups], minimum[kGroups];
      F::to_affine(*reinterpret_cast<const typename F::Block*>(rows.at(r, b * int(sizeof(typename F::Block)))), q,
                   scale, minimum);
      for (int g = 0; g < kGroups; ++g) {
        panel.scale[b * kGroups + g][r] = scale[g];
        panel.minimum[b * kGroups + g][r] = minimum[g];
      }
      for (int k = 0; k < kBlock; k += 4) std::memcpy(panel.u[(b * kBlock + k) / 4][r], q + k, 4);
    }
}

// How decoding and prefill want a format.
template <class F>
struct PanelLayout : LayoutOf<F> {
  template <int kBlocks, class Sink>
  GRISTMILL_INLINE static void unpack(Rows& rows, Sink& sink) {
    constexpr int kWeights = kBlocks * F::kBlockSize;
    Panel panel;
    unpack_generic<F, kBlocks>(rows, panel);
    for_constants<kWeights / 4>([&](auto i) GRISTMILL_LAMBDA { sink.set_u(i, load64(panel.u[i])); });
    for (int g = 0; g < kWeights / F::kGroup; ++g) {
      sink.set_scale(g, _mm512_load_ps(panel.scale[g]));
      sink.set_minimum(g, _mm512_load_ps(panel.minimum[g]));
    }
  }
};
template <class F>
struct PrefillLayout : PanelLayout<F> {};

// ---- blocks of 32, up to eight of them ----

constexpr auto as_they_are = [](__m512i nibbles, auto) GRISTMILL_LAMBDA { return nibbles; };

// Dword j of a block's 16 bytes of nibbles: the low ones are its first half. f maps them to weights.
template <class Block, class J, class Sink, class F>
GRISTMILL_INLINE void set_nibbles(Block block, J j, __m512i q, Sink& sink, const F& f) {
  sink.set_u(constant<8 * block + j>, f(low_nibbles(q), j));
  sink.set_u(constant<8 * block + 4 + j>, f(high_nibbles(q), constant<4 + j>));
}

// d and nibbles.
template <int kBlocks, class Sink, class F>
GRISTMILL_INLINE void unpack_half_nibbles(Rows& rows, Sink& sink, const F& f) {
  for_half_blocks<kBlocks, 4>(
      rows, [&](auto b, __m512 d) GRISTMILL_LAMBDA { sink.set_scale(b, d); },
      [&](auto b, auto j, __m512i q) GRISTMILL_LAMBDA { set_nibbles(b, j, q, sink, f); });
}

template <>
struct PanelLayout<formats::Q4_0> : LayoutOf<formats::Q4_0> {
  template <int kBlocks, class Sink>
  GRISTMILL_INLINE static void unpack(Rows& rows, Sink& sink) {
    unpack_half_nibbles<kBlocks>(rows, sink, as_they_are);
  }
};

// A dword of two halves a row: scale and minimum.
template <class Sink>
GRISTMILL_INLINE void set_scale_and_minimum(int group, __m512i halves, Sink& sink) {
  sink.set_scale(group, low_halves(halves));
  sink.set_minimum(group, high_halves(halves));
}

template <>
struct PanelLayout<formats::Q4_1> : LayoutOf<formats::Q4_1> {
  template <int kBlocks, class Sink>
  GRISTMILL_INLINE static void unpack(Rows& rows, Sink& sink) {
    for_words<5 * kBlocks>(rows, [&](auto i, __m512i w) GRISTMILL_LAMBDA {
      constexpr int b = i / 5, at = i % 5;
      if constexpr (at == 0) {
        set_scale_and_minimum(b, w, sink);
      } else {
        set_nibbles(constant<b>, constant<at - 1>, w, sink, as_they_are);
      }
    });
  }
};

// Bit 4 i + j of each row's 32 as bit 4 of byte j.
template <class I>
GRISTMILL_INLINE __m512i add_fifth_bits(__m512i nibbles, __m512i high, I i) {
  // Byte i / 2 of the row's bits, four times; each of its copies is asked for another bit.
  const __mmask64 set =
      _mm512_test_epi8_mask(repeat_byte(high, i / 2), _mm512_set1_epi32(i % 2 ? int(0x80402010) : 0x08040201));
  return _mm512_mask_add_epi8(nibbles, set, nibbles, bytes(16));
}

template <>
struct PanelLayout<formats::Q5_0> : LayoutOf<formats::Q5_0> {
  template <int kBlocks, class Sink>
  GRISTMILL_INLINE static void unpack(Rows& rows, Sink& sink) {
    __m512i high;
    for_half_blocks<kBlocks, 5>(
        rows, [&](auto b, __m512 d) GRISTMILL_LAMBDA { sink.set_scale(b, d); },
        [&](auto b, auto j, __m512i q) GRISTMILL_LAMBDA {
          if constexpr (j == 0) {
            high = q;
          } else {
            set_nibbles(b, constant<j - 1>, q, sink,
                        [&](__m512i u, auto i) GRISTMILL_LAMBDA { return add_fifth_bits(u, high, i); });
          }
        });
  }
};

template <>
struct PanelLayout<formats::Q5_1> : LayoutOf<formats::Q5_1> {
  template <int kBlocks, class Sink>
  GRISTMILL_INLINE static void unpack(Rows& rows, Sink& sink) {
    __m512i high;
    for_words<6 * kBlocks>(rows, [&](auto i, __m512i w) GRISTMILL_LAMBDA {
      constexpr int b = i / 6, at = i % 6;
      if constexpr (at == 0) {
        set_scale_and_minimum(b, w, sink);
      } else if constexpr (at == 1) {
        high = w;
      } else {
        set_nibbles(constant<b>, constant<at - 2>, w, sink,
                    [&](__m512i u, auto n) GRISTMILL_LAMBDA { return add_fifth_bits(u, high, n); });
      }
    });
  }
};

template <>
struct PanelLayout<formats::Q8_0> : LayoutOf<formats::Q8_0> {
  template <int kBlocks, class Sink>
  GRISTMILL_INLINE static void unpack(Rows& rows, Sink& sink) {
    for_half_blocks<kBlocks, 8>(
        rows, [&](auto b, __m512 d) GRISTMILL_LAMBDA { sink.set_scale(b, d); },
        // + 128: vpdpbusd's weights are unsigned
        [&](auto b, auto j, __m512i q)
            GRISTMILL_LAMBDA { sink.set_u(constant<8 * b + j>, _mm512_xor_si512(q, bytes(0x80))); });
  }
};

GRISTMILL_INLINE __m512i iq4_levels(__m512i index) {
  alignas(16) uint8_t levels[16];
  for (int i = 0; i < 16; ++i) levels[i] = uint8_t(formats::iq4_level(i) + 128);
  return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(load16(levels)), index);
}
constexpr auto as_iq4_levels = [](__m512i nibbles, auto) GRISTMILL_LAMBDA { return iq4_levels(nibbles); };

template <>
struct PanelLayout<formats::IQ4_NL> : LayoutOf<formats::IQ4_NL> {
  template <int kBlocks, class Sink>
  GRISTMILL_INLINE static void unpack(Rows& rows, Sink& sink) {
    unpack_half_nibbles<kBlocks>(rows, sink, as_iq4_levels);
  }
};

// ---- superblocks of 256 ----

// Q4_K's and Q5_K's header of 16 bytes: eight scales and minima (formats/k_scales.h), four codes of a row in a dword.
template <class Sink>
GRISTMILL_INLINE void set_k_scales(Rows& rows, Sink& sink) {
  __m512i header[4];
  columns(rows, 0, header);
  const __m512 d = low_halves(header[0]);
  const __m512 dmin = _mm512_xor_ps(high_halves(header[0]), _mm512_set1_ps(-0.0f));
  const __m512i six = bytes(0x3f), four = bytes(0x0f);
  const auto upper = [&](__m512i x) { return _mm512_and_si512(_mm512_srli_epi32(x, 2), bytes(0x30)); };
  const __m512i scale[2] = {_mm512_and_si512(header[1], six), select_bits(four, header[3], upper(header[1]))};
  const __m512i minimum[2] = {_mm512_and_si512(header[2], six),
                              select_bits(four, _mm512_srli_epi32(header[3], 4), upper(header[2]))};
  for_constants<8>([&](auto g) GRISTMILL_LAMBDA {
    sink.set_scale(g, _mm512_mul_ps(byte_to_float(scale[g / 4], g % 4), d));
    sink.set_minimum(g, _mm512_mul_ps(byte_to_float(minimum[g / 4], g % 4), dmin));
  });
}

template <>
struct PanelLayout<formats::Q4_K> : LayoutOf<formats::Q4_K> {
  template <int kBlocks, class Sink>
  GRISTMILL_INLINE static void unpack(Rows& rows, Sink& sink) {
    set_k_scales(rows, sink);
    for_constants<8>([&](auto i) GRISTMILL_LAMBDA {
      __m512i c[4];
      columns(rows, 16 + 16 * i, c);
      for_constants<4>([&](auto j) GRISTMILL_LAMBDA {
        constexpr int at = 16 * (i / 2) + 4 * (i % 2) + j;
        sink.set_u(constant<at>, low_nibbles(c[j]));
        sink.set_u(constant<at + 8>, high_nibbles(c[j]));
      });
    });
  }
};

template <>
struct PanelLayout<formats::Q5_K> : LayoutOf<formats::Q5_K> {
  template <int kBlocks, class Sink>
  GRISTMILL_INLINE static void unpack(Rows& rows, Sink& sink) {
    set_k_scales(rows, sink);
    __m512i high[2][4];
    columns(rows, 16, high[0]);
    columns(rows, 32, high[1]);
    for_constants<8>([&](auto i) GRISTMILL_LAMBDA {
      __m512i c[4];
      columns(rows, 48 + 16 * i, c);
      for_constants<4>([&](auto j) GRISTMILL_LAMBDA {
        // Bits 2 p and 2 p + 1 of a byte belong to the groups of this piece.
        constexpr int p = i / 2, at = 16 * p + 4 * (i % 2) + j;
        const __m512i h = high[i % 2][j];
        sink.set_u(constant<at>, join(c[j], shift_bits<2 * p, 4>(h)));
        sink.set_u(constant<at + 8>, join(_mm512_srli_epi32(c[j], 4), shift_bits<2 * p + 1, 4>(h)));
      });
    });
  }
  static __m512i join(__m512i nibbles, __m512i bits) {
    return _mm512_and_si512(select_bits(bytes(15), nibbles, bits), bytes(31));
  }
};

template <>
struct PanelLayout<formats::Q6_K> : LayoutOf<formats::Q6_K> {
  template <int kBlocks, class Sink>
  GRISTMILL_INLINE static void unpack(Rows& rows, Sink& sink) {
    RowFields<uint16_t> d;
    d.copy(rows, 208);
    for_constants<4>([&](auto i) GRISTMILL_LAMBDA {
      constexpr int half = i / 2, part = i % 2;
      __m512i a[4], b[4], high[4];
      columns(rows, 64 * half + 16 * part, a);
      columns(rows, 64 * half + 32 + 16 * part, b);
      columns(rows, 128 + 32 * half + 16 * part, high);
      for_constants<4>([&](auto j) GRISTMILL_LAMBDA {
        constexpr int at = 32 * half + 4 * part + j;
        sink.set_u(constant<at>, join(a[j], shift_bits<0, 4>(high[j])));
        sink.set_u(constant<at + 8>, join(b[j], shift_bits<2, 4>(high[j])));
        sink.set_u(constant<at + 16>, join(_mm512_srli_epi32(a[j], 4), high[j]));
        sink.set_u(constant<at + 24>, join(_mm512_srli_epi32(b[j], 4), shift_bits<6, 4>(high[j])));
      });
    });
    __m512i codes[4];
    columns(rows, 192, codes);
    const __m512 scale = floats(d);
    for_constants<16>([&](auto g) GRISTMILL_LAMBDA {
      sink.set_scale(g, _mm512_mul_ps(signed_byte_to_float(codes[g / 4], g % 4), scale));
    });
  }
  static __m512i join(__m512i nibbles, __m512i pairs) {
    return _mm512_and_si512(select_bits(bytes(15), nibbles, pairs), bytes(63));
  }
};

// set(i, u) for the codes of 2 bits.
template <class Set>
GRISTMILL_INLINE void unpack_q2_k(Rows& rows, const Set& set) {
  for_constants<4>([&](auto i) GRISTMILL_LAMBDA {
    __m512i c[4];
    columns(rows, 16 + 16 * i, c);
    for_constants<16>([&](auto n) GRISTMILL_LAMBDA {
      constexpr int k = n / 4, j = n % 4;
      set(constant<32 * (i / 2) + 8 * k + 4 * (i % 2) + j>, bit_pairs(c[j], k));
    });
  });
}

// Sixteen minima in the high nibbles of the codes.
template <class Sink>
GRISTMILL_INLINE void set_q2_k_minima(const __m512i (&codes)[4], __m512i halves, Sink& sink) {
  const __m512 dmin = _mm512_xor_ps(high_halves(halves), _mm512_set1_ps(-0.0f));
  for_constants<16>([&](auto g) GRISTMILL_LAMBDA {
    sink.set_minimum(g, _mm512_mul_ps(byte_to_float(high_nibbles(codes[g / 4]), g % 4), dmin));
  });
}

template <>
struct PanelLayout<formats::Q2_K> : LayoutOf<formats::Q2_K> {
  template <int kBlocks, class Sink>
  GRISTMILL_INLINE static void unpack(Rows& rows, Sink& sink) {
    RowFields<uint32_t> both;
    both.copy(rows, 80);
    unpack_q2_k(rows, [&](auto i, __m512i u) GRISTMILL_LAMBDA { sink.set_u(i, u); });
    __m512i codes[4];
    columns(rows, 0, codes);
    const __m512 d = low_halves(load64(both.of));
    for_constants<16>([&](auto g) GRISTMILL_LAMBDA {
      sink.set_scale(g, _mm512_mul_ps(byte_to_float(low_nibbles(codes[g / 4]), g % 4), d));
    });
    set_q2_k_minima(codes, load64(both.of), sink);
  }
};

// Codes of 0 to 3 times scales of 0 to 15 are bytes still: multiplied here, a superblock has one scale, and prefill
// converts and scales half as many sums.
template <>
struct PrefillLayout<formats::Q2_K> : LayoutOf<formats::Q2_K> {
  static constexpr int kGroup = 32;
  template <int kBlocks, class Sink>
  GRISTMILL_INLINE static void unpack(Rows& rows, Sink& sink) {
    RowFields<uint32_t> both;
    both.copy(rows, 80);
    __m512i codes[4];
    columns(rows, 0, codes);
    unpack_q2_k(rows, [&](auto i, __m512i u) GRISTMILL_LAMBDA {
      // A scale twice in a dword: no product leaves its byte, so two bytes multiply at once.
      constexpr int g = i / 4;
      const __m512i factor = _mm512_and_si512(repeat_byte(codes[g / 4], g % 4), _mm512_set1_epi32(0x000f000f));
      sink.set_u(i, _mm512_mullo_epi16(u, factor));
    });
    for (int g = 0; g < 8; ++g) sink.set_scale(g, low_halves(load64(both.of)));
    set_q2_k_minima(codes, load64(both.of), sink);
  }
};

// Sixteen scales of 0 to 63, four in a dword; set(i, u) for the codes of 3 bits. Returns d.
template <class Set>
GRISTMILL_INLINE __m512 unpack_q3_k(Rows& rows, __m512i (&codes)[4], const Set& set) {
  __m512i w[4];
  columns(rows, 94, w);  // two bytes of weights, twelve of scales, d
  const auto word = [&](int i) GRISTMILL_LAMBDA {
    return _mm512_or_si512(_mm512_srli_epi32(w[i], 16), _mm512_slli_epi32(w[i + 1], 16));
  };
  const __m512i low[2] = {word(0), word(1)}, upper = word(2);
  for_constants<4>([&](auto i) GRISTMILL_LAMBDA {
    const __m512i nibbles = i < 2 ? low_nibbles(low[i % 2]) : high_nibbles(low[i % 2]);
    codes[i] = _mm512_or_si512(nibbles, _mm512_slli_epi32(bit_pairs(upper, i), 4));
  });
  __m512i mask[2][4];
  columns(rows, 0, mask[0]);
  columns(rows, 16, mask[1]);
  for_constants<4>([&](auto i) GRISTMILL_LAMBDA {
    __m512i c[4];
    columns(rows, 32 + 16 * i, c);
    for_constants<16>([&](auto n) GRISTMILL_LAMBDA {
      constexpr int k = n / 4, j = n % 4, bit = 4 * (i / 2) + k;
      const __m512i pairs = _mm512_srli_epi32(c[j], unsigned(2 * k)), high = shift_bits<bit, 2>(mask[i % 2][j]);
      set(constant<32 * (i / 2) + 8 * k + 4 * (i % 2) + j>,
          _mm512_and_si512(select_bits(bytes(3), pairs, high), bytes(7)));
    });
  });
  return high_halves(w[3]);
}

template <>
struct PanelLayout<formats::Q3_K> : LayoutOf<formats::Q3_K> {
  template <int kBlocks, class Sink>
  GRISTMILL_INLINE static void unpack(Rows& rows, Sink& sink) {
    __m512i codes[4];
    const __m512 d = unpack_q3_k(rows, codes, [&](auto i, __m512i u) GRISTMILL_LAMBDA { sink.set_u(i, u); });
    for_constants<16>([&](auto g) GRISTMILL_LAMBDA {
      const __m512 code = _mm512_sub_ps(byte_to_float(codes[g / 4], g % 4), _mm512_set1_ps(32.0f));
      sink.set_scale(g, _mm512_mul_ps(code, d));
    });
  }
};

// Codes of -4 to 3 times scales of -32 to 31 reach from -124 to 128: taken from 128 they are bytes, and the scale
// changes its sign.
template <>
struct PrefillLayout<formats::Q3_K> : LayoutOf<formats::Q3_K> {
  static constexpr int kGroup = 32, kZero = 128;
  template <int kBlocks, class Sink>
  GRISTMILL_INLINE static void unpack(Rows& rows, Sink& sink) {
    __m512i codes[4];
    const __m512 d = unpack_q3_k(rows, codes, [&](auto i, __m512i u) GRISTMILL_LAMBDA {
      constexpr int g = i / 4;
      const __m512i code = _mm512_and_si512(repeat_byte(codes[g / 4], g % 4), _mm512_set1_epi32(0x00ff00ff));
      const __m512i factor = _mm512_sub_epi16(code, _mm512_set1_epi16(32));
      // 128 - (u - 4) * factor, for even and odd bytes
      const __m512i zero = _mm512_add_epi16(_mm512_set1_epi16(128), _mm512_slli_epi16(factor, 2));
      const __m512i even = _mm512_mullo_epi16(_mm512_and_si512(u, _mm512_set1_epi16(255)), factor);
      const __m512i odd = _mm512_mullo_epi16(_mm512_srli_epi16(u, 8), factor);
      sink.set_u(i, _mm512_or_si512(_mm512_sub_epi16(zero, even), _mm512_slli_epi16(_mm512_sub_epi16(zero, odd), 8)));
    });
    for (int g = 0; g < 8; ++g) sink.set_scale(g, _mm512_xor_ps(d, _mm512_set1_ps(-0.0f)));
  }
};

template <>
struct PanelLayout<formats::IQ4_XS> : LayoutOf<formats::IQ4_XS> {
  template <int kBlocks, class Sink>
  GRISTMILL_INLINE static void unpack(Rows& rows, Sink& sink) {
    RowFields<uint32_t> first, low;
    first.copy(rows, 0);
    low.copy(rows, 4);
    for_constants<8>([&](auto g) GRISTMILL_LAMBDA {
      __m512i c[4];
      columns(rows, 8 + 16 * g, c);
      for_constants<4>([&](auto j) GRISTMILL_LAMBDA { set_nibbles(g, j, c[j], sink, as_iq4_levels); });
    });
    const __m512i header = load64(first.of), codes = load64(low.of);
    const __m512 d = low_halves(header);
    for_constants<8>([&](auto g) GRISTMILL_LAMBDA {
      const __m512i l = _mm512_and_si512(_mm512_srli_epi32(codes, unsigned(4 * g)), _mm512_set1_epi32(15));
      const __m512i h = _mm512_and_si512(_mm512_srli_epi32(header, unsigned(16 + 2 * g)), _mm512_set1_epi32(3));
      const __m512i code = _mm512_sub_epi32(_mm512_or_si512(l, _mm512_slli_epi32(h, 4)), _mm512_set1_epi32(32));
      sink.set_scale(g, _mm512_mul_ps(_mm512_cvtepi32_ps(code), d));
    });
  }
};

// ---- any piece of a matrix ----

// Weights [k0, k0 + n_k) of rows r, r + distance, ..., n_rows <= 16 of them, in kBlocks blocks. Where there are fewer,
// rows repeat the last and blocks are zero bytes, which are weights of scale zero.
template <class Layout, int kBlocks = Layout::kBlocks, class Sink>
GRISTMILL_INLINE void unpack_blocks(const Weight& w, int64_t r, int n_rows, int64_t distance, int64_t k0, int64_t n_k,
                                    Sink& sink) {
  using Format = typename Layout::Format;
  constexpr int kWeights = kBlocks * Format::kBlockSize, kBytes = int(weight_bytes<Format>(kWeights));
  const int64_t row_bytes = weight_bytes<Format>(w.n_cols), stride = distance * row_bytes;
  const auto* p = reinterpret_cast<const uint8_t*>(w.data) + r * row_bytes + weight_bytes<Format>(k0);
  if (n_rows >= kPanelRows && n_k == kWeights) {
    Rows rows(p, stride);
    // Not the copy below: what follows that is nobody's.
    if constexpr (requires { sink.ask_beyond(rows); }) sink.ask_beyond(rows);
    return Layout::template unpack<kBlocks>(rows, sink);
  }
  alignas(64) uint8_t copy[kPanelRows][kBytes];
  const size_t n_bytes = std::min(size_t(weight_bytes<Format>(n_k)), size_t(kBytes));
  for (int i = 0; i < kPanelRows; ++i) {
    std::memcpy(copy[i], p + std::min(i, n_rows - 1) * stride, n_bytes);
    std::memset(copy[i] + n_bytes, 0, kBytes - n_bytes);
  }
  Rows rows(copy[0], kBytes);
  Layout::template unpack<kBlocks>(rows, sink);
}

// Rows often end in a piece that is not whole: pairs of blocks, where a format's blocks are small.
constexpr int kPartK = 64;
template <class Layout>
constexpr bool kHasParts = Layout::Format::kBlockSize < kPartK;
template <class Layout>
constexpr int kPartBlocks = kPartK / Layout::Format::kBlockSize;

// A panel from its k on.
template <class Layout>
struct PanelPart {
  Panel& panel;
  int k;
  void set_u(int i, __m512i x) { panel.set_u(k / 4 + i, x); }
  void set_scale(int group, __m512 x) { panel.set_scale(k / Layout::kGroup + group, x); }
  void set_minimum(int group, __m512 x) { panel.set_minimum(k / Layout::kMinGroup + group, x); }
};

template <class Layout>
inline void unpack_piece(const Weight& w, int64_t r, int n_rows, int64_t distance, int64_t k0, int64_t n_k,
                         Panel& panel) {
  if constexpr (kHasParts<Layout>) {
    if (n_k < kPieceK) {
      for (int k = 0; k < n_k; k += kPartK) {
        PanelPart<Layout> part{panel, k};
        unpack_blocks<Layout, kPartBlocks<Layout>>(w, r, n_rows, distance, k0 + k, std::min<int64_t>(kPartK, n_k - k),
                                                   part);
      }
      return;
    }
  }
  unpack_blocks<Layout>(w, r, n_rows, distance, k0, n_k, panel);
}

}  // namespace
}  // namespace gristmill::cpu

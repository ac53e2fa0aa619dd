// Taking 256 weights of eight rows apart, format by format; the pictures of the bits are in csrc/formats. A layout says
// how: w = scale * (u - kZero) + minimum, |u - kZero| <= kMaxCode. Its unpack() fills a sink:
//
//   set_factor(g, x)     kSuper: scale = scale 0 * factor g, integers of at most 8 bits and a sign; before its set_u
//   set_u(i, x)          weights 4 i to 4 i + 3 of each row, a byte each; i is a constant, for it may name registers
//   set_scale(g, x)      of each kGroup, or one where kSuper
//   set_minimum(g, x)    of each kGroup
#pragma once

#include <algorithm>

#include "cpu/isa/avx2/panel.h"
#include "cpu/kernels.h"
#include "formats/registry.h"

namespace gristmill::cpu {
namespace {

template <class F, int kMost, bool kHasFactors>
struct LayoutOf {
  using Format = F;
  static constexpr int kGroup = F::kGroup, kZero = F::kZero, kMaxCode = kMost;
  static constexpr bool kHasMin = F::kHasMin, kSuper = kHasFactors;
};

// A format without a specialization goes through its to_affine(); correct everywhere, fast nowhere.
template <class F>
struct PanelLayout : LayoutOf<F, 255, false> {
  template <class Sink>
  static void unpack(const Rows& rows, Sink& sink) {
    using Block = typename F::Block;
    constexpr int kBlock = F::kBlockSize, kGroups = kBlock / F::kGroup;
    alignas(32) uint8_t u[kPieceK / 4][kPanelRows][4];
    for (int r = 0; r < kPanelRows; ++r)
      for (int b = 0; b < kPieceK / kBlock; ++b) {
        uint8_t q[kBlock];
        float scale[kGroups], minimum[kGroups];
        F::to_affine(*reinterpret_cast<const Block*>(rows.at(r, b * int(sizeof(Block)))), q, scale, minimum);
        for (int g = 0; g < kGroups; ++g) {
          sink.scale[b * kGroups + g][r] = scale[g];
          sink.minimum[b * kGroups + g][r] = minimum[g];
        }
        for (int k = 0; k < kBlock; k += 4) std::memcpy(u[(b * kBlock + k) / 4][r], q + k, 4);
      }
    for_constants<kPieceK / 4>([&](auto i) GRISTMILL_LAMBDA { sink.set_u(i, load32(u[i])); });
  }
};

// ---- blocks of 32, eight of them ----

// Nibbles of 16 bytes: the low ones are the block's first half. f maps them to weights.
template <class Block, class Sink, class F>
GRISTMILL_INLINE void set_nibbles(const Rows& rows, int offset, Block block, Sink& sink, const F& f) {
  __m256i c[4];
  columns(rows, offset, c);
  for_constants<4>([&](auto i) GRISTMILL_LAMBDA { sink.set_u(constant<8 * block + i>, f(low_nibbles(c[i]), i)); });
  for_constants<4>([&](auto i) GRISTMILL_LAMBDA {
    sink.set_u(constant<8 * block + 4 + i>, f(high_nibbles(c[i]), constant<4 + i>));
  });
}
constexpr auto as_they_are = [](__m256i nibbles, auto) GRISTMILL_LAMBDA { return nibbles; };

// Blocks of a half-precision scale and nibbles.
template <class Sink, class F>
GRISTMILL_INLINE void unpack_half_nibbles(const Rows& rows, Sink& sink, const F& f) {
  RowFields<uint16_t> d[8];
  for (int b = 0; b < 8; ++b) d[b].copy(rows, 18 * b);
  for_constants<8>([&](auto b) GRISTMILL_LAMBDA { set_nibbles(rows, 18 * b + 2, b, sink, f); });
  for (int b = 0; b < 8; ++b) sink.set_scale(b, floats(d[b]));
}

// A dword of two halves a row: scale and minimum, which takes in what Layout::kZero takes away.
template <class Layout, class Sink>
GRISTMILL_INLINE void set_scale_and_minimum(int group, const RowFields<uint32_t>& halves, Sink& sink) {
  const __m256i both = load32(halves.of);
  const __m256 scale = low_halves(both);
  sink.set_scale(group, scale);
  sink.set_minimum(group, _mm256_fmadd_ps(scale, _mm256_set1_ps(float(Layout::kZero)), high_halves(both)));
}

template <>
struct PanelLayout<formats::Q4_0> : LayoutOf<formats::Q4_0, 8, false> {
  template <class Sink>
  GRISTMILL_INLINE static void unpack(const Rows& rows, Sink& sink) {
    unpack_half_nibbles(rows, sink, as_they_are);
  }
};

template <>
struct PanelLayout<formats::Q4_1> : LayoutOf<formats::Q4_1, 15, false> {
  template <class Sink>
  GRISTMILL_INLINE static void unpack(const Rows& rows, Sink& sink) {
    RowFields<uint32_t> dm[8];
    for (int b = 0; b < 8; ++b) dm[b].copy(rows, 20 * b);
    for_constants<8>([&](auto b) GRISTMILL_LAMBDA { set_nibbles(rows, 20 * b + 4, b, sink, as_they_are); });
    for (int b = 0; b < 8; ++b) set_scale_and_minimum<PanelLayout>(b, dm[b], sink);
  }
};

// Bit 4 i + j of each row's 32 as bit 4 of byte j.
template <class I>
GRISTMILL_INLINE __m256i add_fifth_bits(__m256i nibbles, const RowFields<uint32_t>& high, I i) {
  // Byte i / 2 of the row's bits, four times; each of its copies is asked for another bit.
  const __m256i which = _mm256_set1_epi32(i % 2 ? int(0x80402010) : 0x08040201);
  const __m256i bit = _mm256_and_si256(repeat_byte(load32(high.of), i / 2), which);
  return _mm256_or_si256(nibbles, _mm256_and_si256(_mm256_cmpeq_epi8(bit, which), bytes(16)));
}

template <>
struct PanelLayout<formats::Q5_0> : LayoutOf<formats::Q5_0, 16, false> {
  template <class Sink>
  GRISTMILL_INLINE static void unpack(const Rows& rows, Sink& sink) {
    RowFields<uint16_t> d[8];
    RowFields<uint32_t> high[8];
    for (int b = 0; b < 8; ++b) {
      d[b].copy(rows, 22 * b);
      high[b].copy(rows, 22 * b + 2);
    }
    for_constants<8>([&](auto b) GRISTMILL_LAMBDA {
      set_nibbles(rows, 22 * b + 6, b, sink,
                  [&](__m256i u, auto i) GRISTMILL_LAMBDA { return add_fifth_bits(u, high[b], i); });
    });
    for (int b = 0; b < 8; ++b) sink.set_scale(b, floats(d[b]));
  }
};

template <>
struct PanelLayout<formats::Q5_1> : LayoutOf<formats::Q5_1, 16, false> {
  static constexpr int kZero = 16;
  template <class Sink>
  GRISTMILL_INLINE static void unpack(const Rows& rows, Sink& sink) {
    RowFields<uint32_t> dm[8], high[8];
    for (int b = 0; b < 8; ++b) {
      dm[b].copy(rows, 24 * b);
      high[b].copy(rows, 24 * b + 4);
    }
    for_constants<8>([&](auto b) GRISTMILL_LAMBDA {
      set_nibbles(rows, 24 * b + 8, b, sink,
                  [&](__m256i u, auto i) GRISTMILL_LAMBDA { return add_fifth_bits(u, high[b], i); });
    });
    for (int b = 0; b < 8; ++b) set_scale_and_minimum<PanelLayout>(b, dm[b], sink);
  }
};

template <>
struct PanelLayout<formats::Q8_0> : LayoutOf<formats::Q8_0, 128, false> {
  template <class Sink>
  GRISTMILL_INLINE static void unpack(const Rows& rows, Sink& sink) {
    RowFields<uint16_t> d[8];
    for (int b = 0; b < 8; ++b) d[b].copy(rows, 34 * b);
    for_constants<16>([&](auto i) GRISTMILL_LAMBDA {
      __m256i c[4];
      columns(rows, 34 * (i / 2) + 2 + 16 * (i % 2), c);
      for_constants<4>([&](auto j)
                           GRISTMILL_LAMBDA { sink.set_u(constant<4 * i + j>, _mm256_xor_si256(c[j], bytes(0x80))); });
    });
    for (int b = 0; b < 8; ++b) sink.set_scale(b, floats(d[b]));
  }
};

GRISTMILL_INLINE __m256i iq4_levels(__m256i index) {
  alignas(16) uint8_t levels[16];
  for (int i = 0; i < 16; ++i) levels[i] = uint8_t(formats::iq4_level(i) + 128);
  return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load16(levels)), index);
}
constexpr auto as_iq4_levels = [](__m256i nibbles, auto) GRISTMILL_LAMBDA { return iq4_levels(nibbles); };

template <>
struct PanelLayout<formats::IQ4_NL> : LayoutOf<formats::IQ4_NL, 128, false> {
  template <class Sink>
  GRISTMILL_INLINE static void unpack(const Rows& rows, Sink& sink) {
    unpack_half_nibbles(rows, sink, as_iq4_levels);
  }
};

// ---- superblocks of 256 ----

// Q4_K's and Q5_K's header of 16 bytes: eight scales and minima (formats/k_scales.h), four codes of a row in a dword.
template <class Layout, class Sink>
GRISTMILL_INLINE void set_k_scales(const Rows& rows, Sink& sink) {
  __m256i header[4];
  columns(rows, 0, header);
  const __m256 d = low_halves(header[0]);
  const __m256 dmin = _mm256_xor_ps(high_halves(header[0]), _mm256_set1_ps(-0.0f));
  const __m256i six = bytes(0x3f);
  const auto upper = [&](__m256i x) { return _mm256_and_si256(_mm256_srli_epi32(x, 2), bytes(0x30)); };
  const __m256i scale[2] = {_mm256_and_si256(header[1], six),
                            _mm256_or_si256(low_nibbles(header[3]), upper(header[1]))};
  const __m256i minimum[2] = {_mm256_and_si256(header[2], six),
                              _mm256_or_si256(high_nibbles(header[3]), upper(header[2]))};
  sink.set_scale(0, d);
  for_constants<8>([&](auto g) GRISTMILL_LAMBDA {
    const __m256i factor = byte_of(scale[g / 4], g % 4);
    sink.set_factor(g, factor);
    __m256 low = _mm256_mul_ps(_mm256_cvtepi32_ps(byte_of(minimum[g / 4], g % 4)), dmin);
    if constexpr (Layout::kZero != 0)
      low = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(factor), d), _mm256_set1_ps(Layout::kZero), low);
    sink.set_minimum(g, low);
  });
}

template <>
struct PanelLayout<formats::Q4_K> : LayoutOf<formats::Q4_K, 15, true> {
  template <class Sink>
  GRISTMILL_INLINE static void unpack(const Rows& rows, Sink& sink) {
    set_k_scales<PanelLayout>(rows, sink);
    for_constants<8>([&](auto i) GRISTMILL_LAMBDA {
      __m256i c[4];
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
struct PanelLayout<formats::Q5_K> : LayoutOf<formats::Q5_K, 16, true> {
  static constexpr int kZero = 16;
  template <class Sink>
  GRISTMILL_INLINE static void unpack(const Rows& rows, Sink& sink) {
    set_k_scales<PanelLayout>(rows, sink);
    __m256i high[2][4];
    columns(rows, 16, high[0]);
    columns(rows, 32, high[1]);
    for_constants<8>([&](auto i) GRISTMILL_LAMBDA {
      __m256i c[4];
      columns(rows, 48 + 16 * i, c);
      for_constants<4>([&](auto j) GRISTMILL_LAMBDA {
        // Bits 2 p and 2 p + 1 of a byte belong to the groups of this piece.
        constexpr int p = i / 2, at = 16 * p + 4 * (i % 2) + j;
        const __m256i h = high[i % 2][j];
        sink.set_u(constant<at>, _mm256_or_si256(low_nibbles(c[j]), move_bits<2 * p, 4>(h, 16)));
        sink.set_u(constant<at + 8>, _mm256_or_si256(high_nibbles(c[j]), move_bits<2 * p + 1, 4>(h, 16)));
      });
    });
  }
};

template <>
struct PanelLayout<formats::Q6_K> : LayoutOf<formats::Q6_K, 32, true> {
  template <class Sink>
  GRISTMILL_INLINE static void unpack(const Rows& rows, Sink& sink) {
    RowFields<uint16_t> d;
    d.copy(rows, 208);
    __m256i codes[4];
    columns(rows, 192, codes);
    for_constants<16>([&](auto g) GRISTMILL_LAMBDA { sink.set_factor(g, signed_byte_of(codes[g / 4], g % 4)); });
    for_constants<8>([&](auto i) GRISTMILL_LAMBDA {
      // Sixteen columns of k = 0 and 2, or of 1 and 3, in the header's picture.
      constexpr int half = i / 4, part = i / 2 % 2, k = i % 2, at = 32 * half + 8 * k + 4 * part;
      __m256i low[4], high[4];
      columns(rows, 64 * half + 32 * k + 16 * part, low);
      columns(rows, 128 + 32 * half + 16 * part, high);
      for_constants<4>([&](auto j) GRISTMILL_LAMBDA {
        sink.set_u(constant<at + j>, _mm256_or_si256(low_nibbles(low[j]), move_bits<2 * k, 4>(high[j], 48)));
        sink.set_u(constant<at + 16 + j>, _mm256_or_si256(high_nibbles(low[j]), move_bits<4 + 2 * k, 4>(high[j], 48)));
      });
    });
    sink.set_scale(0, floats(d));
  }
};

template <>
struct PanelLayout<formats::Q2_K> : LayoutOf<formats::Q2_K, 3, true> {
  template <class Sink>
  GRISTMILL_INLINE static void unpack(const Rows& rows, Sink& sink) {
    RowFields<uint32_t> both;
    both.copy(rows, 80);
    __m256i codes[4];
    columns(rows, 0, codes);
    for_constants<16>([&](auto g) GRISTMILL_LAMBDA { sink.set_factor(g, byte_of(low_nibbles(codes[g / 4]), g % 4)); });
    for_constants<4>([&](auto i) GRISTMILL_LAMBDA {
      __m256i c[4];
      columns(rows, 16 + 16 * i, c);
      for_constants<16>([&](auto n) GRISTMILL_LAMBDA {
        constexpr int k = n / 4, j = n % 4;
        sink.set_u(constant<32 * (i / 2) + 8 * k + 4 * (i % 2) + j>, move_bits<2 * k, 0>(c[j], 3));
      });
    });
    const __m256i halves = load32(both.of);
    const __m256 dmin = _mm256_xor_ps(high_halves(halves), _mm256_set1_ps(-0.0f));
    sink.set_scale(0, low_halves(halves));
    for_constants<16>([&](auto g) GRISTMILL_LAMBDA {
      const __m256i code = byte_of(high_nibbles(codes[g / 4]), g % 4);
      sink.set_minimum(g, _mm256_mul_ps(_mm256_cvtepi32_ps(code), dmin));
    });
  }
};

template <>
struct PanelLayout<formats::Q3_K> : LayoutOf<formats::Q3_K, 4, true> {
  template <class Sink>
  GRISTMILL_INLINE static void unpack(const Rows& rows, Sink& sink) {
    __m256i w[4];
    columns(rows, 94, w);  // two bytes of weights, twelve of scales, d
    const auto word = [&](int i) GRISTMILL_LAMBDA {
      return _mm256_or_si256(_mm256_srli_epi32(w[i], 16), _mm256_slli_epi32(w[i + 1], 16));
    };
    const __m256i low[2] = {word(0), word(1)}, upper = word(2);
    for_constants<4>([&](auto i) GRISTMILL_LAMBDA {
      const __m256i nibbles = i < 2 ? low_nibbles(low[i % 2]) : high_nibbles(low[i % 2]);
      const __m256i codes = _mm256_or_si256(nibbles, move_bits<2 * i, 4>(upper, 48));
      for_constants<4>([&](auto j) GRISTMILL_LAMBDA {
        sink.set_factor(constant<4 * i + j>, _mm256_sub_epi32(byte_of(codes, j), _mm256_set1_epi32(32)));
      });
    });
    __m256i mask[2][4];
    columns(rows, 0, mask[0]);
    columns(rows, 16, mask[1]);
    for_constants<4>([&](auto i) GRISTMILL_LAMBDA {
      __m256i c[4];
      columns(rows, 32 + 16 * i, c);
      for_constants<16>([&](auto n) GRISTMILL_LAMBDA {
        constexpr int k = n / 4, j = n % 4, bit = 4 * (i / 2) + k;
        sink.set_u(constant<32 * (i / 2) + 8 * k + 4 * (i % 2) + j>,
                   _mm256_or_si256(move_bits<2 * k, 0>(c[j], 3), move_bits<bit, 2>(mask[i % 2][j], 4)));
      });
    });
    sink.set_scale(0, high_halves(w[3]));
  }
};

template <>
struct PanelLayout<formats::IQ4_XS> : LayoutOf<formats::IQ4_XS, 128, true> {
  template <class Sink>
  GRISTMILL_INLINE static void unpack(const Rows& rows, Sink& sink) {
    RowFields<uint32_t> first, low;
    first.copy(rows, 0);
    low.copy(rows, 4);
    const __m256i header = load32(first.of), codes = load32(low.of);
    for_constants<8>([&](auto g) GRISTMILL_LAMBDA {
      const __m256i l = _mm256_and_si256(_mm256_srli_epi32(codes, 4 * g), _mm256_set1_epi32(15));
      const __m256i h = _mm256_and_si256(_mm256_srli_epi32(header, 16 + 2 * g), _mm256_set1_epi32(3));
      sink.set_factor(g, _mm256_sub_epi32(_mm256_or_si256(l, _mm256_slli_epi32(h, 4)), _mm256_set1_epi32(32)));
    });
    for_constants<8>([&](auto g) GRISTMILL_LAMBDA { set_nibbles(rows, 8 + 16 * g, g, sink, as_iq4_levels); });
    sink.set_scale(0, low_halves(header));
  }
};

// ---- any piece of a matrix ----

// Weights [k0, k0 + n_k) of rows r, r + distance, ..., n_rows <= 8 of them, n_k <= 256. Where there are fewer, rows
// repeat the last and blocks are zero bytes, which are weights of scale zero.
template <class Layout, class Sink>
GRISTMILL_INLINE void unpack_piece(const Weight& w, int64_t r, int n_rows, int64_t distance, int64_t k0, int64_t n_k,
                                   Sink& sink) {
  using Format = typename Layout::Format;
  constexpr int kBytes = int(weight_bytes<Format>(kPieceK));
  const int64_t row_bytes = weight_bytes<Format>(w.n_cols);
  Rows rows(reinterpret_cast<const uint8_t*>(w.data) + r * row_bytes + weight_bytes<Format>(k0), distance * row_bytes);
  alignas(32) uint8_t copy[kPanelRows][kBytes];
  if (n_rows < kPanelRows || n_k < kPieceK) {
    const size_t n_bytes = size_t(weight_bytes<Format>(n_k));
    for (int i = 0; i < kPanelRows; ++i) {
      std::memcpy(copy[i], rows.at(std::min(i, n_rows - 1), 0), n_bytes);
      std::memset(copy[i] + n_bytes, 0, kBytes - n_bytes);
    }
    rows = Rows(copy[0], kBytes);
  }
  Layout::unpack(rows, sink);
  sink.finish();
}

}  // namespace
}  // namespace gristmill::cpu

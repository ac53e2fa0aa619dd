// The codes of a tile as A fragments of mma.m16n8k32, four registers of four bytes for a group of 32 columns.
#pragma once

#include "cuda/device/arithmetic.h"
#include "cuda/tile_layout.h"

namespace gristmill::cuda {

// How codes become numbers: w = scale * (code - zero) + min, as in csrc/formats.
template <TypeId id>
struct CodeTraits {
  static constexpr int kZero = id == TypeId::Q4_0   ? 8
                               : id == TypeId::Q5_0 ? 16
                               : id == TypeId::Q6_K ? 32
                               : id == TypeId::Q3_K ? 4
                                                    : 0;
  static constexpr bool kHasMin =
      id == TypeId::Q4_1 || id == TypeId::Q5_1 || id == TypeId::Q2_K || id == TypeId::Q4_K || id == TypeId::Q5_K;
  // Codes that are signed bytes: Q8_0's own, and the levels that stand for those of IQ4.
  static constexpr bool kLevels = id == TypeId::IQ4_NL || id == TypeId::IQ4_XS;
  static constexpr bool kSigned = id == TypeId::Q8_0 || kLevels;
  // Columns that share a scale.
  static constexpr int kGroup = id == TypeId::Q2_K || id == TypeId::Q3_K || id == TypeId::Q6_K ? 16 : 32;
};

// The levels of csrc/formats/iq4_codebook.h for four indices, one a byte.
DEVICE uint32_t iq4_levels(uint32_t indices) {
  // Their 16 bytes, four a word: -127 -104 -83 -65, -49 -35 -22 -10, 1 13 25 38, 53 69 89 113.
  constexpr uint32_t kLevels[4] = {0xbfad9881u, 0xf6eaddcfu, 0x26190d01u, 0x71594535u};
  const uint32_t pairs = indices | indices >> 4;
  const uint32_t selector = ((pairs & 0xffu) | (pairs >> 8 & 0xff00u)) & 0x7777u;
  const uint32_t low = permute_bytes(kLevels[0], kLevels[1], selector);
  const uint32_t high = permute_bytes(kLevels[2], kLevels[3], selector);
  const uint32_t is_high = (indices >> 3 & 0x01010101u) * 0xffu;
  return (high & is_high) | (low & ~is_high);
}

// What product_fragment() multiplies the codes of a group by: where nibbles are all of a code, the high ones need no
// shift if they count sixteenfold.
template <TypeId id>
HOST_DEVICE constexpr int code_factor(int group) {
  using T = Tile<id>;
  return T::kCode4 && !T::kCode2 && !T::kCode1 && !CodeTraits<id>::kLevels && group % 2 == 1 ? 16 : 1;
}

// Bits that begin at `from` of each byte, of which `mask` has them at `to`.
DEVICE uint32_t move_bits(uint32_t v, int from, int to, uint32_t mask) {
  return (to >= from ? v << (to - from) : v >> (from - to)) & mask;
}

// Reads the planes of one tile in shared memory. Groups are asked for in rising order, so that a plane's 16 bytes are
// loaded once for all groups that they hold.
template <TypeId id>
class TileCodes {
  using T = Tile<id>;
  using Traits = CodeTraits<id>;

 public:
  DEVICE TileCodes(const std::byte* tile, int lane) : lane_(tile + lane * 16) {
    if constexpr (T::kCode1) load(T::kCode1At, bits1_);
  }

  // group: a constant after unrolling.
  DEVICE void fragment(int group, uint32_t (&a)[4]) {
    if constexpr (T::kCode8) {
      load(T::kCode8At + group * 512, a);
    } else {
      if constexpr (T::kCode4)
        if (group % 2 == 0) load(T::kCode4At + group / 2 * 512, bits4_);
      if constexpr (T::kCode2)
        if (group % 4 == 0) load(T::kCode2At + group / 4 * 512, bits2_);
      constexpr int kTop = T::kCode4 ? 4 : 2;  // where the smaller of two planes' bits go
      UNROLL
      for (int i = 0; i < 4; ++i) {
        uint32_t code = 0;
        if constexpr (T::kCode4) code = move_bits(bits4_[i], 4 * (group % 2), 0, 0x0f0f0f0fu);
        if constexpr (T::kCode2 && T::kCode4) code |= move_bits(bits2_[i], 2 * (group % 4), kTop, 0x30303030u);
        if constexpr (T::kCode2 && !T::kCode4) code = move_bits(bits2_[i], 2 * (group % 4), 0, 0x03030303u);
        if constexpr (T::kCode1) code |= move_bits(bits1_[i], group, kTop, 0x01010101u << kTop);
        a[i] = Traits::kLevels ? iq4_levels(code) : code;
      }
    }
  }
  // The same, times code_factor(); of an odd group after the even one before it, whose bytes have its codes too.
  DEVICE void product_fragment(int group, uint32_t (&a)[4]) {
    if (code_factor<id>(group) == 1) return fragment(group, a);
    UNROLL
    for (int i = 0; i < 4; ++i) a[i] = bits4_[i] & 0xf0f0f0f0u;
  }

 private:
  DEVICE void load(int at, uint32_t (&to)[4]) const {
    const uint4 v = *reinterpret_cast<const uint4*>(lane_ + at);
    to[0] = v.x;
    to[1] = v.y;
    to[2] = v.z;
    to[3] = v.w;
  }

  const std::byte* lane_;
  uint32_t bits4_[4] = {}, bits2_[4] = {}, bits1_[4] = {};
};

}  // namespace gristmill::cuda

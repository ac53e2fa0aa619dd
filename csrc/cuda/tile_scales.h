// What scales the codes of one row of a tile, read once and then asked for by group (of 16 or 32 columns, as the format
// has it), which may be a constant or differ from lane to lane. The float32 operations are those of csrc/formats.
#pragma once

#include "cuda/device/arithmetic.h"
#include "cuda/tile_layout.h"

namespace gristmill::cuda {

struct GroupScale {
  float scale, min;
};

template <TypeId id>
struct TileScales;

// Words lie in registers, which have no variable index: what is left of this where i is a constant is one of them.
template <int n>
DEVICE uint32_t word_of(const uint32_t (&words)[n], int i) {
  uint32_t v = words[0];
  UNROLL
  for (int j = 1; j < n; ++j) v = i == j ? words[j] : v;
  return v;
}
template <int n>
DEVICE uint32_t byte_of(const uint32_t (&words)[n], int i) {
  return word_of(words, i / 4) >> 8 * (i % 4) & 0xffu;
}
template <int n>
DEVICE float half_of(const uint32_t (&words)[n], int i) {
  return f16_to_f32(uint16_t(word_of(words, i / 2) >> 16 * (i % 2)));
}
template <int n>
DEVICE void load_words(const std::byte* from, uint32_t (&to)[n]) {
  if constexpr (n % 4 == 0) {
    UNROLL
    for (int i = 0; i < n / 4; ++i) {
      const uint4 v = reinterpret_cast<const uint4*>(from)[i];
      to[4 * i] = v.x;
      to[4 * i + 1] = v.y;
      to[4 * i + 2] = v.z;
      to[4 * i + 3] = v.w;
    }
  } else {
    UNROLL
    for (int i = 0; i < n; ++i) to[i] = reinterpret_cast<const uint32_t*>(from)[i];
  }
}

// d for each 32.
template <TypeId id>
struct HalfScales {
  uint32_t words[4];
  DEVICE HalfScales(const std::byte* tile, int row) { load_words(tile + Tile<id>::side_at(0) + row * 16, words); }
  DEVICE GroupScale at(int group) const { return {half_of(words, group), 0.0f}; }
};
template <>
struct TileScales<TypeId::Q4_0> : HalfScales<TypeId::Q4_0> {
  using HalfScales::HalfScales;
};
template <>
struct TileScales<TypeId::Q5_0> : HalfScales<TypeId::Q5_0> {
  using HalfScales::HalfScales;
};
template <>
struct TileScales<TypeId::Q8_0> : HalfScales<TypeId::Q8_0> {
  using HalfScales::HalfScales;
};
template <>
struct TileScales<TypeId::IQ4_NL> : HalfScales<TypeId::IQ4_NL> {
  using HalfScales::HalfScales;
};

// d and m for each 32.
template <TypeId id>
struct HalfPairs {
  uint32_t words[8];
  DEVICE HalfPairs(const std::byte* tile, int row) { load_words(tile + Tile<id>::side_at(0) + row * 32, words); }
  DEVICE GroupScale at(int group) const { return {half_of(words, 2 * group), half_of(words, 2 * group + 1)}; }
};
template <>
struct TileScales<TypeId::Q4_1> : HalfPairs<TypeId::Q4_1> {
  using HalfPairs::HalfPairs;
};
template <>
struct TileScales<TypeId::Q5_1> : HalfPairs<TypeId::Q5_1> {
  using HalfPairs::HalfPairs;
};

// d, dmin and the twelve bytes of k_scales.h.
template <TypeId id>
struct KScales {
  uint32_t words[4];
  float d, dmin;
  DEVICE KScales(const std::byte* tile, int row) {
    load_words(tile + Tile<id>::side_at(0) + row * 16, words);
    d = half_of(words, 0);
    dmin = half_of(words, 1);
  }
  DEVICE GroupScale at(int group) const {
    const int j = group % 4;
    const uint32_t low = byte_of(words, 4 + j), mid = byte_of(words, 8 + j), high = byte_of(words, 12 + j);
    const uint32_t scale = group < 4 ? low & 63u : (high & 15u) | low >> 6 << 4;
    const uint32_t min = group < 4 ? mid & 63u : high >> 4 | mid >> 6 << 4;
    return {d * float(scale), -(dmin * float(min))};
  }
  // As at(2 pair) and at(2 pair + 1), both at once: pair may differ from lane to lane.
  DEVICE void pair(int pair, GroupScale (&of)[2]) const {
    const int shift = 16 * (pair % 2);
    const uint32_t low = words[1] >> shift, mid = words[2] >> shift, high = words[3] >> shift;
    const bool first = pair < 2;
    const uint32_t scale = first ? low & 0x3f3fu : (high & 0x0f0fu) | (low >> 2 & 0x3030u);
    const uint32_t min = first ? mid & 0x3f3fu : (high >> 4 & 0x0f0fu) | (mid >> 2 & 0x3030u);
    of[0] = {d * float(scale & 0xffu), -(dmin * float(min & 0xffu))};
    of[1] = {d * float(scale >> 8 & 0xffu), -(dmin * float(min >> 8 & 0xffu))};
  }
};
template <>
struct TileScales<TypeId::Q4_K> : KScales<TypeId::Q4_K> {
  using KScales::KScales;
};
template <>
struct TileScales<TypeId::Q5_K> : KScales<TypeId::Q5_K> {
  using KScales::KScales;
};

template <>
struct TileScales<TypeId::Q6_K> {
  uint32_t words[4];
  float d;
  DEVICE TileScales(const std::byte* tile, int row) {
    using T = Tile<TypeId::Q6_K>;
    load_words(tile + T::side_at(0) + row * 16, words);
    d = f16_to_f32(reinterpret_cast<const uint16_t*>(tile + T::side_at(1))[row]);
  }
  DEVICE GroupScale at(int group) const { return {d * float(int(int8_t(byte_of(words, group)))), 0.0f}; }
};

template <>
struct TileScales<TypeId::Q2_K> {
  uint32_t words[4];
  float d, dmin;
  DEVICE TileScales(const std::byte* tile, int row) {
    using T = Tile<TypeId::Q2_K>;
    load_words(tile + T::side_at(0) + row * 16, words);
    const uint32_t both[1] = {reinterpret_cast<const uint32_t*>(tile + T::side_at(1))[row]};
    d = half_of(both, 0);
    dmin = half_of(both, 1);
  }
  DEVICE GroupScale at(int group) const {
    const uint32_t byte = byte_of(words, group);
    return {d * float(byte & 15u), -(dmin * float(byte >> 4))};
  }
};

template <>
struct TileScales<TypeId::Q3_K> {
  uint32_t words[3];
  float d;
  DEVICE TileScales(const std::byte* tile, int row) {
    using T = Tile<TypeId::Q3_K>;
    load_words(tile + T::side_at(0) + row * 12, words);
    d = f16_to_f32(reinterpret_cast<const uint16_t*>(tile + T::side_at(1))[row]);
  }
  DEVICE GroupScale at(int group) const {
    const uint32_t low = byte_of(words, group % 8) >> 4 * (group / 8) & 15u;
    const uint32_t high = byte_of(words, 8 + group % 4) >> 2 * (group / 4) & 3u;
    return {d * float(int(low | high << 4) - 32), 0.0f};
  }
};

template <>
struct TileScales<TypeId::IQ4_XS> {
  uint32_t words[2];
  float d;
  DEVICE TileScales(const std::byte* tile, int row) {
    load_words(tile + Tile<TypeId::IQ4_XS>::side_at(0) + row * 8, words);
    d = half_of(words, 0);
  }
  DEVICE GroupScale at(int group) const {
    const uint32_t low = words[1] >> 4 * group & 15u, high = words[0] >> (16 + 2 * group) & 3u;
    return {d * float(int(low | high << 4) - 32), 0.0f};
  }
};

// Of the columns 64 pair to 64 pair + 63: two groups of 32 or four of 16.
template <TypeId id, int n>
DEVICE void pair_scales(const TileScales<id>& row, int pair, GroupScale (&of)[n]) {
  if constexpr (id == TypeId::Q4_K || id == TypeId::Q5_K) {
    row.pair(pair, of);
  } else {
    UNROLL
    for (int i = 0; i < n; ++i) of[i] = row.at(n * pair + i);
  }
}

}  // namespace gristmill::cuda

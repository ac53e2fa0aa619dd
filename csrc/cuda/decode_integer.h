// Sums of a row tile whose weights are quantized, for the lanes of one warp: int8 products of each group, exact, joined
// from the two planes as integers, then scaled in float32. What is summed in which order is the same for any number of
// tokens: a pair of neighbouring groups first, the four pairs of a tile as (0 + 1) + (2 + 3), then tile after tile.
//
// The tensor cores idle; what counts is how many instructions a weight takes. With g = lane / 4 and t = lane % 4:
//
//   1 token    the groups of pair j use columns 2 j and 2 j + 1 of B for the planes, the others being zeros, so that
//              the products of a tile end in one accumulator for even and one for odd groups, and lane (g, t) scales
//              only the groups of pair t
//   2 to 4     columns 2 p and 2 p + 1 are the planes of token p; lane (g, t) has both of token t
//   5 to 8     a product for each plane; lane (g, t) has tokens 2 t and 2 t + 1
//   9 to 32    the same for each eight tokens, the weights' codes and scales being unpacked once
#pragma once

#include "cuda/decode_work.h"
#include "cuda/device/mma.h"
#include "cuda/tile_codes.h"
#include "cuda/tile_scales.h"

namespace gristmill::cuda {

// One group of 32 columns (d[0]), or its halves (d[0], d[1]) where these are scaled apart: d += a b.
template <TypeId id, int kHalves>
DEVICE void multiply_group(int (&d)[kHalves][4], const uint32_t (&a)[4], const uint2& b) {
  if constexpr (kHalves == 2) {
    mma_u8_k16(d[0], a[0], a[1], b.x, d[0]);
    mma_u8_k16(d[1], a[2], a[3], b.y, d[1]);
  } else if constexpr (CodeTraits<id>::kSigned) {
    mma_s8_k32(d[0], a, b.x, b.y, d[0]);
  } else {
    mma_u8_k32(d[0], a, b.x, b.y, d[0]);
  }
}

// sum + what a group adds: hi and lo are products with the planes, codes the sum of the token's integers. The joined
// product stays below 2^28 in magnitude.
template <TypeId id>
DEVICE float add_group(int hi, int lo, int codes, float token_scale, const GroupScale& w, float sum) {
  using Traits = CodeTraits<id>;
  int product = 128 * hi + lo;
  if (Traits::kZero != 0) product -= Traits::kZero * codes;
  sum = fmaf(w.scale * token_scale, float(product), sum);
  if (Traits::kHasMin) sum = fmaf(w.min, token_scale * float(codes), sum);
  return sum;
}

template <TypeId id>
constexpr int kGroupHalves = CodeTraits<id>::kGroup == 16 ? 2 : 1;
template <TypeId id>
constexpr bool kReadsSums = CodeTraits<id>::kZero != 0 || CodeTraits<id>::kHasMin;

template <TypeId id, int kTokens>
class IntegerSums {
  static constexpr int kHalves = kGroupHalves<id>;
  static constexpr int kPlanes = kTokens >= 8 ? 2 : 1;   // products of a group
  static constexpr int kOwn = kTokens >= 8 ? 2 : 1;      // tokens of a lane in a block
  static constexpr int kInBlock = kTokens >= 8 ? 8 : 4;  // tokens of a block
  static constexpr int kBlocks = kTokens > 8 ? kTokens / 8 : 1;

 public:
  // What can be loaded before the tile is there.
  struct Inputs {
    int64_t column;
  };
  DEVICE static Inputs load(const DecodeWork&, int column_tile) { return {int64_t(column_tile) * kTileColumns}; }

  DEVICE void clear() {
    UNROLL
    for (int b = 0; b < kBlocks; ++b) {
      UNROLL
      for (int i = 0; i < 2 * kOwn; ++i) acc_[b][i] = 0.0f;
    }
  }

  DEVICE void add(const DecodeWork& work, const std::byte* tile, const Inputs& inputs) {
    const int lane = lane_id(), g = lane / 4, t = lane % 4;
    TileCodes<id> codes(tile, lane);
    const TileScales<id> low_row(tile, g), high_row(tile, g + 8);
    // A column of B is one plane of one token; planes of a token follow each other.
    const int8_t* planes = work.planes + int64_t(g) * kPlanes * work.padded + inputs.column + 8 * t;
    const float* scales = work.scales + (kOwn * t * work.padded + inputs.column) / 32;
    const int32_t* totals = work.sums + (kOwn * t * work.padded + inputs.column) / 16;
    float pairs[kBlocks][2 * kOwn], halves[kBlocks][2 * kOwn][2];  // of the tile: two pairs each
    UNROLL
    for (int group = 0; group < kTileColumns / 32; ++group) {
      uint32_t a[4];
      codes.fragment(group, a);
      GroupScale low[kHalves], high[kHalves];
      UNROLL
      for (int half = 0; half < kHalves; ++half) {
        low[half] = low_row.at(group * kHalves + half);
        high[half] = high_row.at(group * kHalves + half);
      }
      UNROLL
      for (int block = 0; block < kBlocks; ++block) {
        const int first = block * 8;
        if (kBlocks > 1 && first >= work.n) break;
        const bool has_column = kTokens == 4 ? g < 2 * work.n : first + g < work.n;
        int d[kPlanes][kHalves][4] = {};
        UNROLL
        for (int p = 0; p < kPlanes; ++p) {
          const int8_t* from = planes + (int64_t(first) * 2 + p) * work.padded + 32 * group;
          multiply_group<id>(d[p], a, has_column ? *reinterpret_cast<const uint2*>(from) : uint2{0u, 0u});
        }
        UNROLL
        for (int own = 0; own < kOwn; ++own) {
          const bool has_token = first + kOwn * t + own < work.n;
          const float scale = has_token ? scales[(first + own) * (work.padded / 32) + group] : 0.0f;
          int2 total{0, 0};
          if (kReadsSums<id> && has_token)
            total = *reinterpret_cast<const int2*>(totals + (first + own) * (work.padded / 16) + 2 * group);
          UNROLL
          for (int row = 0; row < 2; ++row) {
            float& sum = pairs[block][row * kOwn + own];
            if (group % 2 == 0) sum = 0.0f;
            UNROLL
            for (int half = 0; half < kHalves; ++half) {
              // With one product the planes are neighbouring columns, else they have the lane's tokens side by side.
              const int hi = kPlanes == 1 ? d[0][half][2 * row] : d[0][half][2 * row + own];
              const int lo = kPlanes == 1 ? d[0][half][2 * row + 1] : d[kPlanes - 1][half][2 * row + own];
              const int integers = kHalves == 1 ? total.x + total.y : half == 0 ? total.x : total.y;
              sum = add_group<id>(hi, lo, integers, scale, row == 0 ? low[half] : high[half], sum);
            }
          }
        }
        if (group % 2 == 0) continue;
        UNROLL
        for (int i = 0; i < 2 * kOwn; ++i) {
          float& half = halves[block][i][group / 4];
          half = group % 4 == 1 ? pairs[block][i] : half + pairs[block][i];
          if (group == 7) acc_[block][i] += halves[block][i][0] + halves[block][i][1];
        }
      }
    }
  }

  // f(row, token, sum) for what this lane has. All lanes of the warp call it.
  template <class F>
  DEVICE void take(F&& f) const {
    const int g = lane_id() / 4, t = lane_id() % 4;
    UNROLL
    for (int b = 0; b < kBlocks; ++b) {
      UNROLL
      for (int i = 0; i < 2 * kOwn; ++i) f(g + 8 * (i / kOwn), b * kInBlock + kOwn * t + i % kOwn, acc_[b][i]);
    }
  }

 private:
  float acc_[kBlocks][2 * kOwn];  // [eight tokens][row g, g + 8][own tokens]
};

// One token.
template <TypeId id>
class IntegerSums<id, 1> {
  static constexpr int kHalves = kGroupHalves<id>;

 public:
  struct Inputs {
    uint2 b[2];    // of the groups of pair g / 2, plane g % 2
    float2 scale;  // of the groups of pair t
    int4 totals;
  };
  DEVICE static Inputs load(const DecodeWork& work, int column_tile) {
    const int g = lane_id() / 4, t = lane_id() % 4;
    const int64_t column = int64_t(column_tile) * kTileColumns;
    const int8_t* plane = work.planes + g % 2 * work.padded + column + g / 2 * 64 + 8 * t;
    Inputs in{{*reinterpret_cast<const uint2*>(plane), *reinterpret_cast<const uint2*>(plane + 32)},
              *reinterpret_cast<const float2*>(work.scales + column / 32 + 2 * t),
              {0, 0, 0, 0}};
    if (kReadsSums<id>) in.totals = *reinterpret_cast<const int4*>(work.sums + column / 16 + 4 * t);
    return in;
  }

  DEVICE void clear() { acc_[0] = acc_[1] = 0.0f; }

  DEVICE void add(const DecodeWork&, const std::byte* tile, const Inputs& in) {
    const int lane = lane_id(), g = lane / 4, t = lane % 4;
    TileCodes<id> codes(tile, lane);
    int d[2][kHalves][4] = {};
    UNROLL
    for (int group = 0; group < kTileColumns / 32; ++group) {
      uint32_t a[4];
      codes.fragment(group, a);
      const bool mine = g / 2 == group / 2;
      const uint2 b = in.b[group % 2];
      multiply_group<id>(d[group % 2], a, uint2{mine ? b.x : 0u, mine ? b.y : 0u});
    }
    UNROLL
    for (int row = 0; row < 2; ++row) {
      GroupScale w[2 * kHalves];
      pair_scales<id>(TileScales<id>(tile, g + 8 * row), t, w);
      float sum = 0.0f;
      UNROLL
      for (int odd = 0; odd < 2; ++odd) {
        const int first = odd == 0 ? in.totals.x : in.totals.z, second = odd == 0 ? in.totals.y : in.totals.w;
        UNROLL
        for (int half = 0; half < kHalves; ++half) {
          const int integers = kHalves == 1 ? first + second : half == 0 ? first : second;
          sum = add_group<id>(d[odd][half][2 * row], d[odd][half][2 * row + 1], integers,
                              odd == 0 ? in.scale.x : in.scale.y, w[odd * kHalves + half], sum);
        }
      }
      sum += shuffle_xor(sum, 1);
      sum += shuffle_xor(sum, 2);
      acc_[row] += sum;
    }
  }

  template <class F>
  DEVICE void take(F&& f) const {
    if (lane_id() % 4 != 0) return;
    f(lane_id() / 4, 0, acc_[0]);
    f(lane_id() / 4 + 8, 0, acc_[1]);
  }

 private:
  float acc_[2];  // row g, g + 8
};

}  // namespace gristmill::cuda

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

// sum + what a group adds: hi and lo are products with the planes, codes the sum of the token's integers, factor that
// of the weights' codes. The joined product stays below 2^28 in magnitude; where the factor is 16 its low four bits are
// zeros, so that neither it nor the scale's sixteenth loses any bit.
template <TypeId id>
DEVICE float add_group(int hi, int lo, int codes, float token_scale, const GroupScale& w, int factor, float sum) {
  using Traits = CodeTraits<id>;
  int product = 128 * hi + lo;
  if (Traits::kZero != 0) product -= Traits::kZero * factor * codes;
  sum = fmaf(w.scale * (1.0f / float(factor)) * token_scale, float(product), sum);
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
  // Where the lane's activations of a column tile lie, of the first block. Tokens that it has not have the last one's:
  // their sums go nowhere, and loads need no condition. Blocks of eight
  // tokens behind the first check that the token is there.
  struct Inputs {
    const int8_t* planes;  // column g of B is one plane of one token; planes of a token follow each other
    const float* scales[kOwn];
    const int32_t* totals[kOwn];
  };
  class Cursor {
   public:
    DEVICE Cursor(const DecodeWork& work, int column_tile) {
      const int g = lane_id() / 4, t = lane_id() % 4;
      const int64_t column = int64_t(column_tile) * kTileColumns;
      const int plane = kPlanes == 2 ? 2 * token_of(work, g) : 2 * token_of(work, g / 2) + g % 2;
      at_.planes = work.planes + plane * work.padded + column + 8 * t;
      UNROLL
      for (int own = 0; own < kOwn; ++own) {
        const int64_t first = token_of(work, kOwn * t + own) * work.padded + column;
        at_.scales[own] = work.scales + first / 32;
        at_.totals[own] = work.sums + first / 16;
      }
    }
    // Of this column tile; then the cursor is at the next one.
    DEVICE Inputs next() {
      const Inputs at = at_;
      at_.planes += kTileColumns;
      UNROLL
      for (int own = 0; own < kOwn; ++own) {
        at_.scales[own] += kTileColumns / 32;
        at_.totals[own] += kTileColumns / 16;
      }
      return at;
    }

   private:
    DEVICE static int token_of(const DecodeWork& work, int i) { return i < work.n ? i : work.n - 1; }
    Inputs at_;
  };

  DEVICE void clear() {
    UNROLL
    for (int b = 0; b < kBlocks; ++b) {
      UNROLL
      for (int i = 0; i < 2 * kOwn; ++i) acc_[b][i] = 0.0f;
    }
  }

  DEVICE void add(const DecodeWork& work, const std::byte* tile, const Inputs& inputs) {
    const int lane = lane_id(), g = lane / 4;
    [[maybe_unused]] const int t = lane % 4;
    TileCodes<id> codes(tile, lane);
    const TileScales<id> low_row(tile, g), high_row(tile, g + 8);
    LaneActivations ahead[kOwn];
    float pairs[kBlocks][2 * kOwn], halves[kBlocks][2 * kOwn][2];  // of two pairs each
    UNROLL
    for (int group = 0; group < kTileColumns / 32; ++group) {
      uint32_t a[4];
      codes.product_fragment(group, a);
      GroupScale low[kHalves], high[kHalves];
      UNROLL
      for (int half = 0; half < kHalves; ++half) {
        low[half] = low_row.at(group * kHalves + half);
        high[half] = high_row.at(group * kHalves + half);
      }
      UNROLL
      for (int block = 0; block < kBlocks; ++block) {
        const int first = block * kInBlock;
        if (first > 0 && first >= work.n) break;
        int d[kPlanes][kHalves][4] = {};
        UNROLL
        for (int p = 0; p < kPlanes; ++p) {
          const int8_t* from = inputs.planes + (int64_t(first) * 2 + p) * work.padded + 32 * group;
          const bool there = first == 0 || first + g < work.n;
          multiply_group<id>(d[p], a, there ? *reinterpret_cast<const uint2*>(from) : uint2{0u, 0u});
        }
        UNROLL
        for (int own = 0; own < kOwn; ++own) {
          float scale = 0.0f;
          int2 total{0, 0};
          if constexpr (kBlocks == 1) {
            ahead[own].load(inputs, own, group);
            scale = ahead[own].scales[group % 4];
            total = ahead[own].totals[group % 2];
          } else if (first == 0 || first + kOwn * t + own < work.n) {
            scale = inputs.scales[own][first * (work.padded / 32) + group];
            const int32_t* from = inputs.totals[own] + first * (work.padded / 16) + 2 * group;
            if (kReadsSums<id>) total = *reinterpret_cast<const int2*>(from);
          }
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
              sum = add_group<id>(hi, lo, integers, scale, row == 0 ? low[half] : high[half], code_factor<id>(group),
                                  sum);
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
  // What one of the lane's tokens has for the group at hand, read for four groups (two of the sums) at a time.
  struct LaneActivations {
    float scales[4] = {};
    int2 totals[2] = {};

    DEVICE void load(const Inputs& inputs, int own, int group) {
      if (group % 4 == 0) {
        const float4 v = *reinterpret_cast<const float4*>(inputs.scales[own] + group);
        scales[0] = v.x;
        scales[1] = v.y;
        scales[2] = v.z;
        scales[3] = v.w;
      }
      if (kReadsSums<id> && group % 2 == 0) {
        const int4 v = *reinterpret_cast<const int4*>(inputs.totals[own] + 2 * group);
        totals[0] = {v.x, v.y};
        totals[1] = {v.z, v.w};
      }
    }
  };

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
  class Cursor {
   public:
    DEVICE Cursor(const DecodeWork& work, int column_tile) {
      const int g = lane_id() / 4, t = lane_id() % 4;
      const int64_t column = int64_t(column_tile) * kTileColumns;
      plane_ = work.planes + g % 2 * work.padded + column + g / 2 * 64 + 8 * t;
      scales_ = work.scales + column / 32 + 2 * t;
      sums_ = work.sums + column / 16 + 4 * t;
    }
    // Loads what belongs to this column tile; then the cursor is at the next one.
    DEVICE Inputs next() {
      Inputs in{{*reinterpret_cast<const uint2*>(plane_), *reinterpret_cast<const uint2*>(plane_ + 32)},
                *reinterpret_cast<const float2*>(scales_),
                {0, 0, 0, 0}};
      if (kReadsSums<id>) in.totals = *reinterpret_cast<const int4*>(sums_);
      plane_ += kTileColumns;
      scales_ += kTileColumns / 32;
      sums_ += kTileColumns / 16;
      return in;
    }

   private:
    const int8_t* plane_;
    const float* scales_;
    const int32_t* sums_;
  };

  DEVICE void clear() { acc_[0] = acc_[1] = 0.0f; }

  DEVICE void add(const DecodeWork&, const std::byte* tile, const Inputs& in) {
    const int lane = lane_id(), g = lane / 4, t = lane % 4;
    TileCodes<id> codes(tile, lane);
    int d[2][kHalves][4] = {};
    UNROLL
    for (int group = 0; group < kTileColumns / 32; ++group) {
      uint32_t a[4];
      codes.product_fragment(group, a);
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
                              odd == 0 ? in.scale.x : in.scale.y, w[odd * kHalves + half], code_factor<id>(odd), sum);
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

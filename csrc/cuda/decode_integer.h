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

#include "cuda/decode_staging.h"
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

// sum + what a group adds: hi and lo are products with the planes, codes the sum of the token's integers, token its
// scale and that times the sum of the 32 (activations.h), factor that of the weights' codes. The joined product stays
// below 2^28 in magnitude; where the factor is 16 its low four bits are zeros, so that neither it nor the scale's
// sixteenth loses any bit.
template <TypeId id>
DEVICE float add_group(int hi, int lo, int codes, float2 token, const GroupScale& w, int factor, float sum) {
  using Traits = CodeTraits<id>;
  int product = 128 * hi + lo;
  if (Traits::kZero != 0) product -= Traits::kZero * factor * codes;
  sum = fmaf(w.scale * (1.0f / float(factor)) * token.x, float(product), sum);
  if (Traits::kHasMin) sum = fmaf(w.min, Traits::kGroup == 32 ? token.y : token.x * float(codes), sum);
  return sum;
}

template <TypeId id>
constexpr int kGroupHalves = CodeTraits<id>::kGroup == 16 ? 2 : 1;
template <TypeId id>
constexpr bool kReadsSums = CodeTraits<id>::kZero != 0 || (CodeTraits<id>::kHasMin && CodeTraits<id>::kGroup == 16);

// Rows: where activations lie, GlobalRows or StagedRows.
template <TypeId id, int kTokens, class Rows = GlobalRows>
class IntegerSums {
  static constexpr int kHalves = kGroupHalves<id>;
  static constexpr int kPlanes = kTokens >= 8 ? 2 : 1;   // products of a group
  static constexpr int kOwn = kTokens >= 8 ? 2 : 1;      // tokens of a lane in a block
  static constexpr int kInBlock = kTokens >= 8 ? 8 : 4;  // tokens of a block
  static constexpr int kBlocks = kTokens > 8 ? kTokens / 8 : 1;

 public:
  // Where the lane's activations of a column tile lie, of the first block. Tokens that it has not have the last one's:
  // their sums go nowhere, and loads need no condition. From global memory, blocks of eight tokens behind the first
  // check that the token is there.
  struct Inputs {
    const int8_t* planes;  // column g of B is one plane of one token; planes of a token follow each other
    const float* scales[kOwn];
    const int32_t* totals[kOwn];
  };
  // Of activations whose first column tile lies there.
  DEVICE static Inputs inputs_at(const DecodeWork& work, const int8_t* planes, const float* scales,
                                 const int32_t* sums) {
    const int g = lane_id() / 4, t = lane_id() % 4;
    const int plane = kPlanes == 2 ? 2 * token_of(work, g) : 2 * token_of(work, g / 2) + g % 2;
    Inputs at{planes + plane * Rows::plane(work) + 8 * t, {}, {}};
    UNROLL
    for (int own = 0; own < kOwn; ++own) {
      const int token = token_of(work, kOwn * t + own);
      at.scales[own] = scales + token * Rows::scales(work);
      at.totals[own] = sums + token * Rows::sums(work);
    }
    return at;
  }
  class Cursor {
   public:
    DEVICE Cursor(const DecodeWork& work, int column_tile) {
      const int64_t column = int64_t(column_tile) * kTileColumns;
      at_ = inputs_at(work, work.planes + column, work.scales + column / 16, work.sums + column / 16);
    }
    // Of this column tile; then the cursor is at the next one.
    DEVICE Inputs next() {
      const Inputs at = at_;
      at_.planes += kTileColumns;
      UNROLL
      for (int own = 0; own < kOwn; ++own) {
        at_.scales[own] += kTileColumns / 16;
        at_.totals[own] += kTileColumns / 16;
      }
      return at;
    }

   private:
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
    TileCodes<id> codes(tile, lane);
    const TileScales<id> low_row(tile, g), high_row(tile, g + 8);
    LaneActivations ahead[kOwn];
    float halves[2][kBlocks][2 * kOwn];  // of two pairs each
    UNROLL
    for (int pair = 0; pair < kGroups / 2; ++pair) {
      // Their weights stay in registers, and blocks of tokens take turns with them.
      GroupWeights w[2];
      UNROLL
      for (int odd = 0; odd < 2; ++odd) {
        const int group = 2 * pair + odd;
        codes.product_fragment(group, w[odd].a);
        UNROLL
        for (int half = 0; half < kHalves; ++half) {
          w[odd].scales[0][half] = low_row.at(group * kHalves + half);
          w[odd].scales[1][half] = high_row.at(group * kHalves + half);
        }
      }
      UNROLL
      for (int block = 0; block < kBlocks; ++block) {
        if (block > 0 && block * kInBlock >= work.n) break;
        float sums[2 * kOwn];
        multiply_pair(work, inputs, block, pair, w, ahead, sums);
        UNROLL
        for (int i = 0; i < 2 * kOwn; ++i) {
          float& half = halves[pair / 2][block][i];
          half = pair % 2 == 0 ? sums[i] : half + sums[i];
          if (pair == 3) acc_[block][i] += halves[0][block][i] + halves[1][block][i];
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
  static constexpr int kGroups = kTileColumns / 32;
  // Of a group of 32 columns: codes as an A fragment, scales of rows g and g + 8.
  struct GroupWeights {
    uint32_t a[4];
    GroupScale scales[2][kHalves];
  };

  // What one of the lane's tokens has for the group at hand, read for several groups (two of the sums) at a time.
  struct LaneActivations {
    static constexpr int kAhead = kBlocks == 1 ? 4 : 2;
    float2 scales[kAhead] = {};
    int2 totals[2] = {};

    DEVICE void load(const float* of_groups, const int32_t* of_halves, int group) {
      if (group % kAhead == 0) {
        UNROLL
        for (int i = 0; i < kAhead; i += 2) {
          const float4 v = *reinterpret_cast<const float4*>(of_groups + 2 * (group + i));
          scales[i] = {v.x, v.y};
          scales[i + 1] = {v.z, v.w};
        }
      }
      if (kReadsSums<id> && group % 2 == 0) {
        const int4 v = *reinterpret_cast<const int4*>(of_halves + 2 * group);
        totals[0] = {v.x, v.y};
        totals[1] = {v.z, v.w};
      }
    }
  };

  // The sums of a pair of groups for a block of tokens.
  DEVICE void multiply_pair(const DecodeWork& work, const Inputs& inputs, int block, int pair,
                            const GroupWeights (&w)[2], LaneActivations (&ahead)[kOwn], float (&sums)[2 * kOwn]) {
    const int g = lane_id() / 4, t = lane_id() % 4, first = block * kInBlock;
    UNROLL
    for (int i = 0; i < 2 * kOwn; ++i) sums[i] = 0.0f;
    UNROLL
    for (int odd = 0; odd < 2; ++odd) {
      const int group = 2 * pair + odd;
      int d[kPlanes][kHalves][4] = {};
      UNROLL
      for (int p = 0; p < kPlanes; ++p) {
        const int8_t* from = inputs.planes + (first * 2 + p) * Rows::plane(work) + 32 * group;
        const bool there = first == 0 || Rows::kWholeBlocks || first + g < work.n;
        multiply_group<id>(d[p], w[odd].a, there ? *reinterpret_cast<const uint2*>(from) : uint2{0u, 0u});
      }
      UNROLL
      for (int own = 0; own < kOwn; ++own) {
        if (first == 0 || Rows::kWholeBlocks || first + kOwn * t + own < work.n)
          ahead[own].load(inputs.scales[own] + first * Rows::scales(work),
                          inputs.totals[own] + first * Rows::sums(work), group);
        const float2 scale = ahead[own].scales[group % LaneActivations::kAhead];
        const int2 total = ahead[own].totals[odd];
        UNROLL
        for (int row = 0; row < 2; ++row) {
          float& sum = sums[row * kOwn + own];
          UNROLL
          for (int half = 0; half < kHalves; ++half) {
            // With one product the planes are neighbouring columns, else they have the lane's tokens side by side.
            const int hi = kPlanes == 1 ? d[0][half][2 * row] : d[0][half][2 * row + own];
            const int lo = kPlanes == 1 ? d[0][half][2 * row + 1] : d[kPlanes - 1][half][2 * row + own];
            const int integers = kHalves == 1 ? total.x + total.y : half == 0 ? total.x : total.y;
            sum = add_group<id>(hi, lo, integers, scale, w[odd].scales[row][half], code_factor<id>(group), sum);
          }
        }
      }
    }
  }

  DEVICE static int token_of(const DecodeWork& work, int i) {
    return Rows::kWholeBlocks || i < work.n ? i : work.n - 1;
  }

  float acc_[kBlocks][2 * kOwn];  // [eight tokens][row g, g + 8][own tokens]
};

// One token.
template <TypeId id>
class IntegerSums<id, 1, GlobalRows> {
  static constexpr int kHalves = kGroupHalves<id>;

 public:
  struct Inputs {
    uint2 b[2];    // of the groups of pair g / 2, plane g % 2
    float4 scale;  // of the groups of pair t
    int4 totals;
  };
  class Cursor {
   public:
    DEVICE Cursor(const DecodeWork& work, int column_tile) {
      const int g = lane_id() / 4, t = lane_id() % 4;
      const int64_t column = int64_t(column_tile) * kTileColumns;
      plane_ = work.planes + g % 2 * work.padded + column + g / 2 * 64 + 8 * t;
      scales_ = work.scales + column / 16 + 4 * t;
      sums_ = work.sums + column / 16 + 4 * t;
    }
    // Loads what belongs to this column tile; then the cursor is at the next one.
    DEVICE Inputs next() {
      Inputs in{{*reinterpret_cast<const uint2*>(plane_), *reinterpret_cast<const uint2*>(plane_ + 32)},
                *reinterpret_cast<const float4*>(scales_),
                {0, 0, 0, 0}};
      if (kReadsSums<id>) in.totals = *reinterpret_cast<const int4*>(sums_);
      plane_ += kTileColumns;
      scales_ += kTileColumns / 16;
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
                              odd == 0 ? float2{in.scale.x, in.scale.y} : float2{in.scale.z, in.scale.w},
                              w[odd * kHalves + half], code_factor<id>(odd), sum);
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

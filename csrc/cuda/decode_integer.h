// Sums of a row tile whose weights are quantized, for the lanes of one warp: int8 products of each group, exact, joined
// from the two planes as integers, then scaled in float32 in order of columns.
#pragma once

#include "cuda/decode_work.h"
#include "cuda/device/mma.h"
#include "cuda/tile_codes.h"
#include "cuda/tile_scales.h"

namespace gristmill::cuda {

template <TypeId id>
struct IntegerSums {
  using Traits = CodeTraits<id>;

  // kTokens 4: column 2p of B is the hi plane of token p, column 2p + 1 its lo plane, so that one product serves both
  // and lane 4 g + t has both sums of token t for rows g and g + 8. kTokens 8: a product for each plane; the lane has
  // tokens 2t and 2t + 1. The float32 operations on a token are the same in both.
  template <int kTokens>
  class Of {
    static constexpr int kOwn = kTokens / 4;  // tokens of a lane

   public:
    DEVICE void clear() {
      UNROLL
      for (int i = 0; i < 2 * kOwn; ++i) acc_[i] = 0.0f;
    }

    DEVICE void add(const DecodeWork& work, const std::byte* tile, int column_tile) {
      const int lane = lane_id(), g = lane / 4, t = lane % 4;
      TileCodes<id> codes(tile, lane);
      const TileScales<id> low_row(tile, g), high_row(tile, g + 8);
      const int64_t column = int64_t(column_tile) * kTileColumns;
      // A column of B is one plane of one token; planes of a token follow each other.
      constexpr int kPlanes = kTokens == 4 ? 1 : 2;
      const int8_t* planes[kPlanes];
      const bool has_column = kTokens == 4 ? g < 2 * work.n : g < work.n;
      UNROLL
      for (int p = 0; p < kPlanes; ++p)
        planes[p] = work.planes + (int64_t(g) * kPlanes + p) * work.padded + column + 8 * t;
      const float* scales[kOwn];
      const int32_t* totals[kOwn];
      bool has_token[kOwn];
      UNROLL
      for (int i = 0; i < kOwn; ++i) {
        const int token = kOwn * t + i;
        has_token[i] = token < work.n;
        scales[i] = work.scales + (token * work.padded + column) / 32;
        totals[i] = work.sums + (token * work.padded + column) / 16;
      }
      UNROLL
      for (int group = 0; group < kTileColumns / 32; ++group) {
        uint32_t a[4];
        codes.fragment(group, a);
        uint2 b[kPlanes];
        UNROLL
        for (int p = 0; p < kPlanes; ++p)
          b[p] = has_column ? *reinterpret_cast<const uint2*>(planes[p] + 32 * group) : uint2{0u, 0u};
        float scale[kOwn];
        int2 total[kOwn];
        UNROLL
        for (int i = 0; i < kOwn; ++i) {
          scale[i] = has_token[i] ? scales[i][group] : 0.0f;
          total[i] = int2{0, 0};
          if ((Traits::kZero != 0 || Traits::kHasMin) && has_token[i])
            total[i] = *reinterpret_cast<const int2*>(totals[i] + 2 * group);
        }
        if constexpr (Traits::kGroup == 32) {
          int d[kPlanes][4];
          UNROLL
          for (int p = 0; p < kPlanes; ++p) multiply32(d[p], a, b[p]);
          int sum[kOwn];
          UNROLL
          for (int i = 0; i < kOwn; ++i) sum[i] = total[i].x + total[i].y;
          scale_group(d, sum, scale, low_row.at(group), high_row.at(group));
        } else {
          UNROLL
          for (int half = 0; half < 2; ++half) {
            int d[kPlanes][4];
            UNROLL
            for (int p = 0; p < kPlanes; ++p) {
              const int zero[4] = {0, 0, 0, 0};
              mma_u8_k16(d[p], a[2 * half], a[2 * half + 1], half == 0 ? b[p].x : b[p].y, zero);
            }
            int sum[kOwn];
            UNROLL
            for (int i = 0; i < kOwn; ++i) sum[i] = half == 0 ? total[i].x : total[i].y;
            scale_group(d, sum, scale, low_row.at(2 * group + half), high_row.at(2 * group + half));
          }
        }
      }
    }

    // f(row, token, sum) for what this lane has. All lanes of the warp call it.
    template <class F>
    DEVICE void take(F&& f) const {
      const int g = lane_id() / 4, t = lane_id() % 4;
      UNROLL
      for (int i = 0; i < 2 * kOwn; ++i) f(g + 8 * (i / kOwn), kOwn * t + i % kOwn, acc_[i]);
    }

   private:
    DEVICE static void multiply32(int (&d)[4], const uint32_t (&a)[4], const uint2& b) {
      const int zero[4] = {0, 0, 0, 0};
      if constexpr (Traits::kSigned) {
        mma_s8_k32(d, a, b.x, b.y, zero);
      } else {
        mma_u8_k32(d, a, b.x, b.y, zero);
      }
    }

    // sum: of the token's integers over the group.
    template <int kPlanes>
    DEVICE void scale_group(const int (&d)[kPlanes][4], const int (&sum)[kOwn], const float (&scale)[kOwn],
                            const GroupScale& low_row, const GroupScale& high_row) {
      UNROLL
      for (int i = 0; i < 2 * kOwn; ++i) {
        const int token = i % kOwn;
        const GroupScale& w = i / kOwn == 0 ? low_row : high_row;
        // Below 2^28 in magnitude.
        int product =
            kTokens == 4 ? 128 * d[0][2 * (i / kOwn)] + d[0][2 * (i / kOwn) + 1] : 128 * d[0][i] + d[kPlanes - 1][i];
        if (Traits::kZero != 0) product -= Traits::kZero * sum[token];
        acc_[i] = fmaf(w.scale * scale[token], float(product), acc_[i]);
        if (Traits::kHasMin) acc_[i] = fmaf(w.min, scale[token] * float(sum[token]), acc_[i]);
      }
    }

    float acc_[2 * kOwn];  // [row g, g + 8][own tokens]
  };
};

}  // namespace gristmill::cuda

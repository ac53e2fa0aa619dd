// Sums of a row tile whose weights are floats, for the lanes of one warp, in float32: weights are exact and activations
// as they are. Lane 4 g + t has rows g and g + 8 of the columns that its bytes of the tile hold.
#pragma once

#include "cuda/decode_work.h"
#include "cuda/device/arithmetic.h"
#include "cuda/device/warp.h"
#include "cuda/tile_layout.h"

namespace gristmill::cuda {

template <TypeId id, int kTokens>
class FloatSums {
  static constexpr bool kF32 = id == TypeId::F32;
  // Columns a lane has of a step of 16: two pairs, 8 apart, of halves; four in a row of F32.
  static constexpr int kStep = 16;

 public:
  struct Inputs {
    int column_tile;
  };
  class Cursor {
   public:
    DEVICE Cursor(const DecodeWork&, int column_tile) : column_tile_(column_tile) {}
    DEVICE Inputs next() { return {column_tile_++}; }

   private:
    int column_tile_;
  };

  DEVICE void clear() {
    UNROLL
    for (int i = 0; i < 2 * kTokens; ++i) acc_[i] = 0.0f;
  }

  DEVICE void add(const DecodeWork& work, const std::byte* tile, const Inputs& inputs) {
    const int64_t column = int64_t(inputs.column_tile) * kTileColumns;
    if (column + kTileColumns <= work.n_cols && work.n_cols % 4 == 0) {
      // Several steps' loads are under way together.
      constexpr int kAtOnce = kTokens == 1 ? 4 : kTokens <= 4 ? 2 : 1;
      for (int step = 0; step < kTileColumns / kStep; step += kAtOnce) {
        UNROLL
        for (int i = 0; i < kAtOnce; ++i) add_step<true>(work, tile, column, step + i);
      }
    } else {
      const int n_steps = int((work.n_cols - column + kStep - 1) / kStep);
      for (int step = 0; step < (n_steps < kTileColumns / kStep ? n_steps : kTileColumns / kStep); ++step)
        add_step<false>(work, tile, column, step);
    }
  }

  template <class F>
  DEVICE void take(F&& f) const {
    const int g = lane_id() / 4, t = lane_id() % 4;
    UNROLL
    for (int i = 0; i < 2 * kTokens; ++i) {
      float sum = acc_[i];
      sum += shuffle_xor(sum, 1);
      sum += shuffle_xor(sum, 2);
      if (i % 4 == t) f(g + 8 * (i / kTokens), i % kTokens, sum);
    }
  }

 private:
  // whole: the tile has no column beyond the matrix, and rows of activations are aligned.
  template <bool whole>
  DEVICE void add_step(const DecodeWork& work, const std::byte* tile, int64_t column, int step) {
    const int lane = lane_id(), g = lane / 4, t = lane % 4;
    float w[2][4];
    load_weights(tile, g, t, lane, step, w);
    const int64_t at = column + step * kStep + (kF32 ? 4 * t : 2 * t);
    UNROLL
    for (int token = 0; token < kTokens; ++token) {
      if (token > 0 && token >= work.n) break;
      float x[4];
      load_activations<whole>(work.floats + token * work.n_cols, at, work.n_cols, x);
      UNROLL
      for (int row = 0; row < 2; ++row) {
        float& acc = acc_[row * kTokens + token];
        UNROLL
        for (int j = 0; j < 4; ++j) acc = fmaf(w[row][j], x[j], acc);
      }
    }
  }

  DEVICE static void load_weights(const std::byte* tile, int g, int t, int lane, int step, float (&w)[2][4]) {
    if constexpr (kF32) {
      UNROLL
      for (int row = 0; row < 2; ++row) {
        const float4 v =
            *reinterpret_cast<const float4*>(tile + ((g + 8 * row) * kTileColumns + step * 16 + 4 * t) * 4);
        w[row][0] = v.x;
        w[row][1] = v.y;
        w[row][2] = v.z;
        w[row][3] = v.w;
      }
    } else {
      const uint4 v = *reinterpret_cast<const uint4*>(tile + step * 512 + lane * 16);
      const uint32_t words[4] = {v.x, v.y, v.z, v.w};
      UNROLL
      for (int i = 0; i < 4; ++i) {
        UNROLL
        for (int j = 0; j < 2; ++j) {
          const uint16_t half = uint16_t(words[i] >> 16 * j);
          w[i % 2][2 * (i / 2) + j] = id == TypeId::F16 ? f16_to_f32(half) : bf16_to_f32(half);
        }
      }
    }
  }

  template <bool whole>
  DEVICE static void load_activations(const float* x, int64_t at, int64_t n_cols, float (&v)[4]) {
    if constexpr (whole) {
      if constexpr (kF32) {
        const float4 a = *reinterpret_cast<const float4*>(x + at);
        v[0] = a.x;
        v[1] = a.y;
        v[2] = a.z;
        v[3] = a.w;
      } else {
        const float2 a = *reinterpret_cast<const float2*>(x + at), b = *reinterpret_cast<const float2*>(x + at + 8);
        v[0] = a.x;
        v[1] = a.y;
        v[2] = b.x;
        v[3] = b.y;
      }
    } else {
      UNROLL
      for (int j = 0; j < 4; ++j) {
        const int64_t k = at + (kF32 ? j : j % 2 + 8 * (j / 2));
        v[j] = k < n_cols ? x[k] : 0.0f;
      }
    }
  }

  float acc_[2 * kTokens];  // [row g, g + 8][token]
};

}  // namespace gristmill::cuda

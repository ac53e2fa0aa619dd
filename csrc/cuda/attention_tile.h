// Sixteen positions of one head's keys and values on their way to a warp's matrix products. With g = lane / 4 and t =
// lane % 4:
//
//   scores = q k     k16 step 2 c     b0, b1: dimensions 32 c + 8 t + {0, 1}, {2, 3} of position g (and 8 + g)
//                    k16 step 2 c + 1 b0, b1: dimensions 32 c + 8 t + {4, 5}, {6, 7}
//   out = p v        k = position     b0: positions 2 t, 2 t + 1;  b1: 2 t + 8, 2 t + 9;  of dimension value_column()
//
// Which dimension is which k or which column is free, so they are dealt out such that halves come in 16 bytes a lane:
// each lane copies to shared memory what it will read itself, a queue of its own without bank conflicts or exchange
// (keys: 4 lanes read 64 bytes of a row; values: 8 lanes read 128). Q8_0 lies in rows, its 32-byte blocks exchanged so
// that lanes that read together meet different banks.
#pragma once

#include "backend.h"
#include "cuda/device/arithmetic.h"
#include "cuda/device/memory.h"
#include "cuda/device/mma.h"
#include "cuda/device/warp.h"

namespace gristmill::cuda {

constexpr int kTilePositions = 16;

// One head's planes.
struct HeadPlanes {
  const std::byte *k, *k_scales, *v, *v_scales;
};

// p, or what is left of it, as two halves each: a row of the A fragment for the high parts, one for the low ones, so
// that products have 22 bits of p.
DEVICE void split_f16(float a, float b, uint32_t& high, uint32_t& low) {
  high = pack_f16(a, b);
  low = pack_f16(a - f16_to_f32(uint16_t(high)), b - f16_to_f32(uint16_t(high >> 16)));
}

// A fragment of weights: rows 0 to 7 the high parts for the queries, 8 to 15 the low ones; p[2 b + i] is that of
// position 8 b + 2 t + i.
DEVICE void weight_fragment(const float (&p)[4], uint32_t (&a)[4]) {
  split_f16(p[0], p[1], a[0], a[1]);
  split_f16(p[2], p[3], a[2], a[3]);
}

template <KvType type, int D>
struct KvTile;

template <int D>
struct KvTile<KvType::F16, D> {
  static constexpr int kBytes = kTilePositions * D * 4, kValuesAt = kTilePositions * D * 2;
  // exp2(this) times the weights: halves keep small ones that far.
  static constexpr float kWeightBits = 10.0f;

  static DEVICE const std::byte* mine(const std::byte* stage, int chunk) {
    return stage + (chunk * kWarp + lane_id()) * 16;
  }
  static DEVICE uint4 load(const std::byte* p) { return *reinterpret_cast<const uint4*>(p); }

  // Positions first to first + 15; those from `end` on become zeros.
  static DEVICE void copy(std::byte* stage, const HeadPlanes& planes, int first, int end) {
    const L2Policy policy = first_to_go();
    const int g = lane_id() / 4, t = lane_id() % 4;
    UNROLL
    for (int b = 0; b < 2; ++b) {
      const int position = first + 8 * b + g;
      const std::byte* row = planes.k + (int64_t(position) * D + 8 * t) * 2;
      UNROLL
      for (int c = 0; c < D / 32; ++c)
        copy_async16(const_cast<std::byte*>(mine(stage, b * (D / 32) + c)), row + 64 * c, position < end ? 16 : 0,
                     policy);
    }
    UNROLL
    for (int r = 0; r < 4; ++r) {
      const int position = first + 2 * t + r % 2 + 8 * (r / 2);
      const std::byte* row = planes.v + (int64_t(position) * D + 8 * g) * 2;
      UNROLL
      for (int h = 0; h < D / 64; ++h)
        copy_async16(const_cast<std::byte*>(mine(stage + kValuesAt, h * 4 + r)), row + 128 * h, position < end ? 16 : 0,
                     policy);
    }
  }

  // s[2 b + i]: query g and position 8 b + 2 t + i.
  static DEVICE void scores(const std::byte* stage, const uint32_t (&q)[D / 16][4], float (&s)[4]) {
    UNROLL
    for (int b = 0; b < 2; ++b) {
      float sum[4] = {};
      UNROLL
      for (int c = 0; c < D / 32; ++c) {
        const uint4 k = load(mine(stage, b * (D / 32) + c));
        mma_f16(sum, q[2 * c], k.x, k.y);
        mma_f16(sum, q[2 * c + 1], k.z, k.w);
      }
      s[2 * b] = sum[0] + sum[2];
      s[2 * b + 1] = sum[1] + sum[3];
    }
  }

  static DEVICE void add_values(const std::byte* stage, const float (&p)[4], float (&out)[D / 8][4]) {
    uint32_t a[4];
    weight_fragment(p, a);
    UNROLL
    for (int h = 0; h < D / 64; ++h) {
      const uint4 r[4] = {load(mine(stage + kValuesAt, h * 4)), load(mine(stage + kValuesAt, h * 4 + 1)),
                          load(mine(stage + kValuesAt, h * 4 + 2)), load(mine(stage + kValuesAt, h * 4 + 3))};
      const uint32_t w[4][4] = {{r[0].x, r[0].y, r[0].z, r[0].w},
                                {r[1].x, r[1].y, r[1].z, r[1].w},
                                {r[2].x, r[2].y, r[2].z, r[2].w},
                                {r[3].x, r[3].y, r[3].z, r[3].w}};
      UNROLL
      for (int j = 0; j < 8; ++j) {
        const uint32_t halves = j % 2 ? 0x7632 : 0x5410;
        mma_f16(out[8 * h + j], a, permute_bytes(w[0][j / 2], w[1][j / 2], halves),
                permute_bytes(w[2][j / 2], w[3][j / 2], halves));
      }
    }
  }

  // The dimension of column `column` of out[j].
  static DEVICE int value_column(int j, int column) { return j / 8 * 64 + 8 * column + j % 8; }
};

template <int D>
struct KvTile<KvType::Q8_0, D> {
  static constexpr int kGroups = D / 32, kRowScales = kGroups * 2;  // bytes of a position's scales
  static constexpr int kValuesAt = kTilePositions * D, kScalesAt = 2 * kValuesAt,
                       kValueScalesAt = kScalesAt + kTilePositions * kRowScales,
                       kBytes = kValueScalesAt + kTilePositions * kRowScales;
  // A weight times a scale must stay a half: room for scales up to 4094.
  static constexpr float kWeightBits = 4.0f;

  static DEVICE int key_block(int row, int group) { return group ^ ((D == 128 ? row : row / 2) & (kGroups - 1)); }
  static DEVICE int value_block(int row, int group) { return group ^ (row / 2 & (kGroups - 1)); }

  static DEVICE void copy(std::byte* stage, const HeadPlanes& planes, int first, int end) {
    const L2Policy policy = first_to_go();
    UNROLL
    for (int i = 0; i < kTilePositions * D / 16 / kWarp; ++i) {
      const int chunk = i * kWarp + lane_id(), row = chunk / (D / 16), in_row = chunk % (D / 16);
      const int64_t from = (int64_t(first) + row) * D + in_row * 16;
      const int n = first + row < end ? 16 : 0, half = in_row % 2 * 16;
      copy_async16(stage + row * D + key_block(row, in_row / 2) * 32 + half, planes.k + from, n, policy);
      copy_async16(stage + kValuesAt + row * D + value_block(row, in_row / 2) * 32 + half, planes.v + from, n, policy);
    }
    constexpr int kChunks = kTilePositions * kRowScales / 16;
    if (lane_id() < 2 * kChunks) {
      const int chunk = lane_id() % kChunks, position = first + chunk * (16 / kRowScales);
      const int left = (end - position) * kRowScales;
      const std::byte* from = lane_id() < kChunks ? planes.k_scales : planes.v_scales;
      copy_async16(stage + (lane_id() < kChunks ? kScalesAt : kValueScalesAt) + chunk * 16,
                   from + int64_t(position) * kRowScales,
                   left < 0    ? 0
                   : left > 16 ? 16
                               : left,
                   policy);
    }
  }

  // Bytes 0, 1 and 2, 3 of `codes`, whose sign bits are turned over, as halves: 0x6400 + u is 1024 + u.
  static DEVICE uint32_t to_halves(uint32_t codes, uint32_t selector) {
    return subtract_f16x2(permute_bytes(codes, 0x64646464u, selector), 0x64806480u);
  }
  static DEVICE float scale(const std::byte* scales, int position, int group) {
    return f16_to_f32(reinterpret_cast<const uint16_t*>(scales)[position * kGroups + group]);
  }

  static DEVICE void scores(const std::byte* stage, const uint32_t (&q)[D / 16][4], float (&s)[4]) {
    const int g = lane_id() / 4, t = lane_id() % 4;
    UNROLL
    for (int b = 0; b < 2; ++b) {
      const int row = 8 * b + g, position = 8 * b + 2 * t;
      s[2 * b] = s[2 * b + 1] = 0.0f;
      UNROLL
      for (int c = 0; c < kGroups; ++c) {
        uint2 k = *reinterpret_cast<const uint2*>(stage + row * D + key_block(row, c) * 32 + 8 * t);
        k.x ^= 0x80808080u;
        k.y ^= 0x80808080u;
        float sum[4] = {};
        mma_f16(sum, q[2 * c], to_halves(k.x, 0x4140), to_halves(k.x, 0x4342));
        mma_f16(sum, q[2 * c + 1], to_halves(k.y, 0x4140), to_halves(k.y, 0x4342));
        s[2 * b] = fmaf(sum[0] + sum[2], scale(stage + kScalesAt, position, c), s[2 * b]);
        s[2 * b + 1] = fmaf(sum[1] + sum[3], scale(stage + kScalesAt, position + 1, c), s[2 * b + 1]);
      }
    }
  }

  static DEVICE void add_values(const std::byte* stage, const float (&p)[4], float (&out)[D / 8][4]) {
    const int g = lane_id() / 4, t = lane_id() % 4;
    UNROLL
    for (int c = 0; c < kGroups; ++c) {
      float scaled[4];
      uint32_t w[4], a[4];
      UNROLL
      for (int r = 0; r < 4; ++r) {
        const int row = 2 * t + r % 2 + 8 * (r / 2);
        w[r] = *reinterpret_cast<const uint32_t*>(stage + kValuesAt + row * D + value_block(row, c) * 32 + 4 * g) ^
               0x80808080u;
        scaled[r] = p[r] * scale(stage + kValueScalesAt, row, c);
      }
      weight_fragment(scaled, a);
      UNROLL
      for (int pair = 0; pair < 2; ++pair) {
        // Bytes 2 pair, 2 pair + 1 of two positions, as (first, second), (first, second).
        const uint32_t select = pair ? 0x7362 : 0x5140;
        const uint32_t low = permute_bytes(w[0], w[1], select), high = permute_bytes(w[2], w[3], select);
        mma_f16(out[4 * c + 2 * pair], a, to_halves(low, 0x4140), to_halves(high, 0x4140));
        mma_f16(out[4 * c + 2 * pair + 1], a, to_halves(low, 0x4342), to_halves(high, 0x4342));
      }
    }
  }

  static DEVICE int value_column(int j, int column) { return j / 4 * 32 + 4 * column + j % 4; }
};

}  // namespace gristmill::cuda

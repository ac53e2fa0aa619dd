// What is done to one head's queries, keys and values: rotation, and the way into the cache.
#pragma once

#include <cmath>

#include "cuda/convert.h"
#include "cuda/kv_layout.h"

namespace gristmill::cuda {

// The CPU's arithmetic, product by product.
template <RopeStyle style>
DEVICE void rotate_pair(float& x, float& y, float c, float s) {
  const float a = x * c - y * s;
  y = fmaf(y, c, x * s);
  x = a;
}

// What float16 cannot hold becomes NaN, not infinity: an infinite key may lead to a score of minus infinity, which
// attention would pass over in silence.
constexpr uint16_t kHalfNan = 0x7e00;

DEVICE uint16_t half_or_nan(float v) {
  const uint16_t h = f32_to_f16(v);
  return (h & 0x7c00) == 0x7c00 ? kHalfNan : h;
}

// As formats::Q8_0: halves away from zero.
DEVICE int q8_code(float v, float inverse) {
  const int level = int(fminf(fabsf(v) * inverse + 0.5f, 127.0f));
  return v < 0.0f ? -level : level;
}

// Of a block of 32 whose largest magnitude is `peak`: the scale as a half, the inverse of the scale. Codes have no NaN,
// so the scale carries it.
DEVICE uint16_t q8_scale(uint32_t peak, float& inverse) {
  inverse = 0.0f;
  if (!(float_of_bits(peak) <= 127 * 65504.0f)) return kHalfNan;
  const float d = float_of_bits(peak) / 127.0f;
  const float reciprocal = 1.0f / (d != 0.0f ? d : 1.0f);
  if (d != 0.0f && (bits_of_float(reciprocal) & kMagnitude) < kInfinityBits) inverse = reciprocal;
  return f32_to_f16(d);
}

// One of the two planes that a row goes to.
struct KvPlane {
  KvType type;
  int head_dim;
  int64_t values_at, scales_at;  // from the start of a head's part of the cache

  int width() const { return head_dim % 4 == 0 ? 4 : 1; }
};

// kWidth values from value i of one head on; its dimension is a multiple of kWidth. lanes: those of the warp that come
// here together, groups of 8; those that are not there have nothing to store.
template <int kWidth>
DEVICE void store_values(const KvPlane& p, std::byte* head, int64_t position, int i, const float (&v)[kWidth],
                         uint32_t lanes, bool there = true) {
  const int64_t at = position * p.head_dim + i;
  if (p.type != KvType::Q8_0 && !there) return;
  std::byte* const values = there ? head + p.values_at : nullptr;
  if (p.type == KvType::F32) {
    float* to = reinterpret_cast<float*>(values) + at;
    if constexpr (kWidth == 4) {
      *reinterpret_cast<float4*>(to) = {v[0], v[1], v[2], v[3]};
    } else {
      *to = v[0];
    }
  } else if (p.type == KvType::F16) {
    uint16_t* to = reinterpret_cast<uint16_t*>(values) + at;
    if constexpr (kWidth == 4) {
      *reinterpret_cast<uint2*>(to) = {half_or_nan(v[0]) | uint32_t(half_or_nan(v[1])) << 16,
                                       half_or_nan(v[2]) | uint32_t(half_or_nan(v[3])) << 16};
    } else {
      *to = half_or_nan(v[0]);
    }
  } else if constexpr (kWidth == 4) {
    uint32_t peak = peak_bits({v[0], v[1], v[2], v[3]});
    UNROLL
    for (int step = 4; step > 0; step /= 2) {
      const uint32_t other = shuffle_xor(peak, step, lanes);
      peak = other > peak ? other : peak;
    }
    if (!there) return;
    float inverse;
    const uint16_t scale = q8_scale(peak, inverse);
    const bool nan = scale == kHalfNan;
    *reinterpret_cast<uint32_t*>(values + at) = nan ? 0x01010101u
                                                    : pack_bytes(q8_code(v[0], inverse), q8_code(v[1], inverse),
                                                                 q8_code(v[2], inverse), q8_code(v[3], inverse));
    if (i % 32 == 0) reinterpret_cast<uint16_t*>(head + p.scales_at)[at / 32] = scale;
  }
}

inline KvPlane key_plane(const KvLayout& layout) { return {layout.type_k, layout.head_dim_k, 0, layout.k_values()}; }
inline KvPlane value_plane(const KvLayout& layout) {
  const int64_t k_bytes = layout.k_values() + layout.k_scales();
  return {layout.type_v, layout.head_dim_v, k_bytes, k_bytes + layout.v_values()};
}

}  // namespace gristmill::cuda

// Device functions that leave activations in the forms of activations.h. A lane holds four neighbouring columns ("slot"
// s is columns 4 s to 4 s + 3), so that 8 lanes hold a group of 32 and a warp reads 512 bytes in a row:
//
//   lane        0    1    2    3  |  4    5    6    7   | 8 ...     of a warp
//   columns    0-3  4-7  8-11 ..15| 16-19 ...     28-31 | 32-35     of the row
//   plane byte  0    8   16   24  |  4   12   20   28   | 32        each lane writes one word
#pragma once

#include <cmath>

#include "cuda/activations.h"
#include "cuda/device/arithmetic.h"
#include "cuda/device/warp.h"
#include "cuda/half_order.h"

namespace gristmill::cuda {

constexpr uint32_t kMagnitude = 0x7fffffffu, kInfinityBits = 0x7f800000u, kNanBits = 0x7fc00000u;

// The largest magnitude as bits, in which a NaN is above all numbers.
DEVICE uint32_t peak_bits(float4 v) {
  const uint32_t a = bits_of_float(v.x) & kMagnitude, b = bits_of_float(v.y) & kMagnitude;
  const uint32_t c = bits_of_float(v.z) & kMagnitude, d = bits_of_float(v.w) & kMagnitude;
  const uint32_t ab = a > b ? a : b, cd = c > d ? c : d;
  return ab > cd ? ab : cd;
}

// x = scale * q. inverse is 0 where codes are to be 0: the group is next to nothing, or the scale says NaN.
struct CodeScale {
  float scale, inverse;
};

// As csrc/cpu/generic/activation_scale.h.
DEVICE CodeScale plane_scale(uint32_t peak) {
  constexpr float kMost = 16256.0f;
  if (peak >= kInfinityBits) return {float_of_bits(kNanBits), 0.0f};
  const float v = float_of_bits(peak);
  if (v < 0x1p-100f) return {0.0f, 0.0f};
  return {v / kMost, kMost / v};
}

// A power of two: scaled by `inverse`, the largest magnitude lies in [2^14, 2^15).
DEVICE CodeScale half_scale(uint32_t peak) {
  if (peak >= kInfinityBits) return {float_of_bits(kNanBits), 0.0f};
  if (float_of_bits(peak) < 0x1p-100f) return {0.0f, 0.0f};
  const uint32_t exponent = peak >> 23;  // biased by 127
  return {float_of_bits((exponent - 14) << 23), float_of_bits((254 + 14 - exponent) << 23)};
}

DEVICE int code_of(float v, float inverse) { return inverse == 0.0f ? 0 : round_to_int(v * inverse); }

DEVICE uint32_t pack_bytes(int a, int b, int c, int d) {
  return permute_bytes(permute_bytes(uint32_t(a), uint32_t(b), 0x0040), permute_bytes(uint32_t(c), uint32_t(d), 0x0040),
                       0x5410);
}

// silu(gate) * up
DEVICE float gated(float gate, float up) { return gate / (1.0f + expf(-gate)) * up; }
DEVICE float4 gated(float4 gate, float4 up) {
  return {gated(gate.x, up.x), gated(gate.y, up.y), gated(gate.z, up.z), gated(gate.w, up.w)};
}

// Called by whole warps; each eight lanes hold the slots of one group of 32, in order. Nothing is written where `there`
// does not hold.
DEVICE void store_planes(const QuantizedRows& out, int64_t row, int slot, float4 v, bool there = true) {
  const CodeScale s = plane_scale(warp_max<8>(peak_bits(v)));
  const int q[4] = {code_of(v.x, s.inverse), code_of(v.y, s.inverse), code_of(v.z, s.inverse), code_of(v.w, s.inverse)};
  int hi[4], lo[4];
  UNROLL
  for (int i = 0; i < 4; ++i) {
    hi[i] = (q[i] + 64) >> 7;
    lo[i] = q[i] - 128 * hi[i];
  }
  const int sum = warp_sum<4>(q[0] + q[1] + q[2] + q[3]), group_sum = sum + shuffle_xor(sum, 4);
  if (!there) return;
  const int in_group = slot % 8;
  int8_t* at = out.planes + 2 * row * out.padded + slot / 8 * 32 + in_group % 4 * 8 + in_group / 4 * 4;
  *reinterpret_cast<uint32_t*>(at) = pack_bytes(hi[0], hi[1], hi[2], hi[3]);
  *reinterpret_cast<uint32_t*>(at + out.padded) = pack_bytes(lo[0], lo[1], lo[2], lo[3]);
  if (in_group % 4 == 0) out.sums[row * (out.padded / 16) + slot / 4] = sum;
  if (in_group == 0)
    *reinterpret_cast<float2*>(out.scales + row * (out.padded / 16) + slot / 8 * 2) =
        float2{s.scale, s.scale * float(group_sum)};
}

DEVICE void store_halves(const HalfRows& out, int64_t row, int slot, float4 v, float inverse) {
  uint2 packed{0, 0};
  if (inverse != 0.0f) packed = {pack_f16(v.x * inverse, v.y * inverse), pack_f16(v.z * inverse, v.w * inverse)};
  *reinterpret_cast<uint2*>(out.values + half_at(out.order, out.padded, row, 4 * slot)) = packed;
}

}  // namespace gristmill::cuda

#include "formats/search.h"

#include "formats/iq4_codebook.h"

namespace gristmill::formats {
namespace {

// The weight of largest magnitude, with its sign; the first of several.
float extreme(const float* x, int n) {
  float best = 0.0f;
  for (int i = 0; i < n; ++i)
    if (magnitude(x[i]) > magnitude(best)) best = x[i];
  return best;
}

int nearest_iq4(float v) {
  int index = 0;
  while (index < 15 && v - float(iq4_level(index)) > float(iq4_level(index + 1)) - v) ++index;
  return index;
}

}  // namespace

uint16_t fit_symmetric_block(const float* x, const float* /*importance*/, int zero, uint8_t* q) {
  const float d = saturate_half(extreme(x, 32) / float(-zero)), inverse = reciprocal(d);
  for (int i = 0; i < 32; ++i) q[i] = uint8_t(truncate(x[i] * inverse + (float(zero) + 0.5f), 0, 2 * zero - 1));
  return float_to_half(d);
}

AffineBlock fit_affine_block(const float* x, const float* /*importance*/, int max_q, uint8_t* q) {
  float low = x[0], high = x[0];
  for (int i = 1; i < 32; ++i) {
    if (x[i] < low) low = x[i];
    if (x[i] > high) high = x[i];
  }
  low = saturate_half(low);
  const float d = saturate_half((high - low) / float(max_q)), inverse = reciprocal(d);
  for (int i = 0; i < 32; ++i) q[i] = uint8_t(truncate((x[i] - low) * inverse + 0.5f, 0, max_q));
  return {float_to_half(d), float_to_half(low)};
}

void fit_affine_super_block(const float* x, const float* /*importance*/, AffineSpec spec, AffineSuperBlock& out) {
  const int groups = 256 / spec.group;
  float scale[16], min[16], max_scale = 0.0f, max_min = 0.0f;
  for (int g = 0; g < groups; ++g) {
    const float* v = x + g * spec.group;
    float low = 0.0f, high = v[0];
    for (int i = 0; i < spec.group; ++i) {
      if (v[i] < low) low = v[i];
      if (v[i] > high) high = v[i];
    }
    min[g] = -low;
    scale[g] = larger(0.0f, high - low) / float(spec.max_q);
    max_scale = larger(max_scale, scale[g]);
    max_min = larger(max_min, min[g]);
  }
  const float d = saturate_half(max_scale / float(spec.max_code)), dmin = saturate_half(max_min / float(spec.max_code));
  out.d = float_to_half(d);
  out.dmin = float_to_half(dmin);
  for (int g = 0; g < groups; ++g) {
    out.scale[g] = uint8_t(nearest(scale[g] * reciprocal(d), 0, spec.max_code));
    out.min[g] = uint8_t(nearest(min[g] * reciprocal(dmin), 0, spec.max_code));
    const float step = half_to_float(out.d) * out.scale[g], base = half_to_float(out.dmin) * out.min[g];
    for (int i = g * spec.group; i < (g + 1) * spec.group; ++i)
      out.q[i] = uint8_t(nearest((x[i] + base) * reciprocal(step), 0, spec.max_q));
  }
}

void fit_symmetric_super_block(const float* x, const float* /*importance*/, SymmetricSpec spec,
                               SymmetricSuperBlock& out) {
  const int groups = 256 / spec.group;
  float scale[16];
  for (int g = 0; g < groups; ++g) scale[g] = extreme(x + g * spec.group, spec.group) / float(-spec.zero);
  const float d = saturate_half(extreme(scale, groups) / float(-spec.max_code - 1));
  out.d = float_to_half(d);
  for (int g = 0; g < groups; ++g) {
    out.scale[g] = int8_t(nearest(scale[g] * reciprocal(d), -spec.max_code - 1, spec.max_code));
    const float step = half_to_float(out.d) * out.scale[g];
    for (int i = g * spec.group; i < (g + 1) * spec.group; ++i)
      out.q[i] = uint8_t(nearest(x[i] * reciprocal(step), -spec.zero, spec.zero - 1) + spec.zero);
  }
}

uint16_t fit_iq4_block(const float* x, const float* /*importance*/, uint8_t* q) {
  const float d = saturate_half(extreme(x, 32) / -127.0f), inverse = reciprocal(d);
  for (int i = 0; i < 32; ++i) q[i] = uint8_t(nearest_iq4(x[i] * inverse));
  return float_to_half(d);
}

void fit_iq4_super_block(const float* x, const float* /*importance*/, SymmetricSuperBlock& out) {
  float scale[8];
  for (int g = 0; g < 8; ++g) scale[g] = extreme(x + g * 32, 32) / -127.0f;
  const float d = saturate_half(extreme(scale, 8) / -32.0f);
  out.d = float_to_half(d);
  for (int g = 0; g < 8; ++g) {
    out.scale[g] = int8_t(nearest(scale[g] * reciprocal(d), -32, 31));
    const float inverse = reciprocal(half_to_float(out.d) * out.scale[g]);
    for (int i = 32 * g; i < 32 * g + 32; ++i) out.q[i] = uint8_t(nearest_iq4(x[i] * inverse));
  }
}

}  // namespace gristmill::formats

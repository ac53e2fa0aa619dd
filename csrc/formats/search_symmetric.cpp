// Scales alone: w = scale * level, the level from a codebook, either the integers -zero..zero-1 or IQ4's sixteen.
//
// A group is fitted by rounding it at several scales and taking the one whose least squares explains most of it. The
// scale's sign puts the extreme weight on the codebook's longer, negative side. A super-block expresses its groups'
// scales as multiples of d: each group takes the code, near its optimum, with the least error, and d is solved for
// again.
#include "formats/iq4_codebook.h"
#include "formats/search.h"
#include "formats/search_detail.h"

namespace gristmill::formats {
namespace {

struct Integers {
  float zero;
  float lowest() const { return -zero; }
  float trial_step() const { return 0.1f; }
  V8 round(V8 v) const { return nearest_each(v, -zero, zero - 1.0f); }
  int index(float v) const { return nearest(v, -int(zero), int(zero) - 1) + int(zero); }
};

struct Iq4Levels {
  float lowest() const { return -127.0f; }
  float trial_step() const { return 1.0f; }
  // Climbs the staircase of levels: one compare and one masked add for each of its steps.
  V8 round(V8 v) const {
    V8 level = -127.0f - V8{};
    for (int k = 0; k < 15; ++k) {
      const float from = float(iq4_level(k)), to = float(iq4_level(k + 1));
      level += v >= (from + to) * 0.5f ? (to - from) - V8{} : V8{};
    }
    return level;
  }
  int index(float v) const {
    int k = 0;
    while (k < 15 && v >= float(iq4_level(k) + iq4_level(k + 1)) * 0.5f) ++k;
    return k;
  }
};

struct Group {
  const float* x;
  const float* share;
  int n;
};

// Least squares at the levels that x * inverse rounds to.
struct Moments {
  float xl, ll;  // sums of share * x * level and share * level^2
  float scale() const { return xl / ll; }
  float explained() const { return ll > 0.0f ? xl * xl / ll : 0.0f; }  // of the sum of share * x^2
};

template <class Codebook>
Moments moments(const Group& g, float inverse, const Codebook& codebook) {
  V8 xl = {}, ll = {};
  for (int i = 0; i < g.n; i += 8) {
    const V8 x = load(g.x + i), level = codebook.round(x * inverse), weighted = load(g.share + i) * level;
    xl += weighted * x;
    ll += weighted * level;
  }
  return {sum(xl), sum(ll)};
}

template <class Codebook>
float error_of(const Group& g, float scale, const Codebook& codebook) {
  const float inverse = reciprocal(scale);
  V8 error = {};
  for (int i = 0; i < g.n; i += 8) {
    const V8 x = load(g.x + i), miss = codebook.round(x * inverse) * scale - x;
    error += load(g.share + i) * miss * miss;
  }
  return sum(error);
}

// The weight of largest magnitude, with its sign; the first of several.
float extreme(const float* x, int n) {
  float best = 0.0f;
  for (int i = 0; i < n; ++i)
    if (magnitude(x[i]) > magnitude(best)) best = x[i];
  return best;
}

template <class Codebook>
float fit(const Group& g, const Codebook& codebook) {
  const float peak = extreme(g.x, g.n);
  if (!(magnitude(peak) > 0x1p-40f)) return 0.0f;
  float best = peak / codebook.lowest(), most = 0.0f;
  const auto consider = [&](float inverse) {
    const Moments m = moments(g, inverse, codebook);
    if (m.explained() > most) {
      most = m.explained();
      best = m.scale();
    }
  };
  for (int step = -9; step <= 9; ++step) consider((codebook.lowest() + float(step) * codebook.trial_step()) / peak);
  // The extreme may matter little: then the other sign can suit the rest better.
  for (int step = -8; step <= 8; step += 2) consider((float(step) * codebook.trial_step() - codebook.lowest()) / peak);
  for (int i = 0; i < 2; ++i) consider(reciprocal(best));
  return best;
}

template <class Codebook>
uint16_t fit_block(const float* x, const float* importance, const Codebook& codebook, uint8_t* q) {
  const Prepared p(x, importance, 32);
  if (p.is_zero) {
    for (int i = 0; i < 32; ++i) q[i] = uint8_t(codebook.index(0.0f));
    return 0;
  }
  const uint16_t d = p.to_half(fit(Group{p.x, p.share, 32}, codebook));
  const float inverse = reciprocal(p.from_half(d));
  for (int i = 0; i < 32; ++i) q[i] = uint8_t(codebook.index(p.x[i] * inverse));
  return d;
}

template <class Codebook>
void fit_super_block(const float* x, const float* importance, int size, int max_code, const Codebook& codebook,
                     SymmetricSuperBlock& out) {
  out = {};
  const Prepared p(x, importance, 256);
  const int groups = 256 / size;
  float scale[16] = {}, d = 0.0f;
  if (!p.is_zero) {
    for (int g = 0; g < groups; ++g) scale[g] = fit(Group{p.x + g * size, p.share + g * size, size}, codebook);
    d = extreme(scale, groups) / float(-max_code - 1);
  }

  float least = INFINITY;
  for (int round = 0; round < 3 && d != 0.0f; ++round) {
    const uint16_t bits = p.to_half(d);
    d = p.from_half(bits);
    int8_t codes[16] = {};
    float error = 0.0f;
    double xl = 0.0, ll = 0.0;  // Moments of the whole block at the levels code * level
    for (int g = 0; g < groups; ++g) {
      const Group members = {p.x + g * size, p.share + g * size, size};
      codes[g] = int8_t(nearest(scale[g] * reciprocal(d), -max_code - 1, max_code));
      const float step = d * float(codes[g]);
      error += error_of(members, step, codebook);
      const Moments m = moments(members, reciprocal(step), codebook);
      xl += double(codes[g]) * m.xl;
      ll += double(codes[g]) * codes[g] * m.ll;
    }
    if (error < least) {
      least = error;
      out.d = bits;
      std::memcpy(out.scale, codes, sizeof codes);
    }
    d = ll > 0.0 ? float(xl / ll) : 0.0f;
  }

  for (int i = 0; i < 256; ++i) {
    const float step = p.is_zero ? 0.0f : p.from_half(out.d) * float(out.scale[i / size]);
    out.q[i] = uint8_t(codebook.index(p.is_zero ? 0.0f : p.x[i] * reciprocal(step)));
  }
}

}  // namespace

uint16_t fit_symmetric_block(const float* x, const float* importance, int zero, uint8_t* q) {
  if (importance) return fit_block(x, importance, Integers{float(zero)}, q);
  const float d = saturate_half(extreme(x, 32) / float(-zero)), inverse = reciprocal(d);
  for (int i = 0; i < 32; ++i) q[i] = uint8_t(truncate(x[i] * inverse + (float(zero) + 0.5f), 0, 2 * zero - 1));
  return float_to_half(d);
}

void fit_symmetric_super_block(const float* x, const float* importance, SymmetricSpec spec, SymmetricSuperBlock& out) {
  fit_super_block(x, importance, spec.group, spec.max_code, Integers{float(spec.zero)}, out);
}

uint16_t fit_iq4_block(const float* x, const float* importance, uint8_t* q) {
  return fit_block(x, importance, Iq4Levels{}, q);
}

void fit_iq4_super_block(const float* x, const float* importance, SymmetricSuperBlock& out) {
  fit_super_block(x, importance, 32, 31, Iq4Levels{}, out);
}

}  // namespace gristmill::formats

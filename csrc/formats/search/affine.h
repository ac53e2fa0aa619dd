// Scales and minima: w = scale * q + min.
//
// A group is fitted by rounding it on several grids and solving the weighted least squares for the scale and minimum
// that suit each rounding best. A super-block then has to express all its scales and minima as multiples of d and dmin:
// each group takes the pair of codes, near its own optimum, with the least error, and d and dmin are solved for again.
#pragma once

#include "formats/search/groups.h"

namespace gristmill::formats {
namespace {

struct Line {
  F scale, min;
};

inline Line select(M m, Line a, Line b) { return {select(m, a.scale, b.scale), select(m, a.min, b.min)}; }

// kLanes groups of a batch: weight i of each at x + kGroups * i.
struct AffineGroups {
  const float* x;
  const float* share;
  int n;
  F max_q;
};

inline F round_to(const AffineGroups& g, F x, F inverse, F min) {
  return nearest_each((x - min) * inverse, all(0.0f), g.max_q);
}

// The errors of kLines lines at once: one alone would wait for the latency of its sums.
template <int kLines>
inline void errors_of(const AffineGroups& g, const Line (&lines)[kLines], F (&errors)[kLines]) {
  F inverse[kLines];
  for (int k = 0; k < kLines; ++k) {
    inverse[k] = reciprocal_each(lines[k].scale);
    errors[k] = all(0.0f);
  }
  for (int i = 0; i < g.n; ++i) {
    const F x = load(g.x + kGroups * i), share = load(g.share + kGroups * i);
    for (int k = 0; k < kLines; ++k) {
      const F miss = round_to(g, x, inverse[k], lines[k].min) * lines[k].scale + lines[k].min - x;
      errors[k] += share * miss * miss;
    }
  }
}

// What least squares needs of a group: sums of share times 1, x, q, q^2, q x. The first two know no levels.
struct Totals {
  F w, x;
};
struct Sums {
  F q, qq, qx;
};

inline Totals totals(const AffineGroups& g) {
  Totals t = {all(0.0f), all(0.0f)};
  for (int i = 0; i < g.n; ++i) {
    const F share = load(g.share + kGroups * i);
    t.w += share;
    t.x += share * load(g.x + kGroups * i);
  }
  return t;
}

// The sums at the levels (x - min) * inverse.
template <int kLines>
inline void sums_at(const AffineGroups& g, const F (&inverse)[kLines], const F (&min)[kLines], Sums (&sums)[kLines]) {
  for (int k = 0; k < kLines; ++k) sums[k] = {all(0.0f), all(0.0f), all(0.0f)};
  for (int i = 0; i < g.n; ++i) {
    const F x = load(g.x + kGroups * i), share = load(g.share + kGroups * i);
    for (int k = 0; k < kLines; ++k) {
      const F q = round_to(g, x, inverse[k], min[k]), weighted = share * q;
      sums[k].q += weighted;
      sums[k].qq += weighted * q;
      sums[k].qx += weighted * x;
    }
  }
}

// The best line for the levels that `rounding` gives. K formats subtract their minimum, so it cannot be positive there.
// Where there is none: `otherwise`.
inline Line solve(const Totals& t, const Sums& s, Line otherwise, bool allow_positive_min) {
  const F zero = all(0.0f), determinant = t.w * s.qq - s.q * s.q, inverse = 1.0f / determinant;
  const F scale = (t.w * s.qx - t.x * s.q) * inverse, min = (s.qq * t.x - s.q * s.qx) * inverse;
  Line line = select(less(zero, scale), Line{scale, min}, otherwise);
  if (!allow_positive_min) line = select(less(zero, min), Line{max_each(s.qx / s.qq, zero), zero}, line);
  return select(less(zero, determinant), line, otherwise);
}

inline Line fit(const AffineGroups& g, bool allow_positive_min) {
  F low = load(g.x), high = low;
  for (int i = 1; i < g.n; ++i) {
    low = min_each(load(g.x + kGroups * i), low);
    high = max_each(load(g.x + kGroups * i), high);
  }
  if (!allow_positive_min) low = min_each(low, all(0.0f));
  const Totals t = totals(g);
  const F range = high - low, inverse_range = reciprocal_each(range);
  Line best[1] = {{range / g.max_q, low}};
  F least[1];
  errors_of(g, best, least);
  const auto consider = [&]<int kLines>(const F(&inverse)[kLines], const F(&min)[kLines],
                                        const Line(&roundings)[kLines]) {
    Sums sums[kLines];
    Line lines[kLines];
    F errors[kLines];
    sums_at(g, inverse, min, sums);
    for (int k = 0; k < kLines; ++k) lines[k] = solve(t, sums[k], roundings[k], allow_positive_min);
    errors_of(g, lines, errors);
    for (int k = 0; k < kLines; ++k) {
      const M better = less(errors[k], least[0]);
      least[0] = select(better, errors[k], least[0]);
      best[0] = select(better, lines[k], best[0]);
    }
  };
  // Grids from one step coarser than min..max to one step finer, which cuts off the extremes.
  for (int step = -10; step <= 10; step += 3) {
    F inverse[3];
    const F min[3] = {low, low, low};
    Line roundings[3];
    for (int k = 0; k < 3; ++k) {
      const F levels = g.max_q + 0.1f * float(step + k);
      inverse[k] = levels * inverse_range;
      roundings[k] = {range / levels, low};
    }
    consider(inverse, min, roundings);
  }
  for (int i = 0; i < 2; ++i) {
    const F inverse[1] = {reciprocal_each(best[0].scale)}, min[1] = {best[0].min};
    const Line roundings[1] = {best[0]};
    consider(inverse, min, roundings);
  }
  return select(less(low, high), best[0], Line{all(0.0f), low});
}

// Codes of every group for the block's d and dmin in its lanes, and the sums at the levels that they give.
struct Codes {
  alignas(64) float scale[kGroups], min[kGroups], error[kGroups];
  alignas(64) float w[kGroups], x[kGroups], q[kGroups], qq[kGroups], qx[kGroups];
};

inline void choose_codes(const Batch& batch, AffineSpec spec, const float* scales, const float* mins, const float* d,
                         const float* dmin, Codes& codes) {
  const F top = all(float(spec.max_code)), zero = all(0.0f);
  for (int v = 0; v < kGroups; v += kLanes) {
    const AffineGroups g = {batch.x + v, batch.share + v, batch.size, all(float(spec.max_q))};
    const F step = load(d + v), min_step = load(dmin + v);
    const F near_scale = nearest_each(load(scales + v) * reciprocal_each(step), zero, top);
    const F near_min = nearest_each(-load(mins + v) * reciprocal_each(min_step), zero, top);
    F least = all(__builtin_inff()), scale = near_scale, min = near_min;
    for (int ds = -1; ds <= 1; ++ds) {
      const F s = near_scale + float(ds);
      Line lines[3];
      F errors[3];
      for (int k = 0; k < 3; ++k) lines[k] = {step * s, -(min_step * (near_min + float(k - 1)))};
      errors_of(g, lines, errors);
      for (int k = 0; k < 3; ++k) {
        const F m = near_min + float(k - 1);
        const M inside =
            both(both(less(all(-0.5f), s), less(s, top + 0.5f)), both(less(all(-0.5f), m), less(m, top + 0.5f)));
        const M better = both(inside, less(errors[k], least));
        least = select(better, errors[k], least);
        scale = select(better, s, scale);
        min = select(better, m, min);
      }
    }
    const Totals t = totals(g);
    const F inverse[1] = {reciprocal_each(step * scale)}, mins_at[1] = {-(min_step * min)};
    Sums at[1];
    sums_at(g, inverse, mins_at, at);
    store(codes.scale + v, scale);
    store(codes.min + v, min);
    store(codes.error + v, least);
    store(codes.w + v, t.w);
    store(codes.x + v, t.x);
    store(codes.q + v, at[0].q);
    store(codes.qq + v, at[0].qq);
    store(codes.qx + v, at[0].qx);
  }
}

// One super-block's search: what d and dmin were tried, and the best so far.
struct AffineState {
  float d, dmin, least;
  bool active;

  // The least squares for d and dmin over the block: w = d * u - dmin * v, u = code * q, v = code.
  void improve(const Codes& codes, int first, int groups) {
    double uu = 0, uv = 0, vv = 0, ux = 0, vx = 0;
    for (int g = first; g < first + groups; ++g) {
      const double s = codes.scale[g], m = codes.min[g];
      uu += s * s * codes.qq[g];
      uv += s * m * codes.q[g];
      vv += m * m * codes.w[g];
      ux += s * codes.qx[g];
      vx += m * codes.x[g];
    }
    const double determinant = uu * vv - uv * uv;
    if (determinant > 0.0) {
      d = float((ux * vv - vx * uv) / determinant);
      dmin = float((ux * uv - vx * uu) / determinant);
    } else if (uu > 0.0) {
      d = float(ux / uu);
    }
    active = d > 0.0f && dmin >= 0.0f;
  }
};

inline void fit_affine_batch(const Batch& batch, AffineSpec spec, AffineSuperBlock* out) {
  const int groups = batch.joined, n_blocks = batch.n / groups < kSuperBlocks ? batch.n / groups : kSuperBlocks;
  alignas(64) float scales[kGroups], mins[kGroups], d[kGroups], dmin[kGroups];
  for (int v = 0; v < kGroups; v += kLanes) {
    const Line line = fit({batch.x + v, batch.share + v, batch.size, all(float(spec.max_q))}, false);
    store(scales + v, line.scale);
    store(mins + v, line.min);
  }
  AffineState states[kGroups];
  for (int b = 0; b < n_blocks; ++b) {
    out[b] = {};
    float max_scale = 0.0f, max_min = 0.0f;
    for (int g = b * groups; g < (b + 1) * groups; ++g) {
      max_scale = larger(max_scale, scales[g]);
      max_min = larger(max_min, -mins[g]);
    }
    states[b] = {max_scale / float(spec.max_code), max_min / float(spec.max_code), __builtin_inff(), !batch.is_zero[b]};
  }
  for (int k = 0; k < kGroups; ++k) d[k] = dmin[k] = 0.0f;
  Codes codes;
  for (int round = 0; round < 3; ++round) {
    uint16_t bits[kGroups], min_bits[kGroups];
    bool any = false;
    for (int b = 0; b < n_blocks; ++b) {
      AffineState& s = states[b];
      if (!s.active) continue;
      any = true;
      bits[b] = batch.to_half(b, s.d);
      min_bits[b] = batch.to_half(b, s.dmin);
      s.d = batch.from_half(b, bits[b]);
      s.dmin = batch.from_half(b, min_bits[b]);
      fill_block(d, b, groups, s.d);
      fill_block(dmin, b, groups, s.dmin);
    }
    if (!any) break;
    choose_codes(batch, spec, scales, mins, d, dmin, codes);
    for (int b = 0; b < n_blocks; ++b) {
      AffineState& s = states[b];
      if (!s.active) continue;
      float error = 0.0f;
      for (int g = b * groups; g < (b + 1) * groups; ++g) error += codes.error[g];
      if (round == 0 || error < s.least) {
        s.least = error;
        out[b].d = bits[b];
        out[b].dmin = min_bits[b];
        for (int g = 0; g < groups; ++g) {
          out[b].scale[g] = uint8_t(codes.scale[b * groups + g]);
          out[b].min[g] = uint8_t(codes.min[b * groups + g]);
        }
      }
      s.improve(codes, b * groups, groups);
    }
  }
  for (int k = 0; k < kGroups; ++k) scales[k] = mins[k] = 0.0f;
  for (int b = 0; b < n_blocks; ++b)
    for (int g = 0; g < groups; ++g) {
      scales[b * groups + g] = batch.from_half(b, out[b].d) * float(out[b].scale[g]);
      mins[b * groups + g] = -(batch.from_half(b, out[b].dmin) * float(out[b].min[g]));
    }
  alignas(64) uint8_t levels[32 * kGroups], ordered[32 * kGroups];
  for (int v = 0; v < kGroups; v += kLanes) {
    const AffineGroups g = {nullptr, nullptr, 0, all(float(spec.max_q))};
    const F inverse = reciprocal_each(load(scales + v)), min = load(mins + v);
    for (int i = 0; i < batch.size; ++i)
      store_bytes(levels + kGroups * i + v, round_to(g, load(batch.x + kGroups * i + v), inverse, min));
  }
  in_order(levels, batch.size, ordered);
  for (int b = 0; b < n_blocks; ++b)
    if (!batch.is_zero[b]) std::memcpy(out[b].q, ordered + 256 * b, 256);
}

inline void affine_super(const float* x, const float* importance, int64_t n, AffineSpec spec, AffineSuperBlock* out) {
  const int groups = 256 / spec.group, step = kGroups / groups;
  for (int64_t i = 0; i < n; i += step) {
    const int blocks = n - i < step ? int(n - i) : step;
    const Batch batch(x + i * 256, importance ? importance + i * 256 : nullptr, blocks * groups, spec.group, groups);
    fit_affine_batch(batch, spec, out + i);
  }
}

}  // namespace
}  // namespace gristmill::formats

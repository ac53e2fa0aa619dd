// Scales and minima: w = scale * q + min.
//
// A group is fitted by rounding it on several grids and solving the weighted least squares for the scale and minimum
// that suit each rounding best. A super-block then has to express all its scales and minima as multiples of d and dmin:
// each group takes the pair of codes, near its own optimum, with the least error, and d and dmin are solved for again.
#include "formats/search.h"
#include "formats/search_detail.h"

namespace gristmill::formats {
namespace {

struct Line {
  float scale, min;
};

struct Group {
  const float* x;
  const float* share;
  int n;  // 16 or 32
  float max_q;
};

V8 round_to(const Group& g, int i, Line line) {
  return nearest_each((load(g.x + i) - line.min) * reciprocal(line.scale), 0.0f, g.max_q);
}

float error_of(const Group& g, Line rounding, Line line) {
  V8 error = {};
  for (int i = 0; i < g.n; i += 8) {
    const V8 miss = round_to(g, i, rounding) * line.scale + line.min - load(g.x + i);
    error += load(g.share + i) * miss * miss;
  }
  return sum(error);
}

// What least squares needs of a group at the levels that `rounding` gives: sums of share times 1, x, q, q^2, q x.
struct Sums {
  float w, x, q, qq, qx;
};

Sums sums(const Group& g, Line rounding) {
  V8 w = {}, wx = {}, wq = {}, wqq = {}, wqx = {};
  for (int i = 0; i < g.n; i += 8) {
    const V8 q = round_to(g, i, rounding), x = load(g.x + i), share = load(g.share + i);
    w += share;
    wx += share * x;
    wq += share * q;
    wqq += share * q * q;
    wqx += share * q * x;
  }
  return {sum(w), sum(wx), sum(wq), sum(wqq), sum(wqx)};
}

// The best line for the levels that `rounding` gives. K formats subtract their minimum, so it cannot be positive there.
Line solve(const Group& g, Line rounding, bool allow_positive_min) {
  const Sums s = sums(g, rounding);
  const float determinant = s.w * s.qq - s.q * s.q;
  if (!(determinant > 0.0f)) return rounding;
  const Line line = {(s.w * s.qx - s.x * s.q) / determinant, (s.qq * s.x - s.q * s.qx) / determinant};
  if (line.min > 0.0f && !allow_positive_min) return {larger(0.0f, s.qx / s.qq), 0.0f};
  return line.scale > 0.0f ? line : rounding;
}

Line fit(const Group& g, bool allow_positive_min) {
  float low = g.x[0], high = g.x[0];
  for (int i = 1; i < g.n; ++i) {
    low = g.x[i] < low ? g.x[i] : low;
    high = larger(high, g.x[i]);
  }
  if (low > 0.0f && !allow_positive_min) low = 0.0f;
  if (!(high > low)) return {0.0f, low};
  Line best = {(high - low) / g.max_q, low};
  float least = error_of(g, best, best);
  const auto consider = [&](Line rounding) {
    const Line line = solve(g, rounding, allow_positive_min);
    const float error = error_of(g, line, line);
    if (error < least) {
      least = error;
      best = line;
    }
  };
  // Grids from one step coarser than min..max to one step finer, which cuts off the extremes.
  for (int step = -10; step <= 10; ++step) consider({(high - low) / (g.max_q + 0.1f * float(step)), low});
  for (int i = 0; i < 2; ++i) consider(best);
  return best;
}

struct SuperFit {
  uint16_t d, dmin;
  uint8_t scale[16], min[16];
  float error;
};

}  // namespace

AffineBlock fit_affine_block(const float* x, const float* importance, int max_q, uint8_t* q) {
  float low = x[0], high = x[0];
  for (int i = 1; i < 32; ++i) {
    low = x[i] < low ? x[i] : low;
    high = larger(high, x[i]);
  }
  low = saturate_half(low);
  float d = saturate_half((high - low) / float(max_q));
  AffineBlock block = {float_to_half(d), float_to_half(low)};
  if (importance) {
    const Prepared p(x, importance, 32);
    if (!p.is_zero) {
      const Line line = fit({p.x, p.share, 32, float(max_q)}, true);
      block = {p.to_half(line.scale), p.to_half(line.min)};
      d = half_to_float(block.d);
      low = half_to_float(block.m);
    }
  }
  const float inverse = reciprocal(d);
  for (int i = 0; i < 32; ++i) q[i] = uint8_t(truncate((x[i] - low) * inverse + 0.5f, 0, max_q));
  return block;
}

void fit_affine_super_block(const float* x, const float* importance, AffineSpec spec, AffineSuperBlock& out) {
  out = {};
  const Prepared p(x, importance, 256);
  if (p.is_zero) return;
  const int groups = 256 / spec.group;
  const auto group = [&](int g) {
    return Group{p.x + g * spec.group, p.share + g * spec.group, spec.group, float(spec.max_q)};
  };
  Line lines[16];
  float max_scale = 0.0f, max_min = 0.0f;
  for (int g = 0; g < groups; ++g) {
    lines[g] = fit(group(g), false);
    max_scale = larger(max_scale, lines[g].scale);
    max_min = larger(max_min, -lines[g].min);
  }

  SuperFit best = {};
  float d = max_scale / float(spec.max_code), dmin = max_min / float(spec.max_code);
  for (int round = 0; round < 3; ++round) {
    SuperFit trial = {p.to_half(d), p.to_half(dmin), {}, {}, 0.0f};
    d = p.from_half(trial.d);
    dmin = p.from_half(trial.dmin);
    // Sums of the least squares for d and dmin over the block: w = d * u - dmin * v, u = code * q, v = code.
    double uu = 0, uv = 0, vv = 0, ux = 0, vx = 0;
    for (int g = 0; g < groups; ++g) {
      const Group members = group(g);
      const int scale = nearest(lines[g].scale * reciprocal(d), 0, spec.max_code);
      const int min = nearest(-lines[g].min * reciprocal(dmin), 0, spec.max_code);
      float least = INFINITY;
      for (int s = scale - 1; s <= scale + 1; ++s)
        for (int m = min - 1; m <= min + 1; ++m) {
          if (s < 0 || m < 0 || s > spec.max_code || m > spec.max_code) continue;
          const Line line = {d * float(s), -(dmin * float(m))};
          const float error = error_of(members, line, line);
          if (error < least) {
            least = error;
            trial.scale[g] = uint8_t(s);
            trial.min[g] = uint8_t(m);
          }
        }
      trial.error += least;
      const Sums at = sums(members, {d * float(trial.scale[g]), -(dmin * float(trial.min[g]))});
      const double s = trial.scale[g], m = trial.min[g];
      uu += s * s * at.qq;
      uv += s * m * at.q;
      vv += m * m * at.w;
      ux += s * at.qx;
      vx += m * at.x;
    }
    if (round == 0 || trial.error < best.error) best = trial;
    const double determinant = uu * vv - uv * uv;
    if (determinant > 0.0) {
      d = float((ux * vv - vx * uv) / determinant);
      dmin = float((ux * uv - vx * uu) / determinant);
    } else if (uu > 0.0) {
      d = float(ux / uu);
    }
    if (!(d > 0.0f) || !(dmin >= 0.0f)) break;
  }

  out.d = best.d;
  out.dmin = best.dmin;
  for (int g = 0; g < groups; ++g) {
    out.scale[g] = best.scale[g];
    out.min[g] = best.min[g];
    const Line line = {p.from_half(best.d) * float(best.scale[g]), -(p.from_half(best.dmin) * float(best.min[g]))};
    const float inverse = reciprocal(line.scale);
    for (int i = g * spec.group; i < (g + 1) * spec.group; ++i)
      out.q[i] = uint8_t(nearest((p.x[i] - line.min) * inverse, 0, spec.max_q));
  }
}

}  // namespace gristmill::formats

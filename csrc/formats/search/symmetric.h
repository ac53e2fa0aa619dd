// Scales alone: w = scale * level, the level from a codebook, either the integers -zero..zero-1 or IQ4's sixteen.
//
// A group is fitted by rounding it at several scales and taking the one whose least squares explains most of it. The
// scale's sign puts the extreme weight on the codebook's longer, negative side. A super-block expresses its groups'
// scales as multiples of d: each group takes the code, near its optimum, with the least error, and d is solved for
// again.
#pragma once

#include "formats/iq4_codebook.h"
#include "formats/search/groups.h"

namespace gristmill::formats {
namespace {

// Where a fit puts the extreme weight of a group: so many steps from the codebook's lowest level. It may matter little,
// and then the other sign can suit the rest better.
struct Trials {
  bool own_sign;
  int8_t step[4];
};
constexpr Trials kTrials[] = {{true, {-9, -8, -7, -6}}, {true, {-5, -4, -3, -2}}, {true, {-1, 0, 1, 2}},
                              {true, {3, 4, 5, 6}},     {true, {7, 8, 9, 9}},     {false, {-8, -4, 0, 4}}};
constexpr Trials kFewTrials[] = {{true, {-8, -5, -2, 0}}, {true, {2, 4, 6, 9}}, {false, {-8, -4, 0, 4}}};
// No std::span, whose members another file compiled for less might share.
struct TrialRange {
  const Trials* first;
  int n;
  const Trials* begin() const { return first; }
  const Trials* end() const { return first + n; }
};
constexpr TrialRange kAllTrials = {kTrials, 6}, kSomeTrials = {kFewTrials, 3};

struct Integers {
  float zero;
  // A dozen gain Q3_K all but one part in ten thousand of what two dozen do.
  TrialRange trials() const { return zero <= 4.0f ? kSomeTrials : kAllTrials; }
  float lowest() const { return -zero; }
  float trial_step() const { return 0.1f; }
  F round(F v) const { return nearest_each(v, all(-zero), all(zero - 1.0f)); }
  F index(F v) const { return round(v) + zero; }
};

struct Iq4Tables {
  float level[16];
  float bound[16 + 8] = {};  // halfway between a level and the next; pick() reads sixteen from any of the first eight
};
constexpr Iq4Tables make_iq4_tables() {
  Iq4Tables t = {};
  for (int k = 0; k < 16; ++k) t.level[k] = float(iq4_level(k));
  for (int k = 0; k < 15; ++k) t.bound[k] = (t.level[k] + t.level[k + 1]) * 0.5f;
  return t;
}
constexpr Iq4Tables kIq4 = make_iq4_tables();

struct Iq4Levels {
  TrialRange trials() const { return kAllTrials; }
  float lowest() const { return -127.0f; }
  float trial_step() const { return 1.0f; }
  F round(F v) const { return pick(kIq4.level, find(v)); }
  F index(F v) const { return to_float(find(v)); }

 private:
  // Four halvings: the index is the number of bounds that v reaches.
  static I find(F v) {
    I index = {};
    for (const int step : {8, 4, 2, 1}) index = add_where(at_least(v, pick(kIq4.bound + step - 1, index)), index, step);
    return index;
  }
};

// kLanes groups of a batch: weight i of each at x + kGroups * i.
struct SymmetricGroups {
  const float* x;
  const float* share;
  int n;
};

// Least squares at the levels that x * inverse rounds to: sums of share * x * level and share * level^2.
struct Moments {
  F xl, ll;
  // Explains scale() * xl of the sum of share * x^2; 0 where all levels are.
  F scale() const { return select(less(all(0.0f), ll), xl / ll, all(0.0f)); }
};

// At kScales scales at once: one alone would wait for the latency of its sums.
template <int kScales, class Codebook>
inline void moments_at(const SymmetricGroups& g, const F (&inverse)[kScales], const Codebook& codebook,
                       Moments (&moments)[kScales]) {
  for (int k = 0; k < kScales; ++k) moments[k] = {all(0.0f), all(0.0f)};
  for (int i = 0; i < g.n; ++i) {
    const F x = load(g.x + kGroups * i), share = load(g.share + kGroups * i);
    for (int k = 0; k < kScales; ++k) {
      const F level = codebook.round(x * inverse[k]), weighted = share * level;
      moments[k].xl += weighted * x;
      moments[k].ll += weighted * level;
    }
  }
}

template <int kScales, class Codebook>
inline void errors_of(const SymmetricGroups& g, const F (&scales)[kScales], const Codebook& codebook,
                      F (&errors)[kScales]) {
  F inverse[kScales];
  for (int k = 0; k < kScales; ++k) {
    inverse[k] = reciprocal_each(scales[k]);
    errors[k] = all(0.0f);
  }
  for (int i = 0; i < g.n; ++i) {
    const F x = load(g.x + kGroups * i), share = load(g.share + kGroups * i);
    for (int k = 0; k < kScales; ++k) {
      const F miss = codebook.round(x * inverse[k]) * scales[k] - x;
      errors[k] += share * miss * miss;
    }
  }
}

// The number of largest magnitude, with its sign; the first of several.
inline float extreme(const float* x, int n) {
  float best = 0.0f;
  for (int i = 0; i < n; ++i)
    if (magnitude(x[i]) > magnitude(best)) best = x[i];
  return best;
}

template <class Codebook>
inline F fit(const SymmetricGroups& g, const Codebook& codebook) {
  F peak = all(0.0f);
  for (int i = 0; i < g.n; ++i) {
    const F x = load(g.x + kGroups * i);
    peak = select(less(abs_each(peak), abs_each(x)), x, peak);
  }
  const F inverse_peak = reciprocal_each(peak);
  F best = peak / codebook.lowest(), most = all(0.0f);
  const auto consider = [&]<int kScales>(const F(&inverse)[kScales]) {
    Moments moments[kScales];
    moments_at(g, inverse, codebook, moments);
    for (int k = 0; k < kScales; ++k) {
      const F scale = moments[k].scale(), explained = scale * moments[k].xl;
      const M better = less(most, explained);
      most = select(better, explained, most);
      best = select(better, scale, best);
    }
  };
  for (const Trials& t : codebook.trials()) {
    F inverse[4];
    for (int k = 0; k < 4; ++k) {
      const float step = float(t.step[k]) * codebook.trial_step();
      inverse[k] = (t.own_sign ? step + codebook.lowest() : step - codebook.lowest()) * inverse_peak;
    }
    consider(inverse);
  }
  for (int i = 0; i < 2; ++i) {
    const F inverse[1] = {reciprocal_each(best)};
    consider(inverse);
  }
  return select(less(all(0x1p-40f), abs_each(peak)), best, all(0.0f));
}

template <class Codebook>
inline void store_levels(const Batch& batch, const float* scales, const Codebook& codebook, uint8_t* levels) {
  for (int v = 0; v < kGroups; v += kLanes) {
    const F inverse = reciprocal_each(load(scales + v));
    for (int i = 0; i < batch.size; ++i)
      store_bytes(levels + kGroups * i + v, codebook.index(load(batch.x + kGroups * i + v) * inverse));
  }
}

// Blocks of 32 with a scale of their own.
template <class Codebook>
inline void symmetric_blocks(const float* x, const float* importance, int64_t n, const Codebook& codebook, uint16_t* d,
                             uint8_t* q) {
  for (int64_t i = 0; i < n; i += kGroups) {
    const int blocks = n - i < kGroups ? int(n - i) : kGroups;
    const Batch batch(x + i * 32, importance ? importance + i * 32 : nullptr, blocks, 32, 1);
    alignas(64) float scales[kGroups];
    for (int v = 0; v < kGroups; v += kLanes)
      store(scales + v, fit(SymmetricGroups{batch.x + v, batch.share + v, 32}, codebook));
    for (int b = 0; b < kGroups; ++b) {
      const uint16_t bits = b < blocks && !batch.is_zero[b] ? batch.to_half(b, scales[b]) : 0;
      scales[b] = batch.from_half(b, bits);
      if (b < blocks) d[i + b] = bits;
    }
    alignas(64) uint8_t levels[32 * kGroups], ordered[32 * kGroups];
    store_levels(batch, scales, codebook, levels);
    in_order(levels, 32, ordered);
    std::memcpy(q + i * 32, ordered, size_t(blocks) * 32);
  }
}

// Of the codes near its optimum each group takes the one with the least error: where one group is much larger than the
// others, their codes are small numbers and this is worth 1 %.
struct SymmetricCodes {
  alignas(64) float scale[kGroups], error[kGroups], xl[kGroups], ll[kGroups];
};

template <class Codebook>
inline void choose_codes(const Batch& batch, int max_code, const float* scales, const float* d,
                         const Codebook& codebook, SymmetricCodes& codes) {
  const F low = all(float(-max_code - 1)), high = all(float(max_code));
  for (int v = 0; v < kGroups; v += kLanes) {
    const SymmetricGroups g = {batch.x + v, batch.share + v, batch.size};
    const F step = load(d + v), near = nearest_each(load(scales + v) * reciprocal_each(step), low, high);
    F least = all(__builtin_inff()), code = near;
    F steps[3], errors[3];
    for (int k = 0; k < 3; ++k) steps[k] = step * (near + float(k - 1));
    errors_of(g, steps, codebook, errors);
    for (int k = 0; k < 3; ++k) {
      const F c = near + float(k - 1);
      const M inside = both(less(low - 0.5f, c), less(c, high + 0.5f)), better = both(inside, less(errors[k], least));
      least = select(better, errors[k], least);
      code = select(better, c, code);
    }
    Moments m[1];
    const F inverse[1] = {reciprocal_each(step * code)};
    moments_at(g, inverse, codebook, m);
    store(codes.scale + v, code);
    store(codes.error + v, least);
    store(codes.xl + v, m[0].xl);
    store(codes.ll + v, m[0].ll);
  }
}

constexpr int kRounds = 2;  // a third would lower the error by one part in ten thousand

template <class Codebook>
inline void fit_symmetric_batch(const Batch& batch, int max_code, const Codebook& codebook, SymmetricSuperBlock* out) {
  const int groups = batch.joined, n_blocks = batch.n / groups < kSuperBlocks ? batch.n / groups : kSuperBlocks;
  alignas(64) float scales[kGroups], d[kGroups];
  for (int v = 0; v < kGroups; v += kLanes)
    store(scales + v, fit(SymmetricGroups{batch.x + v, batch.share + v, batch.size}, codebook));
  float trial[kGroups], least[kGroups];
  for (int k = 0; k < kGroups; ++k) d[k] = 0.0f;
  for (int b = 0; b < n_blocks; ++b) {
    out[b] = {};
    least[b] = __builtin_inff();
    trial[b] = batch.is_zero[b] ? 0.0f : extreme(scales + b * groups, groups) / float(-max_code - 1);
  }
  SymmetricCodes codes;
  for (int round = 0; round < kRounds; ++round) {
    uint16_t bits[kGroups];
    bool any = false;
    for (int b = 0; b < n_blocks; ++b) {
      if (trial[b] == 0.0f) continue;
      any = true;
      bits[b] = batch.to_half(b, trial[b]);
      fill_block(d, b, groups, batch.from_half(b, bits[b]));
    }
    if (!any) break;
    choose_codes(batch, max_code, scales, d, codebook, codes);
    for (int b = 0; b < n_blocks; ++b) {
      if (trial[b] == 0.0f) continue;
      float error = 0.0f;
      double xl = 0.0, ll = 0.0;  // Moments of the whole block at the levels code * level
      for (int g = b * groups; g < (b + 1) * groups; ++g) {
        error += codes.error[g];
        xl += double(codes.scale[g]) * codes.xl[g];
        ll += double(codes.scale[g]) * codes.scale[g] * codes.ll[g];
      }
      if (error < least[b]) {
        least[b] = error;
        out[b].d = bits[b];
        for (int g = 0; g < groups; ++g) out[b].scale[g] = int8_t(codes.scale[b * groups + g]);
      }
      trial[b] = ll > 0.0 ? float(xl / ll) : 0.0f;
    }
  }
  for (int k = 0; k < kGroups; ++k) scales[k] = 0.0f;
  for (int b = 0; b < n_blocks; ++b)
    for (int g = 0; g < groups; ++g) scales[b * groups + g] = batch.from_half(b, out[b].d) * float(out[b].scale[g]);
  alignas(64) uint8_t levels[32 * kGroups], ordered[32 * kGroups];
  store_levels(batch, scales, codebook, levels);
  in_order(levels, batch.size, ordered);
  for (int b = 0; b < n_blocks; ++b) std::memcpy(out[b].q, ordered + 256 * b, 256);
}

template <class Codebook>
inline void symmetric_super(const float* x, const float* importance, int64_t n, int size, int max_code,
                            const Codebook& codebook, SymmetricSuperBlock* out) {
  const int groups = 256 / size, step = kGroups / groups;
  for (int64_t i = 0; i < n; i += step) {
    const int blocks = n - i < step ? int(n - i) : step;
    const Batch batch(x + i * 256, importance ? importance + i * 256 : nullptr, blocks * groups, size, groups);
    fit_symmetric_batch(batch, max_code, codebook, out + i);
  }
}

}  // namespace
}  // namespace gristmill::formats

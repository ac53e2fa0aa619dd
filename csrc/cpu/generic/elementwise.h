// Norm, rotation, gating and addition, written once over a vocabulary of vectors V (isa/*/vec.h):
//   V::T, V::N lanes; zero, set, load, load_n, store, store_n, add, sub, mul, div, fma(a, b, c) = a b + c, max, sum,
//   maximum, round, scale_pow2(x, n) = x 2^n, transpose (N x N), first_n (other lanes 0), from_half, from_bf16,
//   from_int8_of_four.
#pragma once

#include <cmath>
#include <cstdint>

#include "backend.h"

namespace gristmill::cpu {

// e^x within 2 ulp: x = n ln 2 + r, |r| <= ln 2 / 2, and e^r by its Taylor polynomial of degree 7.
template <class V>
inline typename V::T exponential(typename V::T x) {
  // min and max return their second operand where one is NaN: a NaN passes through and is seen at the logits.
  x = V::max(V::set(-87.3f), V::min(V::set(88.7f), x));
  const typename V::T n = V::round(V::mul(x, V::set(1.44269504f)));
  typename V::T r = V::fma(n, V::set(-0.693359375f), x);  // ln 2 in two parts, the first exact in products with n
  r = V::fma(n, V::set(2.12194440e-4f), r);
  typename V::T p = V::set(1.0f / 5040);
  p = V::fma(p, r, V::set(1.0f / 720));
  p = V::fma(p, r, V::set(1.0f / 120));
  p = V::fma(p, r, V::set(1.0f / 24));
  p = V::fma(p, r, V::set(1.0f / 6));
  p = V::fma(p, r, V::set(0.5f));
  p = V::fma(p, r, V::set(1.0f));
  p = V::fma(p, r, V::set(1.0f));
  return V::scale_pow2(p, n);
}

// f(i, count) over [0, n) in steps of a vector; count < N in the last step of an uneven length.
template <class V, class F>
inline void for_vectors(int64_t n, const F& f) {
  int64_t i = 0;
  for (; i + V::N <= n; i += V::N) f(i, V::N);
  if (i < n) f(i, int(n - i));
}

template <class V>
inline typename V::T load_some(const float* p, int count) {
  return count == V::N ? V::load(p) : V::load_n(p, count);
}
template <class V>
inline void store_some(float* p, typename V::T x, int count) {
  if (count == V::N) {
    V::store(p, x);
  } else {
    V::store_n(p, x, count);
  }
}

template <class V>
void rms_norm(const float* x, const float* weight, float eps, int64_t n, float* out) {
  typename V::T a = V::zero(), b = V::zero();
  int64_t i = 0;
  for (; i + 2 * V::N <= n; i += 2 * V::N) {
    const typename V::T u = V::load(x + i), v = V::load(x + i + V::N);
    a = V::fma(u, u, a);
    b = V::fma(v, v, b);
  }
  for_vectors<V>(n - i, [&](int64_t j, int count) {
    const typename V::T u = load_some<V>(x + i + j, count);
    a = V::fma(u, u, a);
  });
  // Squares that overflow would make every output zero; as NaN they are seen at the logits.
  const float squares = V::sum(V::add(a, b)), mean = squares - squares == 0.0f ? squares / float(n) : NAN;
  const typename V::T scale = V::set(1.0f / std::sqrt(mean + eps));
  for_vectors<V>(n, [&](int64_t j, int count) {
    const typename V::T u = V::mul(load_some<V>(x + j, count), scale);
    store_some<V>(out + j, V::mul(u, load_some<V>(weight + j, count)), count);
  });
}

template <class V>
void rope_neox(float* head, int half, const float* cosine, const float* sine) {
  for_vectors<V>(half, [&](int64_t i, int count) {
    const typename V::T c = load_some<V>(cosine + i, count), s = load_some<V>(sine + i, count);
    const typename V::T x = load_some<V>(head + i, count), y = load_some<V>(head + half + i, count);
    store_some<V>(head + i, V::sub(V::mul(x, c), V::mul(y, s)), count);
    store_some<V>(head + half + i, V::fma(y, c, V::mul(x, s)), count);
  });
}

template <class V>
void rope(float* head, int dims, const float* cos_sin, RopeStyle style) {
  const int half = dims / 2;
  if (style == RopeStyle::kNeox) return rope_neox<V>(head, half, cos_sin, cos_sin + half);
  for (int i = 0; i < half; ++i) {
    const float x = head[2 * i], y = head[2 * i + 1], c = cos_sin[i], s = cos_sin[half + i];
    head[2 * i] = x * c - y * s;
    head[2 * i + 1] = x * s + y * c;
  }
}

template <class V>
void swiglu(float* gate, const float* up, int64_t n) {
  for_vectors<V>(n, [&](int64_t i, int count) {
    const typename V::T g = load_some<V>(gate + i, count), u = load_some<V>(up + i, count);
    const typename V::T e = exponential<V>(V::sub(V::zero(), g));
    store_some<V>(gate + i, V::mul(V::div(g, V::add(V::set(1.0f), e)), u), count);
  });
}

template <class V>
void add(float* x, const float* y, int64_t n) {
  for_vectors<V>(n, [&](int64_t i, int count) {
    store_some<V>(x + i, V::add(load_some<V>(x + i, count), load_some<V>(y + i, count)), count);
  });
}

}  // namespace gristmill::cpu

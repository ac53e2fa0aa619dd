// The vocabulary of generic/ with one lane.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "core/half.h"

namespace gristmill::cpu {
namespace {

struct ScalarVec {
  using T = float;
  static constexpr int N = 1;
  static constexpr int kQueries = 1, kScoreBlocks = 1, kValueVectors = 1, kDotRows = 1, kDotTokens = 2, kGemmPanels = 1,
                       kGemmTokens = 4;

  static T zero() { return 0.0f; }
  static T set(float x) { return x; }
  static T load(const float* p) { return *p; }
  static T load_n(const float* p, int n) { return n ? *p : 0.0f; }
  static void store(float* p, T x) { *p = x; }
  static void store_n(float* p, T x, int n) {
    if (n) *p = x;
  }
  static T add(T a, T b) { return a + b; }
  static T sub(T a, T b) { return a - b; }
  static T mul(T a, T b) { return a * b; }
  static T div(T a, T b) { return a / b; }
  static T fma(T a, T b, T c) { return a * b + c; }
  static T max(T a, T b) { return a > b ? a : b; }
  static T min(T a, T b) { return a < b ? a : b; }
  static T round(T x) { return std::nearbyint(x); }
  static T scale_pow2(T x, T n) { return n == n ? std::ldexp(x, int(n)) : n; }
  static void transpose(T (&)[1]) {}
  static float sum(T x) { return x; }
  static float maximum(T x) { return x; }
  static T first_n(T x, int n) { return n > 0 ? x : 0.0f; }
  static T from_half(const uint16_t* p) { return half_to_float(*p); }
  static T set_half(const uint16_t* p) { return half_to_float(*p); }
  static T from_bf16(const uint16_t* p) { return bf16_to_float(*p); }
  template <int i>
  static T from_int8_of_four(const int8_t* p) {
    return float(p[i]);
  }
};

}  // namespace
}  // namespace gristmill::cpu

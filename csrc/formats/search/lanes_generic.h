// The vocabulary of the searches without any instruction set of its own: four floats, as every 64-bit machine has them.
// The other lanes_*.h define the same names. A comparison with NaN is false in all of them.
#pragma once

#include <cstdint>
#include <cstring>

namespace gristmill::formats {
namespace {

constexpr int kLanes = 4;
typedef float F __attribute__((vector_size(16)));
typedef int32_t M __attribute__((vector_size(16)));  // what comparisons give: all bits of a lane, or none

using I = M;  // indices

inline F load(const float* p) {
  F v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, F v) { std::memcpy(p, &v, sizeof v); }
inline F all(float v) { return v - F{}; }
inline M less(F a, F b) { return a < b; }
inline M at_least(F a, F b) { return a >= b; }
inline M both(M a, M b) { return a & b; }
inline F select(M m, F a, F b) { return m ? a : b; }
inline F min_each(F a, F b) { return a < b ? a : b; }  // b where one is NaN
inline F max_each(F a, F b) { return a > b ? a : b; }  // b where one is NaN
inline F abs_each(F v) { return F(M(v) & 0x7fffffff); }
inline F sqrt_each(F v) {
  for (int i = 0; i < kLanes; ++i) v[i] = __builtin_sqrtf(v[i]);
  return v;
}
inline float lowest_of(F v) {
  const float a = v[0] < v[1] ? v[0] : v[1], b = v[2] < v[3] ? v[2] : v[3];
  return a < b ? a : b;
}
inline float highest_of(F v) {
  const float a = v[0] > v[1] ? v[0] : v[1], b = v[2] > v[3] ? v[2] : v[3];
  return a > b ? a : b;
}
// Towards zero; numbers of -128..255, as their low bytes.
inline void store_bytes(uint8_t* p, F v) {
  for (int i = 0; i < kLanes; ++i) p[i] = uint8_t(int32_t(v[i]));
}

// to[j][i] = from[i][j] of 4 x 4 floats
inline void transpose_floats(const float* from, int from_stride, float* to, int to_stride) {
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 4; ++j) to[to_stride * j + i] = from[from_stride * i + j];
}
// to[j][i] = from[i][j] of 16 x 16 bytes, those of from without gaps
inline void transpose_bytes(const uint8_t* from, uint8_t* to, int to_stride) {
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 16; ++j) to[to_stride * j + i] = from[16 * i + j];
}

inline I add_where(M m, I v, int n) { return v + (m & (n - I{})); }
inline F to_float(I v) { return __builtin_convertvector(v, F); }
// table[v] of sixteen
inline F pick(const float* table, I v) {
  F r = {};
  for (int i = 0; i < kLanes; ++i) r[i] = table[v[i]];
  return r;
}

}  // namespace
}  // namespace gristmill::formats

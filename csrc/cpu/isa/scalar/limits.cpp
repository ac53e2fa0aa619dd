// Limits of plain C++: the widest of what the compiler makes of these loops for the baseline processor.
#include <algorithm>
#include <cstring>

#include "cpu/limit_kernels.h"

namespace gristmill::cpu {
namespace {

// The compiler has to take it that p's memory changed, so a loop's work is done in each iteration.
inline void forget(const void* p) { asm volatile("" : : "r"(p) : "memory"); }

uint64_t read_bytes(const std::byte* p, size_t n) {
  constexpr int kWords = 8;
  uint64_t sum[kWords] = {};
  for (; n > 0;) {
    uint64_t words[kWords] = {};
    const size_t some = std::min(n, sizeof words);
    if (some == sizeof words) {
      std::memcpy(words, p, sizeof words);
    } else {
      std::memcpy(words, p, some);
    }
    for (int i = 0; i < kWords; ++i) sum[i] ^= words[i];
    p += some;
    n -= some;
  }
  uint64_t all = 0;
  for (const uint64_t s : sum) all ^= s;
  return all;
}

// Long enough a product of 16-bit integers, as the scalar kernels have them, for sums to be reduced rarely.
int64_t multiply_add_int8(int64_t iterations) {
  constexpr int kLength = 256;
  int16_t a[kLength], b[kLength];
  std::fill_n(a, kLength, int16_t(1));
  std::fill_n(b, kLength, int16_t(1));
  int64_t total = 0;
  for (int64_t i = 0; i < iterations; ++i) {
    forget(a);
    forget(b);
    int dot = 0;
    for (int j = 0; j < kLength; ++j) dot += a[j] * b[j];
    total += dot;
  }
  return total;
}

int64_t multiply_add_float(int64_t iterations) {
  constexpr int kLanes = 32;  // in eight registers of four, beside two operands
  float sum[kLanes] = {};
  float a[4] = {1, 1, 1, 1}, b[4] = {1, 1, 1, 1};
  for (int64_t i = 0; i < iterations; ++i) {
    forget(a);
    forget(b);
    for (int j = 0; j < kLanes; ++j) sum[j] += a[j % 4] * b[j % 4];
  }
  double total = 0;
  for (const float s : sum) total += double(s);
  return int64_t(total);
}

}  // namespace

LimitKernels scalar_limits() { return {"scalar", read_bytes, multiply_add_int8, multiply_add_float, nullptr}; }

}  // namespace gristmill::cpu

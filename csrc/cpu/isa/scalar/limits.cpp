// Limits of plain C++: the widest of what the compiler makes of these loops for the baseline processor.
#include <algorithm>
#include <cstring>

#include "cpu/generic/read_bytes.h"
#include "cpu/limit_kernels.h"

namespace gristmill::cpu {
namespace {

// The compiler has to take it that p's memory changed, so a loop's work is done in each iteration.
inline void forget(const void* p) { asm volatile("" : : "r"(p) : "memory"); }

struct Words {
  using T = uint64_t;
  static constexpr size_t kBytes = 8;
  static T zero() { return 0; }
  static T load(const std::byte* p) {
    T x;
    std::memcpy(&x, p, sizeof x);
    return x;
  }
  static T exclusive_or(T a, T b) { return a ^ b; }
  static uint64_t fold(T a) { return a; }
};

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

LimitKernels scalar_limits() {
  return {{read_bytes<Words, 1>, read_bytes<Words, 4>}, multiply_add_int8, multiply_add_float, nullptr, nullptr};
}

}  // namespace gristmill::cpu

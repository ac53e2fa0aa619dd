// Limits of AVX2: vpmaddwd with the add that it needs, and fused multiply-adds, both on 256 bits.
#include "cpu/limit_kernels.h"

#ifdef __AVX2__
#include <immintrin.h>

#include <cstring>

namespace gristmill::cpu {
namespace {

// Independent sums: more than latency times the number of instructions that start in a cycle.
constexpr int kSums = 12;

uint64_t read_bytes(const std::byte* p, size_t n) {
  __m256i sum[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
  const auto load = [](const std::byte* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); };
  for (; n >= 128; n -= 128, p += 128)
    for (int j = 0; j < 4; ++j) sum[j] = _mm256_xor_si256(sum[j], load(p + 32 * j));
  for (; n > 0;) {
    alignas(32) std::byte rest[32] = {};
    const size_t some = n < 32 ? n : 32;
    std::memcpy(rest, p, some);
    sum[0] = _mm256_xor_si256(sum[0], load(rest));
    p += some;
    n -= some;
  }
  alignas(32) uint64_t words[4];
  _mm256_store_si256(reinterpret_cast<__m256i*>(words),
                     _mm256_xor_si256(_mm256_xor_si256(sum[0], sum[1]), _mm256_xor_si256(sum[2], sum[3])));
  return words[0] ^ words[1] ^ words[2] ^ words[3];
}

int64_t multiply_add_int8(int64_t iterations) {
  const __m256i one = _mm256_set1_epi16(1);
  __m256i sum[kSums];
  for (__m256i& s : sum) s = _mm256_setzero_si256();
  for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 12
    for (int j = 0; j < kSums; ++j) {
      __m256i product;
      asm volatile("vpmaddwd %1, %1, %0" : "=x"(product) : "x"(one));
      sum[j] = _mm256_add_epi32(sum[j], product);
    }
  }
  int64_t total = 0;
  for (const __m256i& s : sum) {
    alignas(32) int32_t lanes[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), s);
    for (const int32_t lane : lanes) total += lane;
  }
  return total;
}

int64_t multiply_add_float(int64_t iterations) {
  const __m256 one = _mm256_set1_ps(1.0f);
  __m256 sum[kSums];
  for (__m256& s : sum) s = _mm256_setzero_ps();
  for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 12
    for (int j = 0; j < kSums; ++j) asm volatile("vfmadd231ps %1, %1, %0" : "+x"(sum[j]) : "x"(one));
  }
  double total = 0;
  for (const __m256& s : sum) {
    alignas(32) float lanes[8];
    _mm256_store_ps(lanes, s);
    for (const float lane : lanes) total += double(lane);
  }
  return int64_t(total);
}

}  // namespace

LimitKernels avx2_limits() { return {"avx2", read_bytes, multiply_add_int8, multiply_add_float, nullptr}; }

}  // namespace gristmill::cpu
#endif

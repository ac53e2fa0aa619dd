// Limits of AVX-512 VNNI: vpdpbusd, fused multiply-adds and, where the processor has it, vdpbf16ps, all on 512 bits.
#include "cpu/limit_kernels.h"

#ifdef __AVX512VNNI__
#include <immintrin.h>

namespace gristmill::cpu {
namespace {

// Independent sums: more than latency times the number of instructions that start in a cycle.
constexpr int kSums = 12;

uint64_t read_bytes(const std::byte* p, size_t n) {
  __m512i sum[4] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};
  for (; n >= 256; n -= 256, p += 256)
    for (int j = 0; j < 4; ++j) sum[j] = _mm512_xor_si512(sum[j], _mm512_loadu_si512(p + 64 * j));
  for (; n > 0;) {
    const size_t some = n < 64 ? n : 64;
    sum[0] = _mm512_xor_si512(sum[0], _mm512_maskz_loadu_epi8(~__mmask64(0) >> (64 - some), p));
    p += some;
    n -= some;
  }
  alignas(64) uint64_t words[8];
  _mm512_store_si512(words, _mm512_xor_si512(_mm512_xor_si512(sum[0], sum[1]), _mm512_xor_si512(sum[2], sum[3])));
  uint64_t all = 0;
  for (const uint64_t word : words) all ^= word;
  return all;
}

int64_t multiply_add_int8(int64_t iterations) {
  const __m512i one = _mm512_set1_epi8(1);
  __m512i sum[kSums];
  for (__m512i& s : sum) s = _mm512_setzero_si512();
  for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 12
    for (int j = 0; j < kSums; ++j) asm volatile("vpdpbusd %1, %1, %0" : "+v"(sum[j]) : "v"(one));
  }
  int64_t total = 0;
  for (const __m512i& s : sum) {
    alignas(64) int32_t lanes[16];
    _mm512_store_si512(lanes, s);
    for (const int32_t lane : lanes) total += lane;
  }
  return total;
}

int64_t total_of(const __m512 (&sum)[kSums]) {
  double total = 0;
  for (const __m512& s : sum) {
    alignas(64) float lanes[16];
    _mm512_store_ps(lanes, s);
    for (const float lane : lanes) total += double(lane);
  }
  return int64_t(total);
}

int64_t multiply_add_float(int64_t iterations) {
  const __m512 one = _mm512_set1_ps(1.0f);
  __m512 sum[kSums];
  for (__m512& s : sum) s = _mm512_setzero_ps();
  for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 12
    for (int j = 0; j < kSums; ++j) asm volatile("vfmadd231ps %1, %1, %0" : "+v"(sum[j]) : "v"(one));
  }
  return total_of(sum);
}

// As text for the assembler, since the set's own flags do not include it.
int64_t multiply_add_bf16(int64_t iterations) {
  const __m512i one = _mm512_set1_epi16(0x3f80);
  __m512 sum[kSums];
  for (__m512& s : sum) s = _mm512_setzero_ps();
  for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 12
    for (int j = 0; j < kSums; ++j) asm volatile("vdpbf16ps %1, %1, %0" : "+v"(sum[j]) : "v"(one));
  }
  return total_of(sum);
}

}  // namespace

LimitKernels avx512_vnni_limits() {
  const bool has_bf16 = __builtin_cpu_supports("avx512bf16");
  return {"avx512_vnni", read_bytes, multiply_add_int8, multiply_add_float, has_bf16 ? multiply_add_bf16 : nullptr};
}

}  // namespace gristmill::cpu
#endif

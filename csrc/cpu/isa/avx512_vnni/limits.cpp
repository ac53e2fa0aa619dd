// Limits of AVX-512 VNNI: vpdpbusd, vpdpwssd, fused multiply-adds and, where the processor has it, vdpbf16ps, all on
// 512 bits.
#include "cpu/generic/peak_loop.h"
#include "cpu/generic/read_bytes.h"
#include "cpu/limit_kernels.h"

#ifdef __AVX512VNNI__
#include <immintrin.h>

namespace gristmill::cpu {
namespace {

struct Words {
  using T = __m512i;
  static constexpr size_t kBytes = 64;
  static T zero() { return _mm512_setzero_si512(); }
  static T load(const std::byte* p) { return _mm512_loadu_si512(p); }
  static T exclusive_or(T a, T b) { return _mm512_xor_si512(a, b); }
  static uint64_t fold(T a) {
    alignas(64) uint64_t words[8];
    _mm512_store_si512(words, a);
    uint64_t all = 0;
    for (const uint64_t word : words) all ^= word;
    return all;
  }
};

int64_t total_of(__m512i sum) {
  alignas(64) int32_t lanes[16];
  _mm512_store_si512(lanes, sum);
  int64_t total = 0;
  for (const int32_t lane : lanes) total += lane;
  return total;
}

int64_t total_of(__m512 sum) {
  alignas(64) float lanes[16];
  _mm512_store_ps(lanes, sum);
  double total = 0;
  for (const float lane : lanes) total += double(lane);
  return int64_t(total);
}

GRISTMILL_PEAK_LOOP(multiply_add_int8, GRISTMILL_ON_SUMS("vpdpbusd"), "v", __m512i, _mm512_setzero_si512(),
                    _mm512_set1_epi8(1), total_of)
GRISTMILL_PEAK_LOOP(multiply_add_int16, GRISTMILL_ON_SUMS("vpdpwssd"), "v", __m512i, _mm512_setzero_si512(),
                    _mm512_set1_epi16(1), total_of)
GRISTMILL_PEAK_LOOP(multiply_add_float, GRISTMILL_ON_SUMS("vfmadd231ps"), "v", __m512, _mm512_setzero_ps(),
                    _mm512_set1_ps(1.0f), total_of)
// The set's own flags do not include it, the assembler knows it all the same.
GRISTMILL_PEAK_LOOP(multiply_add_bf16, GRISTMILL_ON_SUMS("vdpbf16ps"), "v", __m512, _mm512_setzero_ps(),
                    _mm512_castsi512_ps(_mm512_set1_epi16(0x3f80)), total_of)

}  // namespace

LimitKernels avx512_vnni_limits() {
  const bool has_bf16 = __builtin_cpu_supports("avx512bf16");
  return {{read_bytes<Words, 1>, read_bytes<Words, 4>},
          multiply_add_int8,
          multiply_add_float,
          has_bf16 ? multiply_add_bf16 : nullptr,
          multiply_add_int16};
}

}  // namespace gristmill::cpu
#endif

// Limits of AVX2: vpmaddubsw and vpmaddwd with the add that each needs, and fused multiply-adds, all on 256 bits.
#include "cpu/generic/peak_loop.h"
#include "cpu/generic/read_bytes.h"
#include "cpu/limit_kernels.h"

#ifdef __AVX2__
#include <immintrin.h>

namespace gristmill::cpu {
namespace {

struct Words {
  using T = __m256i;
  static constexpr size_t kBytes = 32;
  static T zero() { return _mm256_setzero_si256(); }
  static T load(const std::byte* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static T exclusive_or(T a, T b) { return _mm256_xor_si256(a, b); }
  static uint64_t fold(T a) {
    alignas(32) uint64_t words[4];
    _mm256_store_si256(reinterpret_cast<__m256i*>(words), a);
    return words[0] ^ words[1] ^ words[2] ^ words[3];
  }
};

template <class Lane>
int64_t total_of_lanes(__m256i sum) {
  alignas(32) Lane lanes[32 / sizeof(Lane)];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), sum);
  int64_t total = 0;
  for (const Lane lane : lanes) total += lane;
  return total;
}

int64_t total_of(__m256 sum) {
  alignas(32) float lanes[8];
  _mm256_store_ps(lanes, sum);
  double total = 0;
  for (const float lane : lanes) total += double(lane);
  return int64_t(total);
}

// These products do not add to a sum, so each takes an add. Three registers are left for them.
#define GRISTMILL_ADD_PRODUCT(multiply, add, product, sum) \
  multiply " %12, %12, %%" product "\n\t" add " %%" product ", %" sum ", %" sum "\n\t"
#define GRISTMILL_ADD_PRODUCTS(multiply, add, x, y, z) \
  GRISTMILL_ADD_PRODUCT(multiply, add, "ymm13", x)     \
  GRISTMILL_ADD_PRODUCT(multiply, add, "ymm14", y)     \
  GRISTMILL_ADD_PRODUCT(multiply, add, "ymm15", z)
#define GRISTMILL_ON_SUMS_BY(multiply, add)            \
  GRISTMILL_ADD_PRODUCTS(multiply, add, "0", "1", "2") \
  GRISTMILL_ADD_PRODUCTS(multiply, add, "3", "4", "5") \
  GRISTMILL_ADD_PRODUCTS(multiply, add, "6", "7", "8") \
  GRISTMILL_ADD_PRODUCTS(multiply, add, "9", "10", "11")

GRISTMILL_PEAK_LOOP(add_products_of_bytes, GRISTMILL_ON_SUMS_BY("vpmaddubsw", "vpaddw"), "x", __m256i,
                    _mm256_setzero_si256(), _mm256_set1_epi8(1), total_of_lanes<int16_t>, "xmm13", "xmm14", "xmm15")
GRISTMILL_PEAK_LOOP(multiply_add_int16, GRISTMILL_ON_SUMS_BY("vpmaddwd", "vpaddd"), "x", __m256i,
                    _mm256_setzero_si256(), _mm256_set1_epi16(1), total_of_lanes<int32_t>, "xmm13", "xmm14", "xmm15")
GRISTMILL_PEAK_LOOP(multiply_add_float, GRISTMILL_ON_SUMS("vfmadd231ps"), "x", __m256, _mm256_setzero_ps(),
                    _mm256_set1_ps(1.0f), total_of)

// Sums of 16 bits count to 32767, by twos.
int64_t multiply_add_int8(int64_t iterations) {
  constexpr int64_t kMost = 16383;
  int64_t total = 0;
  for (; iterations > 0; iterations -= kMost) total += add_products_of_bytes(iterations < kMost ? iterations : kMost);
  return total;
}

}  // namespace

LimitKernels avx2_limits() {
  return {
      {read_bytes<Words, 1>, read_bytes<Words, 4>}, multiply_add_int8, multiply_add_float, nullptr, multiply_add_int16};
}

}  // namespace gristmill::cpu
#endif

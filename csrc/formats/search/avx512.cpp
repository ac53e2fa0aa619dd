#if defined(__AVX512BW__)
#include "formats/search/lanes_avx512.h"
//
#include "formats/search/table.h"

namespace gristmill::formats {

namespace {

void halves(const uint16_t* h, float* y, int64_t n) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16)
    _mm512_storeu_ps(y + i, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(h + i))));
  for (; i < n; ++i) y[i] = half_to_float(h[i]);
}

void to_halves(const float* x, uint16_t* h, int64_t n) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(h + i),
                        _mm512_cvtps_ph(_mm512_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT));
  for (; i < n; ++i) h[i] = float_to_half(x[i]);
}

}  // namespace

extern const Search kAvx512Search;
constinit const Search kAvx512Search = make_table("avx512", halves, to_halves);

}  // namespace gristmill::formats
#endif

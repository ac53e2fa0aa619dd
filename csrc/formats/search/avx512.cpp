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

}  // namespace

extern const Search kAvx512Search;
constinit const Search kAvx512Search = make_table("avx512", halves);

}  // namespace gristmill::formats
#endif

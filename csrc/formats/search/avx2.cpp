#if defined(__AVX2__)
#include "formats/search/lanes_avx2.h"
//
#include "formats/search/table.h"

namespace gristmill::formats {

namespace {

void halves(const uint16_t* h, float* y, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    __m128i halves;
    std::memcpy(&halves, h + i, sizeof halves);
    _mm256_storeu_ps(y + i, _mm256_cvtph_ps(halves));
  }
  for (; i < n; ++i) y[i] = half_to_float(h[i]);
}

void to_halves(const float* x, uint16_t* h, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT);
    std::memcpy(h + i, &halves, sizeof halves);
  }
  for (; i < n; ++i) h[i] = float_to_half(x[i]);
}

}  // namespace

extern const Search kAvx2Search;
constinit const Search kAvx2Search = make_table("avx2", halves, to_halves);

}  // namespace gristmill::formats
#endif

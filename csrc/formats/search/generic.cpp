#include "formats/search/lanes_generic.h"
//
#include "formats/search/table.h"

namespace gristmill::formats {

namespace {

void halves(const uint16_t* h, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = half_to_float(h[i]);
}

void to_halves(const float* x, uint16_t* h, int64_t n) {
  for (int64_t i = 0; i < n; ++i) h[i] = float_to_half(x[i]);
}

}  // namespace

extern const Search kGenericSearch;
constinit const Search kGenericSearch = make_table("generic", halves, to_halves);

}  // namespace gristmill::formats

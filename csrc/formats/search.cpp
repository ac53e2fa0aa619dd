#include "formats/search.h"

#include <cstdlib>
#include <string_view>
#if defined(GRISTMILL_SEARCH_X86)
#include <cpuid.h>
#endif

namespace gristmill::formats {

extern const Search kGenericSearch, kAvx2Search, kAvx512Search;

namespace {

#if defined(GRISTMILL_SEARCH_X86)
bool has_f16c() {  // __builtin_cpu_supports does not know it in every compiler
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

const Search& choose() {
  const char* asked = std::getenv("GRISTMILL_ISA");
  const std::string_view isa = asked ? asked : "";
#if defined(GRISTMILL_SEARCH_X86)
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
  const bool avx2 = __builtin_cpu_supports("avx2") && has_f16c();
  if (avx512 && isa != "scalar" && isa != "avx2") return kAvx512Search;
  if (avx2 && isa != "scalar") return kAvx2Search;
#endif
  return kGenericSearch;
}

}  // namespace

const Search& search() {
  static const Search& chosen = choose();
  return chosen;
}

}  // namespace gristmill::formats

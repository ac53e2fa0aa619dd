#include "formats/search.h"

#include <cstdlib>
#include <string_view>

namespace gristmill::formats {

extern const Search kGenericSearch, kAvx2Search, kAvx512Search;

namespace {

const Search& choose() {
  const char* asked = std::getenv("GRISTMILL_ISA");
  const std::string_view isa = asked ? asked : "";
#if defined(GRISTMILL_SEARCH_X86)
  __builtin_cpu_init();
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c");
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

#include "cpu/dispatch.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <cstdlib>

#include "core/error.h"

namespace gristmill::cpu {
namespace {

struct Candidate {
  const char* name;
  const Kernels& (*kernels)();
  bool (*supported)();
};

// The compiler's run-time check covers XGETBV too: a set whose registers the system does not save is not supported.
#if defined(__x86_64__)
// Asked by hand, since older compilers' checks do not know its name. Its registers are AVX's.
bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C) != 0;
}
[[maybe_unused]] bool has_avx512_vnni() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni") && has_f16c();
}
[[maybe_unused]] bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}
#endif

// Best first.
const Candidate kCandidates[] = {
#if defined(__x86_64__)
#ifdef GRISTMILL_HAS_AVX512_VNNI
    {"avx512_vnni", avx512_vnni_kernels, has_avx512_vnni},
#endif
#ifdef GRISTMILL_HAS_AVX2
    {"avx2", avx2_kernels, has_avx2},
#endif
#endif
    {"scalar", scalar_kernels, [] { return true; }},
};

}  // namespace

std::vector<std::string> built_isas() {
  std::vector<std::string> names;
  for (const Candidate& c : kCandidates) names.push_back(c.name);
  return names;
}

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (const Candidate& c : kCandidates)
    if (c.supported()) names.push_back(c.name);
  return names;
}

const Kernels& choose_kernels(const std::string& name) {
  const char* forced = std::getenv("GRISTMILL_ISA");
  const std::string wanted = !name.empty() ? name : forced ? forced : "";
  std::string known;
  for (const Candidate& c : kCandidates) {
    if (wanted.empty() ? c.supported() : wanted == c.name) {
      if (!c.supported()) throw DeviceError("[isa] " + wanted + " is not supported by this processor");
      return c.kernels();
    }
    known += (known.empty() ? "" : ", ") + std::string(c.name);
  }
  throw ArgumentError("[isa] GRISTMILL_ISA, expected one of " + known + ", got " + wanted);
}

}  // namespace gristmill::cpu

#include "cpu/dispatch.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
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
// Linux saves tiles for a process that has asked: ARCH_REQ_XCOMP_PERM for XTILEDATA, for all of its threads.
bool may_use_tiles() {
#ifdef __linux__
  static const bool allowed = syscall(SYS_arch_prctl, 0x1023, 18) == 0;
  return allowed;
#else
  return false;
#endif
}
[[maybe_unused]] bool has_amx_bf16() {
  unsigned a, b, c, d;
  if (!has_avx512_vnni() || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  const bool tiles = (d & 1u << 24) != 0, of_bf16 = (d & 1u << 22) != 0, of_int8 = (d & 1u << 25) != 0;
  const bool avx512_vbmi = (c & 1u << 1) != 0;
  if (!tiles || !of_bf16 || !of_int8 || !avx512_vbmi || !__get_cpuid_count(7, 1, &a, &b, &c, &d)) return false;
  const bool avx512_bf16 = (a & 1u << 5) != 0;
  return avx512_bf16 && may_use_tiles();
}
[[maybe_unused]] bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}
#endif

// Best first.
const Candidate kCandidates[] = {
#if defined(__x86_64__)
#ifdef GRISTMILL_HAS_AMX_BF16
    {"amx_bf16", amx_bf16_kernels, has_amx_bf16},
#endif
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
      if (!c.supported())
        throw DeviceError("[isa] " + wanted + " is not supported by this processor, or not allowed by the system");
      return c.kernels();
    }
    known += (known.empty() ? "" : ", ") + std::string(c.name);
  }
  throw ArgumentError("[isa] GRISTMILL_ISA, expected one of " + known + ", got " + wanted);
}

}  // namespace gristmill::cpu

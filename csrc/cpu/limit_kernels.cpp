#include "cpu/limit_kernels.h"

#include "core/error.h"
#include "cpu/dispatch.h"

namespace gristmill::cpu {

LimitKernels choose_limits(const std::string& isa) {
  const std::string name = choose_kernels(isa).name;
  // By name first: a table's function is compiled with its set's instructions, which this machine may not have.
  struct Candidate {
    const char* name;
    LimitKernels (*limits)();
  };
  const Candidate candidates[] = {
#ifdef GRISTMILL_HAS_AMX_BF16
      {"amx_bf16", amx_bf16_limits},
#endif
#ifdef GRISTMILL_HAS_AVX512_VNNI
      {"avx512_vnni", avx512_vnni_limits},
#endif
#ifdef GRISTMILL_HAS_AVX2
      {"avx2", avx2_limits},
#endif
      {"scalar", scalar_limits},
  };
  for (const Candidate& c : candidates)
    if (name == c.name) return c.limits();
  throw DeviceError("[limits] nothing measures what " + name + " can do");
}

PeakLoop peak_loop(const LimitKernels& kernels, const std::string& kind) {
  if (kind == "int8") return kernels.multiply_add_int8;
  if (kind == "float32") return kernels.multiply_add_float;
  if (kind == "bfloat16") return kernels.multiply_add_bf16;
  if (kind == "int16") return kernels.multiply_add_int16;
  throw ArgumentError("[limits] kind, expected int8, float32, bfloat16 or int16, got " + kind);
}

}  // namespace gristmill::cpu

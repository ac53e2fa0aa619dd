#include "cpu/limit_kernels.h"

#include "core/error.h"
#include "cpu/dispatch.h"

namespace gristmill::cpu {

LimitKernels choose_limits(const std::string& isa) {
  const std::string name = choose_kernels(isa).name;
  LimitKernels (*const tables[])() = {
#ifdef GRISTMILL_HAS_AVX512_VNNI
      avx512_vnni_limits,
#endif
#ifdef GRISTMILL_HAS_AVX2
      avx2_limits,
#endif
      scalar_limits,
  };
  for (const auto table : tables) {
    const LimitKernels limits = table();
    if (name == limits.name) return limits;
  }
  throw DeviceError("[limits] nothing measures what " + name + " can do");
}

}  // namespace gristmill::cpu

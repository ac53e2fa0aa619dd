#include "cpu/isa/amx_bf16/prefill.h"
#include "fallback_formats.h"

namespace gristmill::test {
namespace {

// Decoding is AVX-512's.
template <class... Format>
FallbackKernels make(std::tuple<Format...>*) {
  FallbackKernels kernels = fallback_avx512_vnni();
  int i = 0;
  ((kernels.matmul[int(cpu::Pass::kPrefill)][i] = cpu::prefill<Format, 1, 1>,
    kernels.matmul[int(cpu::Pass::kPrecisePrefill)][i] = cpu::prefill<Format, 2, 2>, ++i),
   ...);
  return kernels;
}

}  // namespace

const FallbackKernels& fallback_amx_bf16() {
  static const FallbackKernels kernels = make(static_cast<UnknownFormats*>(nullptr));
  return kernels;
}

}  // namespace gristmill::test

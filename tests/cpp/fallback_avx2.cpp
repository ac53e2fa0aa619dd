#include "cpu/isa/avx2/decode.h"
#include "cpu/isa/avx2/prefill.h"
#include "fallback_formats.h"

namespace gristmill::test {
namespace {

template <class... Format>
constexpr FallbackKernels make(std::tuple<Format...>*) {
  return {{{cpu::prefill_affine<Format, cpu::Pass::kPrefill>...},
           {cpu::prefill_affine<Format, cpu::Pass::kPrecisePrefill>...},
           {cpu::decode_affine<Format>...},
           {cpu::decode_affine<Format>...}}};
}
constexpr FallbackKernels kKernels = make(static_cast<UnknownFormats*>(nullptr));

}  // namespace

const FallbackKernels& fallback_avx2() { return kKernels; }

}  // namespace gristmill::test

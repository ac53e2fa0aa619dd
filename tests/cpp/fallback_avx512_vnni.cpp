#include "cpu/isa/avx512_vnni/decode.h"
#include "cpu/isa/avx512_vnni/prefill.h"
#include "fallback_formats.h"

namespace gristmill::test {
namespace {

template <class... Format>
constexpr FallbackKernels make(std::tuple<Format...>*) {
  return {{{cpu::prefill<cpu::AffineOperands<Format, 1>>...},
           {cpu::prefill<cpu::AffineOperands<Format, 2>>...},
           {cpu::decode_affine<Format, 1>...},
           {cpu::decode_affine<Format, 2>...}}};
}
constexpr FallbackKernels kKernels = make(static_cast<UnknownFormats*>(nullptr));

}  // namespace

const FallbackKernels& fallback_avx512_vnni() { return kKernels; }

}  // namespace gristmill::test

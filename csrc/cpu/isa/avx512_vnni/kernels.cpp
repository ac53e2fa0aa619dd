#include "cpu/dispatch.h"
#include "cpu/generic/attention.h"
#include "cpu/generic/elementwise.h"
#include "cpu/generic/matmul_float.h"
#include "cpu/isa/avx512_vnni/decode.h"
#include "cpu/isa/avx512_vnni/prefill.h"
#include "cpu/isa/avx512_vnni/vec.h"

namespace gristmill::cpu {
namespace {

template <class Format>
constexpr MatmulFunction decode_kernel() {
  if constexpr (Format::kKind == formats::Kind::kFloat) {
    return decode_float<Avx512Vec, Format>;
  } else {
    return decode_affine<Format>;
  }
}

template <class Format>
constexpr MatmulFunction prefill_kernel() {
  if constexpr (Format::kKind == formats::Kind::kFloat) {
    return prefill_float<Avx512Vec, Format>;
  } else {
    return prefill_affine<Format>;
  }
}

template <class... Format>
constexpr Kernels make(std::tuple<Format...>*) {
  return {"avx512_vnni",
          kPanels * kPanelRows,
          32,
          activation_bytes,
          quantize_activations,
          {decode_kernel<Format>()...},
          {prefill_kernel<Format>()...},
          attention<Avx512Vec>,
          rms_norm<Avx512Vec>,
          rope<Avx512Vec>,
          swiglu<Avx512Vec>,
          add<Avx512Vec>};
}

constexpr Kernels kKernels = make(static_cast<formats::All*>(nullptr));

}  // namespace

const Kernels& avx512_vnni_kernels() { return kKernels; }

}  // namespace gristmill::cpu

#include "cpu/dispatch.h"
#include "cpu/generic/attention.h"
#include "cpu/generic/elementwise.h"
#include "cpu/generic/matmul_float.h"
#include "cpu/isa/avx2/decode.h"
#include "cpu/isa/avx2/prefill.h"
#include "cpu/isa/avx2/vec.h"

namespace gristmill::cpu {
namespace {

template <class Format>
constexpr MatmulFunction decode_kernel() {
  if constexpr (Format::kKind == formats::Kind::kFloat) {
    return decode_float<Avx2Vec, Format>;
  } else {
    return decode_affine<Format>;
  }
}

template <class Format>
constexpr MatmulFunction prefill_kernel() {
  if constexpr (Format::kKind == formats::Kind::kFloat) {
    return prefill_float<Avx2Vec, Format>;
  } else {
    return prefill_affine<Format>;
  }
}

template <class... Format>
constexpr Kernels make(std::tuple<Format...>*) {
  return {"avx2",
          kPanels * kPanelRows,
          32,
          activation_bytes,
          quantize_activations,
          {decode_kernel<Format>()...},
          {prefill_kernel<Format>()...},
          attention<Avx2Vec>,
          rms_norm<Avx2Vec>,
          rope<Avx2Vec>,
          swiglu<Avx2Vec>,
          add<Avx2Vec>};
}

constexpr Kernels kKernels = make(static_cast<formats::All*>(nullptr));

}  // namespace

const Kernels& avx2_kernels() { return kKernels; }

}  // namespace gristmill::cpu

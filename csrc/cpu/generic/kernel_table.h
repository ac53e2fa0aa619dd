// An instruction set's table of kernels from its vocabulary and its products with quantized weights. A set is a struct:
//   Vec                                  the vocabulary of elementwise.h
//   kName, kGemmRows, kActivationGroup   as in Kernels
//   activation_bytes, quantize_activations
//   decode<Format>, prefill<Format>      products of Kind::kAffine; those of Kind::kFloat come from matmul_float.h
#pragma once

#include "cpu/generic/attention.h"
#include "cpu/generic/elementwise.h"
#include "cpu/generic/matmul_float.h"
#include "cpu/kernels.h"

namespace gristmill::cpu {

template <class Set, class Format>
constexpr MatmulFunction decode_kernel() {
  if constexpr (Format::kKind == formats::Kind::kFloat) {
    return decode_float<typename Set::Vec, Format>;
  } else {
    return Set::template decode<Format>;
  }
}

template <class Set, class Format>
constexpr MatmulFunction prefill_kernel() {
  if constexpr (Format::kKind == formats::Kind::kFloat) {
    return prefill_float<typename Set::Vec, Format>;
  } else {
    return Set::template prefill<Format>;
  }
}

template <class Set, class... Format>
constexpr Kernels make_kernels(std::tuple<Format...>*) {
  using Vec = typename Set::Vec;
  return {Set::kName,
          Set::kGemmRows,
          Set::kActivationGroup,
          Set::activation_bytes,
          Set::quantize_activations,
          {decode_kernel<Set, Format>()...},
          {prefill_kernel<Set, Format>()...},
          attention<Vec>,
          rms_norm<Vec>,
          rope<Vec>,
          swiglu<Vec>,
          add<Vec>};
}

template <class Set>
constexpr Kernels make_kernels() {
  return make_kernels<Set>(static_cast<formats::All*>(nullptr));
}

}  // namespace gristmill::cpu

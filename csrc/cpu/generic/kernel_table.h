// An instruction set's table of kernels from its vocabulary and its products with quantized weights. A set is a struct:
//   Vec                                  the vocabulary of elementwise.h
//   kName, kPrefillRows, kPanelRows, kActivationGroup   as in Kernels
//   activation_bytes, quantize_activations
//   prefill_activations<ActivationBits>()
//   decode<Format>, prefill<Format, ActivationBits>
//                                        products of Kind::kAffine; those of Kind::kFloat come from matmul_float.h
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

template <class Set, class Format, ActivationBits kBits>
constexpr MatmulFunction prefill_kernel() {
  if constexpr (Format::kKind == formats::Kind::kFloat) {
    return prefill_float<typename Set::Vec, Format>;
  } else {
    return Set::template prefill<Format, kBits>;
  }
}

// Activations of a set that has no layout of its own for prefill: rows, as in decoding.
template <class Set>
constexpr PrefillActivations row_activations() {
  return {15, 1, [](int64_t n_cols, int64_t n_tokens) { return n_tokens * Set::activation_bytes(n_cols); },
          [](const float* x, int64_t n_cols, int64_t, int64_t tile, std::byte* out) {
            Set::quantize_activations(x + tile * n_cols, n_cols, out + tile * Set::activation_bytes(n_cols));
          }};
}

template <class Set, class... Format>
constexpr Kernels make_kernels(std::tuple<Format...>*) {
  using Vec = typename Set::Vec;
  return {
      Set::kName,
      Set::kPrefillRows,
      Set::kPanelRows,
      Set::kActivationGroup,
      Set::activation_bytes,
      Set::quantize_activations,
      {Set::template prefill_activations<ActivationBits::k8>(),
       Set::template prefill_activations<ActivationBits::k15>()},
      {decode_kernel<Set, Format>()...},
      {{prefill_kernel<Set, Format, ActivationBits::k8>()...}, {prefill_kernel<Set, Format, ActivationBits::k15>()...}},
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

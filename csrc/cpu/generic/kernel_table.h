// An instruction set's table of kernels from its vocabulary and its products with quantized weights. A set is a struct:
//   Vec                                  the vocabulary of elementwise.h
//   kName, kPrefillRows, kPanelRows, kActivationGroup   as in Kernels
//   activations<Pass>()                  how a pass wants its activations; row_activations serves where it wants rows
//   matmul<Format, Pass>                 products of Kind::kAffine; those of Kind::kFloat come from matmul_float.h
#pragma once

#include "cpu/generic/attention.h"
#include "cpu/generic/elementwise.h"
#include "cpu/generic/matmul_float.h"
#include "cpu/kernels.h"

namespace gristmill::cpu {

template <class Set, class Format, Pass kPass>
constexpr MatmulFunction matmul_kernel() {
  if constexpr (Format::kKind != formats::Kind::kFloat) {
    return Set::template matmul<Format, kPass>;
  } else if constexpr (kPass == Pass::kDecode) {
    return decode_float<typename Set::Vec, Format>;
  } else {
    return prefill_float<typename Set::Vec, Format>;
  }
}

// Rows one after the other, made by Set::quantize_activations(x, n_cols, out) in Set::activation_bytes(n_cols) each.
template <class Set>
constexpr Activations row_activations() {
  return {15, 1, [](int64_t n_cols, int64_t n_tokens) { return n_tokens * Set::activation_bytes(n_cols); },
          [](const float* x, int64_t n_cols, int64_t, int64_t tile, std::byte* out) {
            Set::quantize_activations(x + tile * n_cols, n_cols, out + tile * Set::activation_bytes(n_cols));
          }};
}

template <class Set, class... Format>
constexpr Kernels make_kernels(std::tuple<Format...>*) {
  using Vec = typename Set::Vec;
  return {Set::kName,
          Set::kPrefillRows,
          Set::kPanelRows,
          Set::kActivationGroup,
          {Set::template activations<Pass::kPrefill>(), Set::template activations<Pass::kPrecisePrefill>(),
           Set::template activations<Pass::kDecode>()},
          {{matmul_kernel<Set, Format, Pass::kPrefill>()...},
           {matmul_kernel<Set, Format, Pass::kPrecisePrefill>()...},
           {matmul_kernel<Set, Format, Pass::kDecode>()...}},
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

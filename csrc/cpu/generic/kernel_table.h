// An instruction set's table of kernels from its vocabulary and its products with quantized weights. A set is a struct:
//   Vec                                  the vocabulary of elementwise.h
//   ByteAttention                        attention of one token to bytes, as generic/attention.h says
//   kName, kPrefillRows, kPanelRows     as in Kernels
//   kIntegers<Format, Pass>              whether it multiplies this format as integers: all of Kind::kAffine; those of
//                                        Kind::kFloat else come from matmul_float.h
//   activations<Format, Pass>()          how such a product wants its activations; row_activations where it wants rows
//   matmul<Format, Pass>                 such a product
#pragma once

#include "cpu/generic/attention.h"
#include "cpu/generic/elementwise.h"
#include "cpu/generic/matmul_float.h"
#include "cpu/kernels.h"

namespace gristmill::cpu {

// Half-precision floats, which sets may multiply as integers in prefill.
template <class Format>
constexpr bool kIsHalf = Format::kKind == formats::Kind::kFloat && sizeof(typename Format::Block) == 2;

template <class Set, class Format, Pass kPass>
constexpr MatmulFunction matmul_kernel() {
  if constexpr (Set::template kIntegers<Format, kPass>) {
    return Set::template matmul<Format, kPass>;
  } else if constexpr (is_decode(kPass)) {
    return decode_float<typename Set::Vec, Format>;
  } else {
    return prefill_float<typename Set::Vec, Format>;
  }
}

// Rows one after the other, made by Set::quantize_activations(x, n_cols, out) in Set::activation_bytes(n_cols) each.
template <class Set>
constexpr Activations row_activations() {
  return {15,
          32,
          "int8",
          1,
          [](int64_t n_cols, int64_t n_tokens) { return n_tokens * Set::activation_bytes(n_cols); },
          [](const float* x, int64_t n_cols, int64_t, int64_t tile, std::byte* out) {
            Set::quantize_activations(x + tile * n_cols, n_cols, out + tile * Set::activation_bytes(n_cols));
          }};
}

template <class Set, class Format, Pass kPass>
constexpr Activations activations_for() {
  if constexpr (Set::template kIntegers<Format, kPass>) {
    return Set::template activations<Format, kPass>();
  } else {
    return {32,
            1,
            "float32",
            1,
            [](int64_t n_cols, int64_t n_tokens) { return n_tokens * n_cols * int64_t(sizeof(float)); },
            nullptr};
  }
}

template <class Set, class... Format>
constexpr Kernels make_kernels(std::tuple<Format...>*) {
  using Vec = typename Set::Vec;
  return {Set::kName,
          Set::kPrefillRows,
          Set::kPanelRows,
          0,
          {{activations_for<Set, Format, Pass::kPrefill>()...},
           {activations_for<Set, Format, Pass::kPrecisePrefill>()...},
           {activations_for<Set, Format, Pass::kDecode>()...},
           {activations_for<Set, Format, Pass::kPreciseDecode>()...}},
          {{matmul_kernel<Set, Format, Pass::kPrefill>()...},
           {matmul_kernel<Set, Format, Pass::kPrecisePrefill>()...},
           {matmul_kernel<Set, Format, Pass::kDecode>()...},
           {matmul_kernel<Set, Format, Pass::kPreciseDecode>()...}},
          attention<Vec, typename Set::ByteAttention>,
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

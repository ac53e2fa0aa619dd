// Products with weights that are floats already (F32, F16, BF16): converted in registers, multiplied in float32.
#pragma once

#include <algorithm>

#include "cpu/generic/elementwise.h"
#include "cpu/kernels.h"

namespace gristmill::cpu {

template <class V, class Format>
inline typename V::T load_weights(const std::byte* row, int64_t i, int count) {
  using formats::TypeId;
  if constexpr (Format::kId == TypeId::F32) {
    return load_some<V>(reinterpret_cast<const float*>(row) + i, count);
  } else {
    const uint16_t* p = reinterpret_cast<const uint16_t*>(row) + i;
    uint16_t padded[V::N] = {};
    if (count != V::N) {
      for (int j = 0; j < count; ++j) padded[j] = p[j];
      p = padded;
    }
    if constexpr (Format::kId == TypeId::F16) {
      return V::from_half(p);
    } else {
      static_assert(Format::kId == TypeId::BF16);
      return V::from_bf16(p);
    }
  }
}

// Lanes run along a row; R rows and T tokens at a time share the loads.
template <class V, class Format, int R, int T>
inline void dot_rows(const std::byte* w, int64_t row_bytes, const std::byte* x, int64_t x_stride, int64_t n_cols,
                     float (&out)[R][T]) {
  typename V::T acc[R][T];
  for (auto& row : acc)
    for (auto& a : row) a = V::zero();
  for_vectors<V>(n_cols, [&](int64_t i, int count) {
    typename V::T weights[R];
    for (int r = 0; r < R; ++r) weights[r] = load_weights<V, Format>(w + r * row_bytes, i, count);
    for (int t = 0; t < T; ++t) {
      const typename V::T v = load_some<V>(reinterpret_cast<const float*>(x + t * x_stride) + i, count);
      for (int r = 0; r < R; ++r) acc[r][t] = V::fma(weights[r], v, acc[r][t]);
    }
  });
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) out[r][t] = V::sum(acc[r][t]);
}

template <class V, class Format, int T>
inline void decode_float_tokens(const MatmulTask& task, int first) {
  constexpr int R = V::kDotRows;
  const int64_t row_bytes = task.w->row_bytes(), m = task.w->n_rows;
  const std::byte* x = task.x + first * task.x_stride;
  const auto rows = [&]<int Rows>(int64_t r) {
    float out[Rows][T];
    dot_rows<V, Format, Rows, T>(task.w->data + r * row_bytes, row_bytes, x, task.x_stride, task.w->n_cols, out);
    for (int i = 0; i < Rows; ++i)
      for (int t = 0; t < T; ++t) task.y[(first + t) * m + r + i] = out[i][t] + (task.bias ? task.bias[r + i] : 0.0f);
  };
  int64_t r = task.row_begin;
  for (; r + R <= task.row_end; r += R) rows.template operator()<R>(r);
  for (; r < task.row_end; ++r) rows.template operator()<1>(r);
}

// A row's dot product has the same order of additions whatever R and T are, so batching changes no bit.
template <class V, class Format>
void decode_float(const MatmulTask& task) {
  int t = 0;
  for (; t + 2 <= task.n; t += 2) decode_float_tokens<V, Format, 2>(task, t);
  if (t < task.n) decode_float_tokens<V, Format, 1>(task, t);
}

// Prefill: a panel of V::N rows is converted once, k by k ([k][V::N]), in pieces that stay in cache, and serves every
// token by broadcasting x.
template <class V, class Format>
void prefill_float(const MatmulTask& task) {
  constexpr int64_t kPiece = 512;
  constexpr int T = V::kGemmTokens;
  const int64_t row_bytes = task.w->row_bytes(), m = task.w->n_rows, n_cols = task.w->n_cols;
  float* panel = reinterpret_cast<float*>(thread_scratch(size_t(kPiece) * V::N * sizeof(float)));
  for (int64_t r = task.row_begin; r < task.row_end; r += V::N) {
    const int n_rows = int(std::min<int64_t>(V::N, task.row_end - r));
    for (int64_t k0 = 0; k0 < n_cols; k0 += kPiece) {
      const int64_t n_k = std::min(kPiece, n_cols - k0);
      for (int i = 0; i < n_rows; ++i) {
        for_vectors<V>(n_k, [&](int64_t k, int count) {
          float lanes[V::N];
          V::store(lanes, load_weights<V, Format>(task.w->data + (r + i) * row_bytes, k0 + k, count));
          for (int j = 0; j < count; ++j) panel[(k + j) * V::N + i] = lanes[j];
        });
      }
      for (int i = n_rows; i < V::N; ++i)
        for (int64_t k = 0; k < n_k; ++k) panel[k * V::N + i] = 0.0f;
      const auto tokens = [&]<int Tokens>(int t) {
        typename V::T acc[Tokens];
        for (int j = 0; j < Tokens; ++j) {
          float* y = task.y + int64_t(t + j) * m + r;
          acc[j] = k0 ? load_some<V>(y, n_rows) : task.bias ? load_some<V>(task.bias + r, n_rows) : V::zero();
        }
        const float* x[Tokens];
        for (int j = 0; j < Tokens; ++j) x[j] = reinterpret_cast<const float*>(task.x + (t + j) * task.x_stride) + k0;
        for (int64_t k = 0; k < n_k; ++k) {
          const typename V::T weights = V::load(panel + k * V::N);
          for (int j = 0; j < Tokens; ++j) acc[j] = V::fma(weights, V::set(x[j][k]), acc[j]);
        }
        for (int j = 0; j < Tokens; ++j) store_some<V>(task.y + int64_t(t + j) * m + r, acc[j], n_rows);
      };
      int t = 0;
      for (; t + T <= task.n; t += T) tokens.template operator()<T>(t);
      for (; t < task.n; ++t) tokens.template operator()<1>(t);
    }
  }
}

}  // namespace gristmill::cpu

// Products with weights that are floats already (F32, F16, BF16): converted in registers, multiplied in float32.
#pragma once

#include <algorithm>

#include "cpu/generic/ask.h"
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

// Where memory is asked for what comes, one token reads two rows side by side.
constexpr int kAskedRows = 2;

// Lanes run along a row; R rows and T tokens at a time share the loads. Memory is asked for what lies `ahead` bytes
// further, if that is not 0.
template <class V, class Format, int R, int T>
inline void dot_rows(const std::byte* w, int64_t row_bytes, int64_t ahead, const std::byte* x, int64_t x_stride,
                     int64_t n_cols, float (&out)[R][T]) {
  constexpr int64_t kLine = 64 / sizeof(typename Format::Block);  // weights
  typename V::T acc[R][T];
  for (auto& row : acc)
    for (auto& a : row) a = V::zero();
  for_vectors<V>(n_cols, [&](int64_t i, int count) {
    typename V::T weights[R];
    if (ahead && i % kLine == 0)
      for (int r = 0; r < R; ++r)
        ask_for<Cache::kL1>(reinterpret_cast<uintptr_t>(w + r * row_bytes) + uintptr_t(weight_bytes<Format>(i) + ahead),
                            64);
    for (int r = 0; r < R; ++r) weights[r] = load_weights<V, Format>(w + r * row_bytes, i, count);
    for (int t = 0; t < T; ++t) {
      const typename V::T v = load_some<V>(reinterpret_cast<const float*>(x + t * x_stride) + i, count);
      for (int r = 0; r < R; ++r) acc[r][t] = V::fma(weights[r], v, acc[r][t]);
    }
  });
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) out[r][t] = V::sum(acc[r][t]);
}

// R rows from r on, a distance apart, times T tokens from `first` on.
template <class V, class Format, int R, int T>
inline void decode_dots(const MatmulTask& task, int64_t r, int64_t distance, int first, int64_t ahead) {
  const int64_t row_bytes = weight_bytes<Format>(task.w->n_cols);  // task.w->row_bytes() divides
  float out[R][T];
  dot_rows<V, Format, R, T>(task.w->data + r * row_bytes, distance * row_bytes, ahead, task.x + first * task.x_stride,
                            task.x_stride, task.w->n_cols, out);
  for (int i = 0; i < R; ++i)
    for (int t = 0; t < T; ++t) {
      const int64_t row = r + i * distance;
      task.y[(first + t) * task.w->n_rows + row] = out[i][t] + (task.bias ? task.bias[row] : 0.0f);
    }
}

// Calls f.template operator()<R>(r, distance) for R rows at a time, a distance apart: each reads on where it stopped, R
// streams that the hardware runs ahead of. What is left comes row by row.
template <int R, class F>
inline void for_streams(const MatmulTask& task, const F& f) {
  const int64_t distance = (task.row_end - task.row_begin) / R;
  for (int64_t i = 0; i < distance; ++i) f.template operator()<R>(task.row_begin + i, distance);
  for (int64_t r = task.row_begin + R * distance; r < task.row_end; ++r) f.template operator()<1>(r, 1);
}

template <class V, class Format, int R>
inline void decode_float_token(const MatmulTask& task) {
  for_streams<R>(task, [&]<int Rows>(int64_t r, int64_t distance) {
    decode_dots<V, Format, Rows, 1>(task, r, distance, 0, task.ahead);
  });
}

// All tokens while the rows are in L1.
template <class V, class Format>
inline void decode_float_tokens(const MatmulTask& task) {
  constexpr int T = V::kDotTokens;
  for_streams<V::kDotRows>(task, [&]<int Rows>(int64_t r, int64_t distance) {
    int64_t ahead = task.ahead;
    int t = 0;
    for (; t + T <= task.n; t += T, ahead = 0) decode_dots<V, Format, Rows, T>(task, r, distance, t, ahead);
    for (; t + 2 <= task.n; t += 2, ahead = 0) decode_dots<V, Format, Rows, 2>(task, r, distance, t, ahead);
    if (t < task.n) decode_dots<V, Format, Rows, 1>(task, r, distance, t, ahead);
  });
}

// A row's dot product has the same order of additions whatever R and T are, so batching changes no bit.
template <class V, class Format>
void decode_float(const MatmulTask& task) {
  if (task.n > 1) return decode_float_tokens<V, Format>(task);
  task.ahead ? decode_float_token<V, Format, kAskedRows>(task) : decode_float_token<V, Format, V::kDotRows>(task);
}

// Prefill: kGemmPanels panels of V::N rows are converted once, k by k, in pieces that stay in L1, and serve every
// token:
//     panel[k][panel][V::N rows]
// kGemmPanels x kGemmTokens sums stay in registers; one broadcast of x feeds all panels.
template <class V>
struct FloatPanels {
  static constexpr int kPanels = V::kGemmPanels, kRows = kPanels * V::N;
  static constexpr int64_t kPieceK = 96;
  float w[kPieceK][kPanels][V::N];
};

template <class V, class Format>
inline void pack_floats(const Weight& w, int64_t r, int64_t n_rows, int64_t k0, int64_t n_k, FloatPanels<V>& to) {
  constexpr int N = V::N;
  const int64_t row_bytes = w.row_bytes();  // a division
  for (int p = 0; p < V::kGemmPanels; ++p)
    for (int64_t k = 0; k < n_k; k += N) {
      const int count = int(std::min<int64_t>(N, n_k - k));
      typename V::T rows[N];
      for (int i = 0; i < N; ++i)  // rows that are not there repeat the last; nobody reads their sums
        rows[i] =
            load_weights<V, Format>(w.data + (r + std::min<int64_t>(p * N + i, n_rows - 1)) * row_bytes, k0 + k, count);
      V::transpose(rows);
      for (int i = 0; i < count; ++i) V::store(to.w[k + i][p], rows[i]);
    }
}

// sums[t] += panels . x[t] for T tokens over n_k values.
template <class V, int T>
inline void multiply_floats(const FloatPanels<V>& panels, const float* x, int64_t x_stride, int64_t n_k,
                            float (*sums)[FloatPanels<V>::kRows]) {
  constexpr int P = V::kGemmPanels;
  typename V::T acc[T][P];
  const float* token[T];
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) {
    token[t] = x + t * x_stride;
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) acc[t][p] = V::load(sums[t] + p * V::N);
  }
  for (int64_t k = 0; k < n_k; ++k) {
    typename V::T w[P];
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) w[p] = V::load(panels.w[k][p]);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      const typename V::T v = V::set(token[t][k]);
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) acc[t][p] = V::fma(w[p], v, acc[t][p]);
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t)
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) V::store(sums[t] + p * V::N, acc[t][p]);
}

template <class V, class Format>
void prefill_float(const MatmulTask& task) {
  using Panels = FloatPanels<V>;
  constexpr int T = V::kGemmTokens;
  constexpr int64_t kRows = Panels::kRows;
  using Sums = float[kRows];
  const int64_t m = task.w->n_rows, n_cols = task.w->n_cols, x_stride = task.x_stride / int64_t(sizeof(float));
  const float* x = reinterpret_cast<const float*>(task.x);
  std::byte* scratch = thread_scratch(sizeof(Panels) + size_t(task.n) * sizeof(Sums));
  Panels& panels = *reinterpret_cast<Panels*>(scratch);
  auto* sums = reinterpret_cast<Sums*>(scratch + sizeof(Panels));  // [n]
  for (int64_t r = task.row_begin; r < task.row_end; r += kRows) {
    const int64_t n_rows = std::min(kRows, task.row_end - r);
    for (int t = 0; t < task.n; ++t)
      for (int64_t i = 0; i < kRows; ++i) sums[t][i] = task.bias && i < n_rows ? task.bias[r + i] : 0.0f;
    for (int64_t k0 = 0; k0 < n_cols; k0 += Panels::kPieceK) {
      const int64_t n_k = std::min(Panels::kPieceK, n_cols - k0);
      pack_floats<V, Format>(*task.w, r, n_rows, k0, n_k, panels);
      int t = 0;
      for (; t + T <= task.n; t += T) multiply_floats<V, T>(panels, x + t * x_stride + k0, x_stride, n_k, sums + t);
      for (; t + 2 <= task.n; t += 2) multiply_floats<V, 2>(panels, x + t * x_stride + k0, x_stride, n_k, sums + t);
      if (t < task.n) multiply_floats<V, 1>(panels, x + t * x_stride + k0, x_stride, n_k, sums + t);
    }
    for (int t = 0; t < task.n; ++t) std::copy_n(sums[t], n_rows, task.y + t * m + r);
  }
}

}  // namespace gristmill::cpu

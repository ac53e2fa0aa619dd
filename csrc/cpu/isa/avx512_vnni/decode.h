// Decoding: dot products of whole rows with one to eight tokens, on the file's own blocks. A block is taken apart once
// in registers; for each token two vpdpbusd (one a plane), one conversion and one multiply-add follow per 64 weights.
#pragma once

#include "cpu/isa/avx512_vnni/decode_formats.h"
#include "cpu/kernels.h"

namespace gristmill::cpu {
namespace {

// Sum over 64 weights of u * (128 hi + lo), exact, four products a lane, scaled and added.
inline __m512 dot64(__m512i u, __m512 scale, __m512i hi, __m512i lo, __m512 sum) {
  __m512i acc = _mm512_dpbusd_epi32(_mm512_setzero_si512(), u, hi);
  acc = _mm512_dpbusd_epi32(_mm512_slli_epi32(acc, 7), u, lo);
  return _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc), scale, sum);
}

// Rows side by side are streams too short, or too many in a page, for the hardware to run ahead: the kernel asks for
// the next rows itself, into L2.
template <size_t kBytes>
inline void prefetch_block(const char* p) {
#pragma GCC unroll 8
  for (size_t i = 0; i < kBytes; i += 64) _mm_prefetch(p + i, _MM_HINT_T1);
}

// R rows with T tokens; rows and tokens unroll so that their sums stay in registers. The order of additions within a
// row does not depend on R or T.
template <class Format, int R, int T>
[[gnu::always_inline]] inline void decode_rows(const std::byte* w, int64_t row_bytes, const ActivationRow* x,
                                               int64_t n_cols, __m512 (&sum)[R][T]) {
  using U = Unpack<Format>;
  using Block = typename Format::Block;
  constexpr int kBlocks = U::kWeights / Format::kBlockSize;
#pragma GCC unroll 8
  for (int i = 0; i < R * T; ++i) sum[i / T][i % T] = _mm512_setzero_ps();
  const int64_t n_blocks = n_cols / Format::kBlockSize;
  for (int64_t b = 0, chunk = 0; b < n_blocks; b += kBlocks, chunk += U::kChunks) {
    // An odd number of 32-blocks: the last is read twice, against padding that is zero.
    const int64_t second = b + kBlocks <= n_blocks ? b + kBlocks - 1 : b;
    __m512i hi[T][U::kChunks], lo[T][U::kChunks], scale[T][U::kChunks];
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
#pragma GCC unroll 4
      for (int c = 0; c < U::kChunks; ++c) {
        hi[t][c] = load64(x[t].planes + 128 * (chunk + c));
        lo[t][c] = load64(x[t].planes + 128 * (chunk + c) + 64);
        scale[t][c] = load64(x[t].lane_scale + 16 * (chunk + c));
      }
      U::arrange(hi[t]);
      U::arrange(lo[t]);
      U::arrange(scale[t]);  // lanes of scales lie as the bytes they belong to
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Block* row = reinterpret_cast<const Block*>(w + r * row_bytes);
      prefetch_block<kBlocks * sizeof(Block)>(reinterpret_cast<const char*>(row + b) + R * row_bytes);
      const U unpacked(row + b, row + second);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        __m512 s = unpacked.add_minimum(x[t], chunk, sum[r][t]);
#pragma GCC unroll 4
        for (int c = 0; c < U::kChunks; ++c) {
          const __m512 both = _mm512_mul_ps(unpacked.s[c], _mm512_castsi512_ps(scale[t][c]));
          s = dot64(unpacked.u[c], both, hi[t][c], lo[t][c], s);
        }
        sum[r][t] = s;
      }
    }
  }
}

template <class Format, int R, int T>
inline void decode_tokens(const MatmulTask& task, int first) {
  const int64_t row_bytes = task.w->row_bytes(), m = task.w->n_rows, n_cols = task.w->n_cols;
  ActivationRow x[T];
  for (int t = 0; t < T; ++t) x[t] = ActivationRow::at(task.x + (first + t) * task.x_stride, n_cols);
  const auto rows = [&]<int Rows>(int64_t r) __attribute__((always_inline)) {
    __m512 sum[Rows][T];
    decode_rows<Format, Rows, T>(task.w->data + r * row_bytes, row_bytes, x, n_cols, sum);
    for (int i = 0; i < Rows; ++i)
      for (int t = 0; t < T; ++t)
        task.y[(first + t) * m + r + i] = _mm512_reduce_add_ps(sum[i][t]) + (task.bias ? task.bias[r + i] : 0.0f);
  };
  int64_t r = task.row_begin;
  for (; r + R <= task.row_end; r += R) rows.template operator()<R>(r);
  for (; r < task.row_end; ++r) rows.template operator()<1>(r);
}

template <class Format>
void decode_affine(const MatmulTask& task) {
  int t = 0;
  for (; t + 4 <= task.n; t += 4) decode_tokens<Format, 1, 4>(task, t);
  for (; t < task.n; ++t) decode_tokens<Format, 4, 1>(task, t);
}

}  // namespace
}  // namespace gristmill::cpu

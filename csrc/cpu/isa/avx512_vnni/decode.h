// Decoding: dot products of whole rows with one to eight tokens, on the file's own blocks. A block is taken apart once
// in registers; for each token two vpdpbusd (one a plane), one conversion and one multiply-add follow per 64 weights.
#pragma once

#include "cpu/isa/avx512_vnni/decode_formats.h"
#include "cpu/kernels.h"

namespace gristmill::cpu {
namespace {

// Sum over 64 weights of u * (128 hi + lo), exact, four products a lane, scaled and added.
inline __m512 dot64(__m512i u, __m512 scale, const ActivationChunk& x, __m512 sum) {
  __m512i acc = _mm512_dpbusd_epi32(_mm512_setzero_si512(), u, load64(x.hi));
  acc = _mm512_dpbusd_epi32(_mm512_slli_epi32(acc, 7), u, load64(x.lo));
  return _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc), _mm512_mul_ps(scale, _mm512_load_ps(x.lane_scale)), sum);
}

// R rows with T tokens. The order of additions within a row does not depend on R or T.
template <class Format, int R, int T>
inline void decode_rows(const std::byte* w, int64_t row_bytes, const std::byte* x, int64_t x_stride, int64_t n_cols,
                        float (&out)[R][T]) {
  using U = Unpack<Format>;
  using Block = typename Format::Block;
  constexpr int kBlocks = U::kWeights / Format::kBlockSize;
  __m512 sum[R][T];
  for (auto& row : sum)
    for (auto& s : row) s = _mm512_setzero_ps();
  const int64_t n_blocks = n_cols / Format::kBlockSize;
  for (int64_t b = 0, chunk = 0; b < n_blocks; b += kBlocks, chunk += U::kChunks) {
    for (int r = 0; r < R; ++r) {
      const Block* block = reinterpret_cast<const Block*>(w + r * row_bytes) + b;
      // An odd number of 32-blocks: the last is read twice, against padding that is zero.
      const U unpacked(block, b + kBlocks <= n_blocks ? block + (kBlocks - 1) : block);
      for (int t = 0; t < T; ++t) {
        const ActivationChunk* a = reinterpret_cast<const ActivationChunk*>(x + t * x_stride) + chunk;
        __m512 s = unpacked.add_minimum(a, sum[r][t]);
        for (int c = 0; c < U::kChunks; ++c) s = dot64(unpacked.u[c], unpacked.s[c], a[c], s);
        sum[r][t] = s;
      }
    }
  }
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) out[r][t] = _mm512_reduce_add_ps(sum[r][t]);
}

template <class Format, int R, int T>
inline void decode_tokens(const MatmulTask& task, int first) {
  const int64_t row_bytes = task.w->row_bytes(), m = task.w->n_rows;
  const std::byte* x = task.x + first * task.x_stride;
  const auto rows = [&]<int Rows>(int64_t r) {
    float out[Rows][T];
    decode_rows<Format, Rows, T>(task.w->data + r * row_bytes, row_bytes, x, task.x_stride, task.w->n_cols, out);
    for (int i = 0; i < Rows; ++i)
      for (int t = 0; t < T; ++t) task.y[(first + t) * m + r + i] = out[i][t] + (task.bias ? task.bias[r + i] : 0.0f);
  };
  int64_t r = task.row_begin;
  for (; r + R <= task.row_end; r += R) rows.template operator()<R>(r);
  for (; r < task.row_end; ++r) rows.template operator()<1>(r);
}

template <class Format>
void decode_affine(const MatmulTask& task) {
  int t = 0;
  for (; t + 4 <= task.n; t += 4) decode_tokens<Format, 1, 4>(task, t);
  for (; t < task.n; ++t) decode_tokens<Format, 2, 1>(task, t);
}

}  // namespace
}  // namespace gristmill::cpu

// Decoding: dot products of whole rows with one to eight tokens, on the file's own blocks. A block is taken apart once
// in registers and multiplied with every token: two vpmaddwd, one conversion and one multiply-add per 32 weights.
#pragma once

#include "cpu/isa/avx2/unpack.h"
#include "cpu/isa/avx2/vec.h"
#include "cpu/kernels.h"

namespace gristmill::cpu {
namespace {

// Products of scales of weights and of activations, spread by broadcasts from memory.
template <class U>
inline void join_scales(const U& u, const ActivationChunk& x, float* out) {
  const __m256 a = _mm256_load_ps(x.scale);
  if constexpr (U::kScales == 8) {
    _mm256_store_ps(out, _mm256_mul_ps(u.scale[0], a));
  } else {
    const __m256i low = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
    const __m256i high = _mm256_setr_epi32(4, 4, 5, 5, 6, 6, 7, 7);
    _mm256_store_ps(out, _mm256_mul_ps(u.scale[0], _mm256_permutevar8x32_ps(a, low)));
    _mm256_store_ps(out + 8, _mm256_mul_ps(u.scale[1], _mm256_permutevar8x32_ps(a, high)));
  }
}

template <class U>
inline __m256 add_minimum(const U& u, const ActivationChunk& x, __m256 sum) {
  if constexpr (U::kMinima == 8) sum = _mm256_fmadd_ps(u.minimum[0], _mm256_load_ps(x.sum32), sum);
  if constexpr (U::kMinima == 16) {
    sum = _mm256_fmadd_ps(u.minimum[0], _mm256_load_ps(x.sum16), sum);
    sum = _mm256_fmadd_ps(u.minimum[1], _mm256_load_ps(x.sum16 + 8), sum);
  }
  return sum;
}

inline __m256i load_q(const int16_t* q) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(q)); }
inline __m256 scaled(__m256i dot, float scale, __m256 sum) {
  return _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), _mm256_set1_ps(scale), sum);
}

// R rows with T tokens. The order of additions within a row does not depend on R or T.
template <class Format, int R, int T>
inline void decode_rows(const std::byte* w, int64_t row_bytes, const std::byte* x, int64_t x_stride, int64_t n_cols,
                        float (&out)[R][T]) {
  using U = Unpack<Format>;
  using Block = typename Format::Block;
  __m256 sum[R][T];
#pragma GCC unroll 8
  for (int i = 0; i < R * T; ++i) sum[i / T][i % T] = _mm256_setzero_ps();
  const int64_t n_blocks = n_cols / Format::kBlockSize;
  for (int64_t b = 0, chunk = 0; b < n_blocks; b += kBlocksOf256<Format>, ++chunk) {
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r) {
      Blocks256<Format> blocks;
      const U u(blocks.whole(reinterpret_cast<const Block*>(w + r * row_bytes) + b, n_blocks - b));
      const ActivationChunk* a[T];
      alignas(32) float scale[T][U::kScales];
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        a[t] = reinterpret_cast<const ActivationChunk*>(x + t * x_stride) + chunk;
        join_scales(u, *a[t], scale[t]);
        sum[r][t] = add_minimum(u, *a[t], sum[r][t]);
      }
      // Kept in memory: a broadcast from there needs no shuffle, one from a register two.
      asm("" : "+m"(scale));
      for_each_64([&]<int P>() __attribute__((always_inline)) {
        __m256i weights[4];
        u.template weights<P>(weights);
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) {
#pragma GCC unroll 2
          for (int g = 0; g < 2; ++g) {
            const int16_t* q = a[t]->q + 64 * P + 32 * g;
            const __m256i first = _mm256_madd_epi16(weights[2 * g], load_q(q));
            const __m256i second = _mm256_madd_epi16(weights[2 * g + 1], load_q(q + 16));
            if constexpr (U::kScales == 8) {
              sum[r][t] = scaled(_mm256_add_epi32(first, second), scale[t][2 * P + g], sum[r][t]);
            } else {
              sum[r][t] = scaled(first, scale[t][4 * P + 2 * g], sum[r][t]);
              sum[r][t] = scaled(second, scale[t][4 * P + 2 * g + 1], sum[r][t]);
            }
          }
        }
      });
    }
  }
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) out[r][t] = Avx2Vec::sum(sum[r][t]);
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
  if constexpr (R > 1)
    for (; r < task.row_end; ++r) rows.template operator()<1>(r);
}

template <class Format>
void decode_affine(const MatmulTask& task) {
  int t = 0;
  for (; t + 4 <= task.n; t += 4) decode_tokens<Format, 1, 4>(task, t);
  for (; t + 2 <= task.n; t += 2) decode_tokens<Format, 1, 2>(task, t);
  for (; t < task.n; ++t) decode_tokens<Format, 2, 1>(task, t);
}

}  // namespace
}  // namespace gristmill::cpu

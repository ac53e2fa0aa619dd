// Prefill, 256 weights of a row at a time: 8 rows are unpacked once into a panel of 16-bit pairs,
//     w[k / 2][8 rows][2]      scale[group][8 rows], minimum[group][8 rows]
// that serves every token: vpmaddwd's 8 lanes are 8 rows, its other operand is a pair of activations, broadcast.
#pragma once

#include <algorithm>

#include "cpu/isa/avx2/unpack.h"
#include "cpu/isa/avx2/vec.h"
#include "cpu/kernels.h"

namespace gristmill::cpu {
namespace {

constexpr int kPanelRows = 8;
constexpr int kPanels = 4;  // of a task; together they stay in L1 while the tokens pass
constexpr int kPair = 2;    // panels that share a broadcast,
constexpr int kTokens = 3;  // tokens that share a load of weights: 8 sums of integers stay in registers

// 8 rows x 8 dwords -> transposed.
inline void transpose_8x8(__m256i (&r)[8]) {
  __m256i t[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    r[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm256_permute2x128_si256(r[i], r[i + 4], 0x20);
    t[i + 4] = _mm256_permute2x128_si256(r[i], r[i + 4], 0x31);
  }
  for (int i = 0; i < 8; ++i) r[i] = t[i];
}

template <class U>
struct Panel {
  alignas(64) __m256i w[128];
  __m256 scale[U::kScales];
  __m256 minimum[U::kMinima ? U::kMinima : 1];
};

// 256 weights from column k0 on, of 8 rows; missing rows repeat the last.
template <class Format>
inline void pack_panel(const Weight& w, int64_t r, int n_rows, int64_t k0, Panel<Unpack<Format>>& panel) {
  using U = Unpack<Format>;
  using Block = typename Format::Block;
  __m256i rows[16][8];  // [16 weights][row]
  for (int i = 0; i < kPanelRows; ++i) {
    const std::byte* row = w.data + (r + std::min(i, n_rows - 1)) * w.row_bytes();
    Blocks256<Format> blocks;
    const U u(blocks.whole(reinterpret_cast<const Block*>(row) + k0 / Format::kBlockSize,
                           (w.n_cols - k0) / Format::kBlockSize));
    for_each_64([&]<int P>() __attribute__((always_inline)) {
      __m256i weights[4];
      u.template weights<P>(weights);
      for (int j = 0; j < 4; ++j) rows[4 * P + j][i] = weights[j];
    });
    const auto scatter = [i](const __m256* from, int n, __m256* to) {
      for (int g = 0; g < n; ++g) reinterpret_cast<float*>(to + g)[i] = reinterpret_cast<const float*>(from)[g];
    };
    scatter(u.scale, U::kScales, panel.scale);
    scatter(u.minimum, U::kMinima, panel.minimum);
  }
  for (int j = 0; j < 16; ++j) {
    transpose_8x8(rows[j]);
    for (int i = 0; i < 8; ++i) panel.w[8 * j + i] = rows[j][i];
  }
}

// sums[t][first + p] += panels[p] . x[t] over the first n_groups * 32 of 256 weights, for T tokens and two panels.
template <class U, int T>
inline void multiply_panels(const Panel<U>* panels, int n_groups, const std::byte* x, int64_t x_stride,
                            __m256 (*sums)[kPanels], int first) {
  constexpr int kGroup = 256 / U::kScales, kMinimaPer32 = U::kMinima / 8;
  const ActivationChunk* a[T];
  for (int t = 0; t < T; ++t) a[t] = reinterpret_cast<const ActivationChunk*>(x + t * x_stride);
  const Panel<U>& low = panels[0];
  const Panel<U>& high = panels[1];
  for (int g = 0; g < n_groups; ++g) {
    for (int s = 32 / kGroup * g; s < 32 / kGroup * (g + 1); ++s) {
      __m256i dot_low[T], dot_high[T];
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) dot_low[t] = dot_high[t] = _mm256_setzero_si256();
#pragma GCC unroll 4
      for (int pair = kGroup / 2 * s; pair < kGroup / 2 * (s + 1); ++pair) {
#pragma GCC unroll 4
        for (int t = 0; t < T; ++t) {
          int32_t two;
          std::memcpy(&two, a[t]->q + 2 * pair, sizeof two);
          __m256i q = _mm256_set1_epi32(two);
          asm volatile("" : "+x"(q));  // one broadcast at a time: all at once would push sums out of registers
          dot_low[t] = _mm256_add_epi32(dot_low[t], _mm256_madd_epi16(low.w[pair], q));
          dot_high[t] = _mm256_add_epi32(dot_high[t], _mm256_madd_epi16(high.w[pair], q));
        }
      }
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) {
        const __m256 scale = _mm256_set1_ps(a[t]->scale[g]);
        __m256* sum = sums[t] + first;
        sum[0] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot_low[t]), _mm256_mul_ps(low.scale[s], scale), sum[0]);
        sum[1] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot_high[t]), _mm256_mul_ps(high.scale[s], scale), sum[1]);
      }
    }
    for (int j = kMinimaPer32 * g; j < kMinimaPer32 * (g + 1); ++j) {
      for (int t = 0; t < T; ++t) {
        const __m256 x_sum = _mm256_set1_ps(kMinimaPer32 == 1 ? a[t]->sum32[j] : a[t]->sum16[j]);
        __m256* sum = sums[t] + first;
        sum[0] = _mm256_fmadd_ps(low.minimum[j], x_sum, sum[0]);
        sum[1] = _mm256_fmadd_ps(high.minimum[j], x_sum, sum[1]);
      }
    }
  }
}

// Sums of all tokens are kept side by side in the scratch, for rows of y lie whole strides of memory apart.
template <class Format>
void prefill_affine(const MatmulTask& task) {
  using U = Unpack<Format>;
  const Weight& w = *task.w;
  using Sums = __m256[kPanels];
  auto* panels =
      reinterpret_cast<Panel<U>*>(thread_scratch(sizeof(Panel<U>) * kPanels + sizeof(Sums) * size_t(task.n)));
  auto* sums = reinterpret_cast<Sums*>(panels + kPanels);  // [n][panel]
  for (int64_t r0 = task.row_begin; r0 < task.row_end; r0 += kPanels * kPanelRows) {
    const auto rows_of = [&](int p) {
      return int(std::clamp<int64_t>(task.row_end - r0 - p * kPanelRows, 0, kPanelRows));
    };
    // Panels are multiplied in twos: one that has no rows of its own holds the last one's.
    const int n_panels = rows_of(kPair) ? kPanels : kPair;
    for (int t = 0; t < task.n; ++t)
      for (int p = 0; p < n_panels; ++p)
        sums[t][p] = task.bias ? Avx2Vec::load_n(task.bias + r0 + p * kPanelRows, rows_of(p)) : _mm256_setzero_ps();
    for (int64_t k0 = 0; k0 < w.n_cols; k0 += 256) {
      for (int p = 0; p < n_panels; ++p) {
        const int64_t r = std::min(r0 + p * kPanelRows, task.row_end - 1);
        pack_panel<Format>(w, r, std::max(rows_of(p), 1), k0, panels[p]);
      }
      const int n_groups = int(std::min<int64_t>(8, (w.n_cols - k0) / 32));
      const std::byte* x = task.x + k0 / 256 * int64_t(sizeof(ActivationChunk));
      const auto tokens = [&]<int T>(int t) {
        for (int p = 0; p < n_panels; p += kPair)
          multiply_panels<U, T>(panels + p, n_groups, x + t * task.x_stride, task.x_stride, sums + t, p);
      };
      int t = 0;
      for (; t + kTokens <= task.n; t += kTokens) tokens.template operator()<kTokens>(t);
      for (; t < task.n; ++t) tokens.template operator()<1>(t);
    }
    for (int t = 0; t < task.n; ++t)
      for (int p = 0; p < n_panels; ++p)
        Avx2Vec::store_n(task.y + t * w.n_rows + r0 + p * kPanelRows, sums[t][p], rows_of(p));
  }
}

}  // namespace
}  // namespace gristmill::cpu

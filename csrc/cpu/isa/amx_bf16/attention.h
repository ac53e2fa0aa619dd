// Attention of many queries at once, tiles of 64 positions: scores = q k and sums = p v, each operand as two bfloat16,
// with the running softmax of generic/attention.h between them.
//   queries  [tile of 16][step of 32 dimensions][plane][16][32]
//   keys     [block of 16 positions][step of 32 dimensions][plane][16 pairs][16][2]
//   weights  [tile of 16][step of 32 positions][plane][16][32]
//   values   [16 dimensions][step of 32 positions][plane][16 pairs][16][2]
#pragma once

#include "cpu/generic/attention.h"
#include "cpu/isa/amx_bf16/multiply.h"
#include "cpu/isa/avx512_vnni/vec.h"

namespace gristmill::cpu {
namespace {

using Planes = Bf16Tile[2];

constexpr int kTileSteps = cpu::kTile / kStepK, kTileBlocks = cpu::kTile / kPositions;

// Sixteen bits are more than halves and bytes have. Who keeps float32 wants float32. The last tokens of a prompt fill a
// tile with zeros, so that no bit depends on where a prompt is cut.
inline bool fits_tiles(const AttentionTask& t) {
  return t.type_k != KvType::F32 && t.type_v != KvType::F32 && !t.is_decode && t.head_dim_k % kStepK == 0 &&
         t.head_dim_v % kPanelRows == 0;
}

// Two k of 16 positions, or of 16 dimensions, into the lines of a tile, the pairs side by side.
template <int kPlanes>
GRISTMILL_INLINE void set_pair(Bf16Tile (*to)[kPlanes], int pair, __m512 even, __m512 odd) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const __m512i hi = _mm512_permutexvar_epi16(order, to_bf16(even, odd));
  _mm512_store_si512(to[pair / 16][0][pair % 16], hi);
  if constexpr (kPlanes == 2) {
    const __m512 e = _mm512_castsi512_ps(_mm512_slli_epi32(hi, 16));
    const __m512 o = _mm512_castsi512_ps(_mm512_and_si512(hi, _mm512_set1_epi32(int(0xffff0000))));
    _mm512_store_si512(to[pair / 16][1][pair % 16],
                       _mm512_permutexvar_epi16(order, to_bf16(_mm512_sub_ps(even, e), _mm512_sub_ps(odd, o))));
  }
}

// Rows [n][steps * 32] of floats, a tile of 16 of them; those that are not there are zeros.
template <class Row>
inline void set_rows(int n, int steps, const Row& row, Planes* to) {
  for (int t = 0; t < kTokens; ++t) {
    const float* x = t < n ? row(t) : nullptr;
    for (int s = 0; s < steps; ++s)
      set_line<2>(to[s], t, x ? _mm512_loadu_ps(x + s * kStepK) : _mm512_setzero_ps(),
                  x ? _mm512_loadu_ps(x + s * kStepK + 16) : _mm512_setzero_ps());
  }
}

template <KvType type>
inline void set_keys(const std::byte* tile, int head_dim, float* floats, Planes* to) {
  const int steps = head_dim / kStepK;
  for (int s = 0; s < steps; ++s) {
    const float* x = floats;
    k_to_float<Avx512Vec, type>(tile, head_dim, s * kStepK, kStepK, floats);
    for (int b = 0; b < kTileBlocks; ++b)
      for (int pair = 0; pair < kStepK / 2; ++pair, x += 2 * kPositions)
        set_pair<2>(to + b * steps + s, pair, _mm512_loadu_ps(x), _mm512_loadu_ps(x + kPositions));
  }
}

// n positions of V; what follows them may be anything, and zero times that is not always zero.
template <KvType type>
inline void set_values(const std::byte* tile, int n, int head_dim, float* floats, Planes* to) {
  for (int first = 0; first < head_dim; first += kPartDims) {
    const int n_dims = std::min(kPartDims, head_dim - first);
    v_to_float<Avx512Vec, type>(tile, n, head_dim, first, n_dims, floats);
    std::fill(floats + n * n_dims, floats + cpu::kTile * n_dims, 0.0f);
    for (int d = 0; d < n_dims; d += kPanelRows)
      for (int t = 0; t < cpu::kTile; t += 2)
        set_pair<2>(to + (first + d) / kPanelRows * kTileSteps, t / 2, _mm512_loadu_ps(floats + t * n_dims + d),
                    _mm512_loadu_ps(floats + (t + 1) * n_dims + d));
  }
}

// sums [tiles * 16][n_panels * 16] (+)= x . w
inline void multiply_all(const Planes* x, int tiles, const Planes* w, int n_panels, int n_steps, bool first,
                         float* sums) {
  const int64_t bytes = n_steps * int64_t(sizeof(Planes)), line = n_panels * int64_t(64);
  const auto nothing = []() GRISTMILL_LAMBDA {};
  for (int t = 0; t < tiles; t += 2)
    for (int p = 0; p < n_panels; p += 2) {
      const SumTiles to{reinterpret_cast<std::byte*>(sums) + t * 16 * line + p * 64, 16 * line, 64, line};
      multiply_some<2, 2, Order::kStreamedFirst>(
          t + 1 < tiles, p + 1 < n_panels, reinterpret_cast<const std::byte*>(x + t * n_steps), bytes,
          reinterpret_cast<const std::byte*>(w + p * n_steps), bytes, n_steps, first, to, nothing);
    }
}

template <KvType type_k, KvType type_v>
void attend_on_tiles(const AttentionTask& t) {
  const TilesInUse tiles_in_use;
  const int tiles = (t.n_queries + kTokens - 1) / kTokens, steps = t.head_dim_k / kStepK,
            value_panels = t.head_dim_v / kPanelRows;
  const int64_t k_bytes = kv_tile_bytes(type_k, t.head_dim_k), v_bytes = kv_tile_bytes(type_v, t.head_dim_v);
  const int n_query = tiles * steps, n_key = kTileBlocks * steps, n_weight = tiles * kTileSteps,
            n_value = value_panels * kTileSteps;
  const int64_t n_scores = int64_t(tiles) * kTokens * cpu::kTile, n_acc = int64_t(tiles) * kTokens * t.head_dim_v;
  const size_t planes_bytes = size_t(n_query + n_key + n_weight + n_value) * sizeof(Planes);
  std::byte* scratch = thread_scratch(planes_bytes + size_t(n_scores + n_acc + kPartFloats) * sizeof(float));
  auto* query = reinterpret_cast<Planes*>(scratch);
  Planes *key = query + n_query, *weight = key + n_key, *value = weight + n_weight;
  auto* scores = reinterpret_cast<float*>(scratch + planes_bytes);
  float *acc = scores + n_scores, *floats = acc + n_acc;
  for (int j = 0; j < tiles; ++j)
    set_rows(t.n_queries - j * kTokens, steps, [&](int i) { return t.q[j * kTokens + i]; }, query + j * steps);
  std::fill_n(t.max, t.n_queries, -std::numeric_limits<float>::infinity());
  std::fill_n(t.sum, t.n_queries, 0.0f);
  std::fill_n(acc, n_acc, 0.0f);
  for (int64_t p = t.begin; p < t.end; p += cpu::kTile) {
    const int64_t chunk = p / kChunk * t.chunk_bytes, tile = p % kChunk / cpu::kTile;
    const int n = int(std::min<int64_t>(cpu::kTile, t.end - p));
    set_keys<type_k>(t.k + chunk + tile * k_bytes, t.head_dim_k, floats, key);
    multiply_all(query, tiles, key, kTileBlocks, steps, true, scores);
    for (int j = 0; j < t.n_queries; ++j)
      update_softmax<Avx512Vec>(scores + int64_t(j) * cpu::kTile, int(std::min<int64_t>(n, t.n_visible[j] - p)),
                                t.scale, t.max[j], t.sum[j], acc + int64_t(j) * t.head_dim_v, t.head_dim_v);
    for (int j = 0; j < tiles; ++j)
      set_rows(
          kTokens, kTileSteps, [&](int i) { return scores + int64_t(j * kTokens + i) * cpu::kTile; },
          weight + j * kTileSteps);
    set_values<type_v>(t.v + chunk + tile * v_bytes, n, t.head_dim_v, floats, value);
    multiply_all(weight, tiles, value, value_panels, kTileSteps, false, acc);
  }
  std::copy_n(acc, int64_t(t.n_queries) * t.head_dim_v, t.acc);
}

inline void attention_on_tiles(const AttentionTask& t) {
  constexpr auto kHalf = KvType::F16, kByte = KvType::Q8_0;
  const bool half_k = t.type_k == kHalf, half_v = t.type_v == kHalf;
  if (half_k) return half_v ? attend_on_tiles<kHalf, kHalf>(t) : attend_on_tiles<kHalf, kByte>(t);
  return half_v ? attend_on_tiles<kByte, kHalf>(t) : attend_on_tiles<kByte, kByte>(t);
}

}  // namespace
}  // namespace gristmill::cpu

// Attention of a few queries over one piece of one head's keys and values, with the running softmax of FlashAttention
// (Dao et al. 2022): scores of a tile of positions, new maximum, old sums rescaled, values added.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/generic/ask.h"
#include "cpu/generic/elementwise.h"
#include "cpu/kernels.h"
#include "cpu/kv_layout.h"

namespace gristmill::cpu {

template <class V, KvType type>
inline typename V::T load_kv(const std::byte* p, int64_t i) {
  if constexpr (type == KvType::F32) return V::load(reinterpret_cast<const float*>(p) + i);
  if constexpr (type == KvType::F16) return V::from_half(reinterpret_cast<const uint16_t*>(p) + i);
  if constexpr (type == KvType::Q8_0) return V::from_int8(reinterpret_cast<const int8_t*>(p) + i);
}

// scores[j * kTile + position] for Q queries and kBlocks blocks of 16 positions: lanes are positions, q is broadcast.
// What lies `ahead` bytes further, if that is not 0, is asked of memory meanwhile, into L2: L1 is full.
template <class V, KvType type, int Q, int kBlocks>
inline void score_blocks(const std::byte* k, int64_t block_bytes, int64_t ahead, int head_dim, const float* const* q,
                         float* scores) {
  constexpr int kVectors = kPositions / V::N;                 // of a block
  constexpr int kDims = type == KvType::Q8_0 ? 32 : 1 << 30;  // that share scales
  typename V::T acc[Q][kBlocks * kVectors];
  for (auto& row : acc)
    for (auto& a : row) a = V::zero();
  const int64_t step = ahead ? kBlocks * bytes_of(type, 32 * kPositions) / 32 : 0;  // bytes of a dimension
  RegionAsker<kBlocks> next(k + ahead, kBlocks * block_bytes);
  for (int first = 0; first < head_dim; first += kDims, k += 34 * kPositions) {
    [[maybe_unused]] alignas(64) float scale[kBlocks * kPositions];
    const std::byte* p = k;
    if constexpr (type == KvType::Q8_0) {
      for (int i = 0; i < kBlocks * kVectors; ++i) {
        const auto* halves = reinterpret_cast<const uint16_t*>(k + i / kVectors * block_bytes);
        V::store(scale + i * V::N, V::from_half(halves + i % kVectors * V::N));
      }
      p += 2 * kPositions;
    }
    const int dims = std::min(head_dim - first, kDims);
    for (int d = 0; d < dims; ++d) {
      next.advance(step);
      for (int b = 0; b < kBlocks; ++b) {
        const std::byte* block = p + b * block_bytes;
        for (int l = 0; l < kVectors; ++l) {
          typename V::T key = load_kv<V, type>(block, int64_t(d) * kPositions + l * V::N);
          if constexpr (type == KvType::Q8_0) key = V::mul(key, V::load(scale + (b * kVectors + l) * V::N));
          for (int j = 0; j < Q; ++j) {
            auto& a = acc[j][b * kVectors + l];
            a = V::fma(V::set(q[j][first + d]), key, a);
          }
        }
      }
    }
  }
  for (int j = 0; j < Q; ++j)
    for (int i = 0; i < kBlocks * kVectors; ++i) V::store(scores + j * kTile + i * V::N, acc[j][i]);
}

// acc[j * head_dim + d] += sum over positions of p[j * kTile + position] * v[position][d], for Q queries.
template <class V, KvType type, int Q>
inline void add_values(const std::byte* v, int64_t row_bytes, int64_t ahead, int n_positions, int head_dim,
                       const float* p, float* acc) {
  constexpr int kVectors = V::kValueVectors;
  constexpr int kStep = kVectors * V::N;
  const int64_t step = ahead ? bytes_of(type, kStep) : 0;
  RegionAsker<kTile / kPositions> next(v + ahead, kTile * row_bytes);
  int d = 0;
  for (; d + kStep <= head_dim; d += kStep) {
    typename V::T sum[Q][kVectors];
    for (int j = 0; j < Q; ++j)
      for (int i = 0; i < kVectors; ++i) sum[j][i] = V::load(acc + int64_t(j) * head_dim + d + i * V::N);
    for (int t = 0; t < n_positions; ++t) {
      const std::byte* row = v + t * row_bytes;
      next.advance(step);
      [[maybe_unused]] typename V::T scale = V::zero();
      for (int i = 0; i < kVectors; ++i) {
        typename V::T value;
        if constexpr (type == KvType::Q8_0) {
          // V::N divides 32, so a vector lies in one block of the row.
          const int at = d + i * V::N;
          const std::byte* block = row + at / 32 * 34;
          if (i == 0 || at % 32 == 0) scale = V::set_half(reinterpret_cast<const uint16_t*>(block));
          value = V::mul(load_kv<V, type>(block + 2, at % 32), scale);
        } else {
          value = load_kv<V, type>(row, d + i * V::N);
        }
        for (int j = 0; j < Q; ++j) sum[j][i] = V::fma(V::set(p[j * kTile + t]), value, sum[j][i]);
      }
    }
    for (int j = 0; j < Q; ++j)
      for (int i = 0; i < kVectors; ++i) V::store(acc + int64_t(j) * head_dim + d + i * V::N, sum[j][i]);
  }
  for (; d < head_dim; ++d) {  // heads that are no multiple of the step
    for (int j = 0; j < Q; ++j) {
      float sum = acc[int64_t(j) * head_dim + d];
      for (int t = 0; t < n_positions; ++t) {
        const std::byte* row = v + t * row_bytes;
        float value;
        if constexpr (type == KvType::F32) {
          value = reinterpret_cast<const float*>(row)[d];
        } else if constexpr (type == KvType::F16) {
          value = half_to_float(reinterpret_cast<const uint16_t*>(row)[d]);
        } else {
          const std::byte* block = row + d / 32 * 34;
          value = half_to_float(*reinterpret_cast<const uint16_t*>(block)) *
                  float(reinterpret_cast<const int8_t*>(block + 2)[d % 32]);
        }
        sum += p[j * kTile + t] * value;
      }
      acc[int64_t(j) * head_dim + d] = sum;
    }
  }
}

// Calls f.template operator()<Q>(first) for groups of at most kMost of n queries, all about as large.
template <int kMost, class F>
inline void for_query_groups(int n, const F& f) {
  const auto one = [&]<int Q>(const auto& self, int q, int first) {
    if constexpr (Q > 0) {
      if (q == Q) return f.template operator()<Q>(first);
      self.template operator()<Q - 1>(self, q, first);
    }
  };
  int groups = (n + kMost - 1) / kMost;
  for (int first = 0; groups > 0; --groups) {
    const int q = (n - first + groups - 1) / groups;
    one.template operator()<kMost>(one, q, first);
    first += q;
  }
}

// The running softmax over one tile: scores become weights, sums and acc are brought to the new maximum.
template <class V>
inline void update_softmax(float* scores, int n_visible, float scale, float& max, float& sum, float* acc,
                           int head_dim) {
  using T = typename V::T;
  if (n_visible < kTile)
    std::fill(scores + std::max(n_visible, 0), scores + kTile, -std::numeric_limits<float>::infinity());
  if (n_visible <= 0) {
    std::fill(scores, scores + kTile, 0.0f);
    return;
  }
  T top = V::load(scores);
  for (int i = V::N; i < kTile; i += V::N) top = V::max(top, V::load(scores + i));
  const float new_max = std::max(max, V::maximum(top) * scale);
  if (new_max != max) {
    if (sum != 0.0f) {
      const float factor = std::exp(max - new_max);
      sum *= factor;
      const T f = V::set(factor);
      for_vectors<V>(head_dim, [&](int64_t d, int count) {
        store_some<V>(acc + d, V::mul(load_some<V>(acc + d, count), f), count);
      });
    }
    max = new_max;
  }
  T total = V::zero();
  const T s = V::set(scale), m = V::set(-new_max);
  for (int i = 0; i < kTile; i += V::N) {
    T p = exponential<V>(V::fma(V::load(scores + i), s, m));
    if (i + V::N > n_visible) p = V::first_n(p, n_visible - i);
    V::store(scores + i, p);
    total = V::add(total, p);
  }
  sum += V::sum(total);
}

struct KvTile {
  const std::byte *k, *v;
};

// A tile of K and of V, for all queries. The next tile, if there is one, is asked of memory.
template <class V, KvType type_k, KvType type_v>
inline void attend_tile(const AttentionTask& t, int64_t p, const KvTile& tile, const KvTile* next, float* scores) {
  const int64_t k_bytes = k_block_bytes(type_k, t.head_dim_k), v_bytes = v_row_bytes(type_v, t.head_dim_v);
  for_query_groups<V::kQueries>(t.n_queries, [&]<int Q>(int j) {
    const int64_t ahead = next && j == 0 ? next->k - tile.k : 0;
    for (int b = 0; b < kTile / kPositions; b += V::kScoreBlocks)
      score_blocks<V, type_k, Q, V::kScoreBlocks>(tile.k + b * k_bytes, k_bytes, ahead, t.head_dim_k, t.q + j,
                                                  scores + int64_t(j) * kTile + b * kPositions);
  });
  const int n = int(std::min<int64_t>(kTile, t.end - p));
  for (int j = 0; j < t.n_queries; ++j)
    update_softmax<V>(scores + int64_t(j) * kTile, int(std::min<int64_t>(n, t.n_visible[j] - p)), t.scale, t.max[j],
                      t.sum[j], t.acc + int64_t(j) * t.head_dim_v, t.head_dim_v);
  for_query_groups<V::kQueries>(t.n_queries, [&]<int Q>(int j) {
    const int64_t ahead = next && j == 0 ? next->v - tile.v : 0;
    add_values<V, type_v, Q>(tile.v, v_bytes, ahead, n, t.head_dim_v, scores + int64_t(j) * kTile,
                             t.acc + int64_t(j) * t.head_dim_v);
  });
}

// Queries from which on a tile is converted to float32 once instead of by each group of them.
constexpr int kManyQueries = 16;

// A block of K, and a row of V, as float32.
template <class V, KvType type>
inline void k_to_float(const std::byte* k, int head_dim, float* out) {
  for (int d = 0; d < head_dim; ++d) {
    const std::byte* group = type == KvType::Q8_0 ? k + d / 32 * 34 * kPositions : k;
    for (int l = 0; l < kPositions; l += V::N, out += V::N) {
      if constexpr (type == KvType::Q8_0) {
        const typename V::T scale = V::from_half(reinterpret_cast<const uint16_t*>(group) + l);
        V::store(out, V::mul(load_kv<V, type>(group + 2 * kPositions, d % 32 * kPositions + l), scale));
      } else {
        V::store(out, load_kv<V, type>(group, int64_t(d) * kPositions + l));
      }
    }
  }
}
template <class V, KvType type>
inline void v_to_float(const std::byte* v, int head_dim, float* out) {
  for (int d = 0; d < head_dim; d += V::N) {
    if constexpr (type == KvType::Q8_0) {
      const std::byte* block = v + d / 32 * 34;
      const typename V::T scale = V::set_half(reinterpret_cast<const uint16_t*>(block));
      V::store(out + d, V::mul(load_kv<V, type>(block + 2, d % 32), scale));
    } else {
      V::store(out + d, load_kv<V, type>(v, d));
    }
  }
}

template <class V, KvType type_k, KvType type_v>
void attend(const AttentionTask& t) {
  const int64_t k_bytes = k_block_bytes(type_k, t.head_dim_k), v_bytes = v_row_bytes(type_v, t.head_dim_v);
  const int64_t n_scores = int64_t(t.n_queries) * kTile, k_floats = kTile * t.head_dim_k;
  constexpr bool kFloats = type_k == KvType::F32 && type_v == KvType::F32;
  const bool convert = !kFloats && t.n_queries >= kManyQueries && t.head_dim_v % V::N == 0;
  const int64_t n_floats = n_scores + (convert ? k_floats + kTile * t.head_dim_v : 0);
  float* scores = reinterpret_cast<float*>(thread_scratch(size_t(n_floats) * sizeof(float)));
  float *k_tile = scores + n_scores, *v_tile = k_tile + k_floats;
  for (int j = 0; j < t.n_queries; ++j) {
    t.max[j] = -std::numeric_limits<float>::infinity();
    t.sum[j] = 0.0f;
  }
  std::fill(t.acc, t.acc + int64_t(t.n_queries) * t.head_dim_v, 0.0f);
  const auto tile_at = [&](int64_t p) {
    const int64_t chunk = p / kChunk * t.chunk_bytes, at = p % kChunk;
    return KvTile{t.k + chunk + at / kPositions * k_bytes, t.v + chunk + at * v_bytes};
  };
  KvTile tile = tile_at(t.begin), next = tile;
  for (int64_t p = t.begin; p < t.end; p += kTile, tile = next) {
    const bool more = p + kTile < t.end;
    if (more) next = tile_at(p + kTile);
    if (!convert) {
      attend_tile<V, type_k, type_v>(t, p, tile, more ? &next : nullptr, scores);
      continue;
    }
    for (int b = 0; b < kTile / kPositions; ++b)
      k_to_float<V, type_k>(tile.k + b * k_bytes, t.head_dim_k, k_tile + b * kPositions * t.head_dim_k);
    for (int i = 0; i < std::min<int64_t>(kTile, t.end - p); ++i)
      v_to_float<V, type_v>(tile.v + i * v_bytes, t.head_dim_v, v_tile + i * t.head_dim_v);
    const KvTile floats = {reinterpret_cast<const std::byte*>(k_tile), reinterpret_cast<const std::byte*>(v_tile)};
    attend_tile<V, KvType::F32, KvType::F32>(t, p, floats, nullptr, scores);
  }
}

template <class V>
void attention(const AttentionTask& t) {
  const auto with_k = [&]<KvType type_k>() {
    switch (t.type_v) {
      case KvType::F32:
        return attend<V, type_k, KvType::F32>(t);
      case KvType::F16:
        return attend<V, type_k, KvType::F16>(t);
      case KvType::Q8_0:
        return attend<V, type_k, KvType::Q8_0>(t);
    }
  };
  switch (t.type_k) {
    case KvType::F32:
      return with_k.template operator()<KvType::F32>();
    case KvType::F16:
      return with_k.template operator()<KvType::F16>();
    case KvType::Q8_0:
      return with_k.template operator()<KvType::Q8_0>();
  }
}

}  // namespace gristmill::cpu

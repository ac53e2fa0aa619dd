// Attention of a few queries over one piece of one head's keys and values, with the running softmax of FlashAttention
// (Dao et al. 2022): scores of a tile of positions, new maximum, old sums rescaled, values added.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

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
template <class V, KvType type, int Q, int kBlocks>
inline void score_blocks(const std::byte* k, int64_t block_bytes, int head_dim, const float* const* q, float* scores) {
  constexpr int kVectors = kPositions / V::N;  // of a block
  typename V::T acc[Q][kBlocks * kVectors];
  for (auto& row : acc)
    for (auto& a : row) a = V::zero();
  const auto step = [&](const std::byte* p, int64_t at, int dim, typename V::T(&into)[Q][kBlocks* kVectors]) {
    for (int b = 0; b < kBlocks; ++b) {
      for (int l = 0; l < kVectors; ++l) {
        const typename V::T key = load_kv<V, type>(p + b * block_bytes, at + l * V::N);
        for (int j = 0; j < Q; ++j) {
          auto& a = into[j][b * kVectors + l];
          a = V::fma(V::set(q[j][dim]), key, a);
        }
      }
    }
  };
  if constexpr (type == KvType::Q8_0) {
    for (int i = 0; i < head_dim; i += 32, k += 34 * kPositions) {
      typename V::T part[Q][kBlocks * kVectors];
      for (auto& row : part)
        for (auto& a : row) a = V::zero();
      for (int d = 0; d < 32; ++d) step(k + 2 * kPositions, int64_t(d) * kPositions, i + d, part);
      for (int b = 0; b < kBlocks; ++b) {
        for (int l = 0; l < kVectors; ++l) {
          const typename V::T s = V::from_half(reinterpret_cast<const uint16_t*>(k + b * block_bytes) + l * V::N);
          for (int j = 0; j < Q; ++j) {
            auto& a = acc[j][b * kVectors + l];
            a = V::fma(part[j][b * kVectors + l], s, a);
          }
        }
      }
    }
  } else {
    for (int d = 0; d < head_dim; ++d) step(k, int64_t(d) * kPositions, d, acc);
  }
  for (int j = 0; j < Q; ++j)
    for (int i = 0; i < kBlocks * kVectors; ++i) V::store(scores + j * kTile + i * V::N, acc[j][i]);
}

// acc[j * head_dim + d] += sum over positions of p[j * kTile + position] * v[position][d], for Q queries.
template <class V, KvType type, int Q>
inline void add_values(const std::byte* v, int64_t row_bytes, int n_positions, int head_dim, const float* p,
                       float* acc) {
  constexpr int kVectors = V::kValueVectors;
  constexpr int kStep = kVectors * V::N;
  int d = 0;
  for (; d + kStep <= head_dim; d += kStep) {
    typename V::T sum[Q][kVectors];
    for (int j = 0; j < Q; ++j)
      for (int i = 0; i < kVectors; ++i) sum[j][i] = V::load(acc + int64_t(j) * head_dim + d + i * V::N);
    for (int t = 0; t < n_positions; ++t) {
      const std::byte* row = v + t * row_bytes;
      for (int i = 0; i < kVectors; ++i) {
        typename V::T value;
        if constexpr (type == KvType::Q8_0) {
          // V::N divides 32, so a vector lies in one block of the row.
          const int at = d + i * V::N;
          const std::byte* block = row + at / 32 * 34;
          const typename V::T scale = V::set(half_to_float(*reinterpret_cast<const uint16_t*>(block)));
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

// Calls f.template operator()<Q>(first) for groups of queries: V::kQueries at a time, then what is left.
template <int kMost, class F>
inline void for_query_groups(int n, const F& f) {
  int j = 0;
  for (; j + kMost <= n; j += kMost) f.template operator()<kMost>(j);
  if constexpr (kMost > 1) {
    const int rest = n - j;
    const auto tail = [&]<int Q>(int) { f.template operator()<Q>(j); };
    if constexpr (kMost > 3) {
      if (rest == 3) return tail.template operator()<3>(0);
    }
    if constexpr (kMost > 2) {
      if (rest == 2) return tail.template operator()<2>(0);
    }
    if (rest == 1) tail.template operator()<1>(0);
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

template <class V, KvType type_k, KvType type_v>
void attend(const AttentionTask& t) {
  const int64_t k_bytes = k_block_bytes(type_k, t.head_dim_k), v_bytes = v_row_bytes(type_v, t.head_dim_v);
  float* scores = reinterpret_cast<float*>(thread_scratch(size_t(t.n_queries) * kTile * sizeof(float)));
  for (int j = 0; j < t.n_queries; ++j) {
    t.max[j] = -std::numeric_limits<float>::infinity();
    t.sum[j] = 0.0f;
  }
  std::fill(t.acc, t.acc + int64_t(t.n_queries) * t.head_dim_v, 0.0f);
  for (int64_t p = t.begin; p < t.end; p += kTile) {
    const std::byte* k = t.k + p / kPositions * k_bytes;
    for_query_groups<V::kQueries>(t.n_queries, [&]<int Q>(int j) {
      for (int b = 0; b < kTile / kPositions; b += V::kScoreBlocks)
        score_blocks<V, type_k, Q, V::kScoreBlocks>(k + b * k_bytes, k_bytes, t.head_dim_k, t.q + j,
                                                    scores + int64_t(j) * kTile + b * kPositions);
    });
    const int n = int(std::min<int64_t>(kTile, t.end - p));
    for (int j = 0; j < t.n_queries; ++j)
      update_softmax<V>(scores + int64_t(j) * kTile, int(std::min<int64_t>(n, t.n_visible[j] - p)), t.scale, t.max[j],
                        t.sum[j], t.acc + int64_t(j) * t.head_dim_v, t.head_dim_v);
    for_query_groups<V::kQueries>(t.n_queries, [&]<int Q>(int j) {
      add_values<V, type_v, Q>(t.v + p * v_bytes, v_bytes, n, t.head_dim_v, scores + int64_t(j) * kTile,
                               t.acc + int64_t(j) * t.head_dim_v);
    });
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

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
}

// scores[j * kTile + position] (+)= for Q queries from dimension q_first on, and kBlocks blocks of 16 positions: lanes
// are positions, q is broadcast. As many bytes as are read are asked for meanwhile.
template <class V, KvType type, int Q, int kBlocks>
inline void score_blocks(const std::byte* k, int64_t block_bytes, PairAsker* asker, int n_dims, const float* const* q,
                         int q_first, float* scores) {
  constexpr int kVectors = kPositions / V::N;  // of a block
  typename V::T acc[Q][kBlocks * kVectors];
  for (int j = 0; j < Q; ++j)
    for (int i = 0; i < kBlocks * kVectors; ++i)
      acc[j][i] = q_first == 0 ? V::zero() : V::load(scores + j * kTile + i * V::N);
  for (int d = 0; d < n_dims; ++d) {
    if (asker) asker->advance(kBlocks * bytes_of(type, kPositions));
    for (int b = 0; b < kBlocks; ++b) {
      for (int l = 0; l < kVectors; ++l) {
        const typename V::T key = load_kv<V, type>(k + b * block_bytes, int64_t(d) * kPositions + l * V::N);
        for (int j = 0; j < Q; ++j) {
          auto& a = acc[j][b * kVectors + l];
          a = V::fma(V::set(q[j][q_first + d]), key, a);
        }
      }
    }
  }
  for (int j = 0; j < Q; ++j)
    for (int i = 0; i < kBlocks * kVectors; ++i) V::store(scores + j * kTile + i * V::N, acc[j][i]);
}

// acc[j * acc_stride + d] += sum over positions of p[j * kTile + position] * v[position][d], for Q queries.
template <class V, KvType type, int Q, int kVectors>
inline void add_values(const std::byte* v, int64_t row_bytes, PairAsker* asker, int n_positions, int n_dims,
                       const float* p, float* acc, int64_t acc_stride) {
  constexpr int kStep = kVectors * V::N;
  int d = 0;
  for (; d + kStep <= n_dims; d += kStep) {
    typename V::T sum[Q][kVectors];
    for (int j = 0; j < Q; ++j)
      for (int i = 0; i < kVectors; ++i) sum[j][i] = V::load(acc + j * acc_stride + d + i * V::N);
    for (int t = 0; t < n_positions; ++t) {
      if (asker) asker->advance(bytes_of(type, kStep));
      for (int i = 0; i < kVectors; ++i) {
        const typename V::T value = load_kv<V, type>(v + t * row_bytes, d + i * V::N);
        for (int j = 0; j < Q; ++j) sum[j][i] = V::fma(V::set(p[j * kTile + t]), value, sum[j][i]);
      }
    }
    for (int j = 0; j < Q; ++j)
      for (int i = 0; i < kVectors; ++i) V::store(acc + j * acc_stride + d + i * V::N, sum[j][i]);
  }
  // A head that is no multiple of the step: the same operations whatever the step is, so that its bits are too.
  for (; d + V::N <= n_dims; d += V::N) {
    for (int j = 0; j < Q; ++j) {
      typename V::T sum = V::load(acc + j * acc_stride + d);
      for (int t = 0; t < n_positions; ++t)
        sum = V::fma(V::set(p[j * kTile + t]), load_kv<V, type>(v + t * row_bytes, d), sum);
      V::store(acc + j * acc_stride + d, sum);
    }
  }
  for (; d < n_dims; ++d) {
    for (int j = 0; j < Q; ++j) {
      float sum = acc[j * acc_stride + d];
      for (int t = 0; t < n_positions; ++t) {
        const std::byte* row = v + t * row_bytes;
        if constexpr (type == KvType::F32) sum += p[j * kTile + t] * reinterpret_cast<const float*>(row)[d];
        if constexpr (type == KvType::F16)
          sum += p[j * kTile + t] * half_to_float(reinterpret_cast<const uint16_t*>(row)[d]);
      }
      acc[j * acc_stride + d] = sum;
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

// ---- Part of a tile as float32: [4 blocks][n_dims][16] of K, [n][n_dims] of V ----

// Dimensions [first, first + n_dims) of a tile of K; those that share scales, of Q8_0.
template <class V, KvType type>
inline void k_to_float(const std::byte* tile, int head_dim, int first, int n_dims, float* out) {
  for (int b = 0; b < kTile / kPositions; ++b) {
    for (int d = 0; d < n_dims; d += type == KvType::Q8_0 ? 4 : 1) {
      if constexpr (type == KvType::Q8_0) {
        const auto& part = reinterpret_cast<const BytePart*>(tile)[first / kPartDims];
        for (int l = 0; l < kPositions; l += V::N) {
          const typename V::T scale = V::from_half(part.scale + b * kPositions + l);
          for_constants<4>([&](auto i) GRISTMILL_LAMBDA {
            V::store(out + i * kPositions + l,
                     V::mul(V::template from_int8_of_four<i>(part.code + k_code(b * kPositions + l, d)), scale));
          });
        }
        out += 4 * kPositions;
      } else {
        const std::byte* block = tile + b * k_block_bytes(type, head_dim);
        for (int l = 0; l < kPositions; l += V::N, out += V::N)
          V::store(out, load_kv<V, type>(block, int64_t(first + d) * kPositions + l));
      }
    }
  }
}

// The same of V, of its first n positions, rounded up to four.
template <class V, KvType type>
inline void v_to_float(const std::byte* tile, int n, int head_dim, int first, int n_dims, float* out) {
  if constexpr (type == KvType::Q8_0) {
    const auto& part = reinterpret_cast<const BytePart*>(tile)[first / kPartDims];
    for (int t = 0; t < n; t += 4) {
      for_constants<4>([&](auto i) GRISTMILL_LAMBDA {
        const typename V::T scale = V::set_half(part.scale + t + i);
        for (int d = 0; d < n_dims; d += V::N)
          V::store(out + (t + i) * n_dims + d,
                   V::mul(V::template from_int8_of_four<i>(part.code + v_code(t, d)), scale));
      });
    }
  } else {
    for (int t = 0; t < n; ++t, out += n_dims)
      for (int d = 0; d < n_dims; d += V::N)
        V::store(out + d, load_kv<V, type>(tile + t * v_row_bytes(type, head_dim), first + d));
  }
}

constexpr int kPartFloats = kTile * kPartDims;

// Queries from which on halves are converted once instead of by each group of queries; bytes always are.
constexpr int kManyQueries = 16;
template <class V, KvType type>
inline bool converts(const AttentionTask& t, bool divides) {
  return type == KvType::Q8_0 || (type == KvType::F16 && t.n_queries >= kManyQueries && divides);
}

// Scores [n_queries][kTile] of a tile. As many bytes as it has are asked for.
template <class V, KvType type>
inline void score_tile(const AttentionTask& t, const std::byte* tile, PairAsker* asker, float* part, float* scores) {
  constexpr auto kFloat = KvType::F32;
  const auto score = [&]<KvType from, int Q>(const std::byte* k, int64_t block_bytes, PairAsker* ask, int n_dims,
                                             int first, int j) {
    for (int b = 0; b < kTile / kPositions; b += V::kScoreBlocks)
      score_blocks<V, from, Q, V::kScoreBlocks>(k + b * block_bytes, block_bytes, ask, n_dims, t.q + j, first,
                                                scores + int64_t(j) * kTile + b * kPositions);
  };
  if (!converts<V, type>(t, true)) {
    if constexpr (type != KvType::Q8_0)
      for_query_groups<V::kQueries>(t.n_queries, [&]<int Q>(int j) {
        score.template operator()<type, Q>(tile, k_block_bytes(type, t.head_dim_k), j == 0 ? asker : nullptr,
                                           t.head_dim_k, 0, j);
      });
    return;
  }
  const auto* const floats = reinterpret_cast<const std::byte*>(part);
  for (int first = 0; first < t.head_dim_k; first += kPartDims) {
    const int n_dims = std::min(kPartDims, t.head_dim_k - first);
    if (asker) asker->advance(kv_tile_bytes(type, n_dims));
    k_to_float<V, type>(tile, t.head_dim_k, first, n_dims, part);
    for_query_groups<V::kQueries>(t.n_queries, [&]<int Q>(int j) {
      score.template operator()<kFloat, Q>(floats, bytes_of(kFloat, n_dims * kPositions), nullptr, n_dims, first, j);
    });
  }
}

// acc [n_queries][head_dim_v] += p [n_queries][kTile] times the first n positions of a tile.
template <class V, KvType type>
inline void add_tile(const AttentionTask& t, const std::byte* tile, PairAsker* asker, int n, float* part,
                     const float* p) {
  constexpr auto kFloat = KvType::F32;
  constexpr int kPartVectors = std::min(V::kValueVectors, kPartDims / V::N);
  if (!converts<V, type>(t, t.head_dim_v % V::N == 0)) {
    if constexpr (type != KvType::Q8_0)
      for_query_groups<V::kQueries>(t.n_queries, [&]<int Q>(int j) {
        add_values<V, type, Q, V::kValueVectors>(tile, v_row_bytes(type, t.head_dim_v), j == 0 ? asker : nullptr, n,
                                                 t.head_dim_v, p + int64_t(j) * kTile,
                                                 t.acc + int64_t(j) * t.head_dim_v, t.head_dim_v);
      });
    return;
  }
  for (int first = 0; first < t.head_dim_v; first += kPartDims) {
    const int n_dims = std::min(kPartDims, t.head_dim_v - first);
    if (asker) asker->advance(kv_tile_bytes(type, n_dims));
    v_to_float<V, type>(tile, n, t.head_dim_v, first, n_dims, part);
    for_query_groups<V::kQueries>(t.n_queries, [&]<int Q>(int j) {
      add_values<V, kFloat, Q, kPartVectors>(reinterpret_cast<const std::byte*>(part), bytes_of(kFloat, n_dims),
                                             nullptr, n, n_dims, p + int64_t(j) * kTile,
                                             t.acc + int64_t(j) * t.head_dim_v + first, t.head_dim_v);
    });
  }
}

template <class V, class Bytes, KvType type_k, KvType type_v>
void attend(const AttentionTask& t) {
  // In integers, where the set has them.
  constexpr bool kByteKeys = type_k == KvType::Q8_0 && Bytes::kExists,
                 kByteValues = type_v == KvType::Q8_0 && Bytes::kExists;
  const size_t n_scores = size_t(t.n_queries) * kTile,
               n_bytes = (kByteKeys || kByteValues) && t.is_decode ? Bytes::scratch_bytes(t) : 0;
  std::byte* scratch = thread_scratch(n_bytes + (n_scores + kPartFloats) * sizeof(float));
  float* scores = reinterpret_cast<float*>(scratch + n_bytes);
  float* part = scores + n_scores;
  [[maybe_unused]] const Bytes bytes(t, n_bytes > 0 ? scratch : nullptr);
  std::fill_n(t.max, t.n_queries, -std::numeric_limits<float>::infinity());
  std::fill_n(t.sum, t.n_queries, 0.0f);
  std::fill_n(t.acc, int64_t(t.n_queries) * t.head_dim_v, 0.0f);
  const int64_t k_bytes = kv_tile_bytes(type_k, t.head_dim_k), v_bytes = kv_tile_bytes(type_v, t.head_dim_v);
  const auto tile_of = [&](const std::byte* first, int64_t bytes_of_tile, int64_t p) {
    return first + p / kChunk * t.chunk_bytes + p % kChunk / kTile * bytes_of_tile;
  };
  for (int64_t p = t.begin; p < t.end; p += kTile) {
    const int n = int(std::min<int64_t>(kTile, t.end - p));
    const std::byte *k = tile_of(t.k, k_bytes, p), *v = tile_of(t.v, v_bytes, p);
    // The next tiles of K and V are asked for side by side, or each in two halves where they are not equally long.
    const bool has_next = p + kTile < t.ask_end;
    const std::byte *next_k = has_next ? tile_of(t.k, k_bytes, p + kTile) : k,
                    *next_v = has_next ? tile_of(t.v, v_bytes, p + kTile) : v;
    PairAsker asker(next_k, k_bytes == v_bytes ? next_v : next_k + k_bytes / 2);
    if (kByteKeys && t.is_decode) {
      bytes.score_tile(k, has_next ? &asker : nullptr, scores);
    } else {
      score_tile<V, type_k>(t, k, has_next ? &asker : nullptr, part, scores);
    }
    for (int j = 0; j < t.n_queries; ++j)
      update_softmax<V>(scores + int64_t(j) * kTile, int(std::min<int64_t>(n, t.n_visible[j] - p)), t.scale, t.max[j],
                        t.sum[j], t.acc + int64_t(j) * t.head_dim_v, t.head_dim_v);
    if (k_bytes != v_bytes) asker = PairAsker(next_v, next_v + v_bytes / 2);
    if (kByteValues && t.is_decode) {
      bytes.add_tile(v, has_next ? &asker : nullptr, n, scores);
    } else {
      add_tile<V, type_v>(t, v, has_next ? &asker : nullptr, n, part, scores);
    }
  }
}

// For sets that have no integers for bytes: keys and values become float32.
namespace {
struct NoBytes {
  static constexpr bool kExists = false;
  static size_t scratch_bytes(const AttentionTask&) { return 0; }
  NoBytes(const AttentionTask&, std::byte*) {}
  void score_tile(const std::byte*, PairAsker*, float*) const {}
  void add_tile(const std::byte*, PairAsker*, int, const float*) const {}
};
}  // namespace

// Bytes: decoding with keys and values of Q8_0 in integers, as in isa/avx512_vnni/attention.h, or NoBytes.
template <class V, class Bytes>
void attention(const AttentionTask& t) {
  const auto with_k = [&]<KvType type_k>() {
    switch (t.type_v) {
      case KvType::F32:
        return attend<V, Bytes, type_k, KvType::F32>(t);
      case KvType::F16:
        return attend<V, Bytes, type_k, KvType::F16>(t);
      case KvType::Q8_0:
        return attend<V, Bytes, type_k, KvType::Q8_0>(t);
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

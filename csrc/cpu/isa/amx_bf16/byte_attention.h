// Attention of one token to keys and values of Q8_0 on tiles of int8, whose second operand is the cache as it lies:
//   scores  queries [plane][query][32 dimensions] . keys [8][16 positions][4 dimensions]      a block of a part
//   values  weights [plane][query][64 positions] . values [16][16 dimensions][4 positions]    half a part
// Exact but for the roundings of isa/avx512_vnni/attention_codes.h.
#pragma once

#include <array>
#include <optional>

#include "cpu/generic/attention.h"
#include "cpu/isa/amx_bf16/tile_registers.h"
#include "cpu/isa/avx512_vnni/attention_codes.h"
#include "cpu/isa/avx512_vnni/vec.h"

namespace gristmill::cpu {
namespace {

class ByteTiles {
 public:
  static constexpr bool kExists = true;

  static size_t scratch_bytes(const AttentionTask& t) {
    return 2 * sizeof(Sums[kBlocks]) + size_t(parts_of(t.head_dim_v)) * sizeof(WeightPart) +
           size_t(groups_of(t) * parts_of(t.head_dim_k)) * sizeof(QueryPart);
  }

  // Rounds the queries, if keys are bytes. Without scratch, where neither keys nor values are, nothing may be called.
  ByteTiles(const AttentionTask& t, std::byte* scratch) : t_(t) {
    if (!scratch) return;
    group_ = (t.n_queries + groups_of(t) - 1) / groups_of(t);
    sums_ = reinterpret_cast<Sums(*)[kBlocks]>(scratch);
    weight_ = reinterpret_cast<WeightPart*>(sums_ + 2);
    query_ = reinterpret_cast<QueryPart*>(weight_ + parts_of(t.head_dim_v));
    TileShapes shapes;
    for (const int i : {0, 1, 2, 3, kQueryTile, kWeightTile}) shapes.rows[i] = uint8_t(2 * group_);
    shapes.row_bytes[kQueryTile] = kPartDims;
    shapes.rows[kKeyTile] = kPartDims / 4;
    tiles_.emplace(shapes);
    if (t.type_k != KvType::Q8_0) return;
    for (int part = 0; part < parts_of(t.head_dim_k); ++part)
      for (int j = 0; j < t.n_queries; ++j) round_query(part, j);
  }

  // scores [n_queries][kTile] of a tile. As many bytes as it has are asked for meanwhile.
  void score_tile(const std::byte* tile, PairAsker* asker, float* scores) const {
    const int n = parts_of(t_.head_dim_k);
    const auto* keys = reinterpret_cast<const BytePart*>(tile);
    for (int first = 0; first < t_.n_queries; first += group_, asker = nullptr) {
      multiply_keys(keys[0], first, 0, asker);
      for (int part = 0; part < n; ++part) {
        // Tiles multiply the next part while this one's sums are scaled.
        if (part + 1 < n) multiply_keys(keys[part + 1], first, part + 1, asker);
        add_scores(keys[part], first, part, asker, scores);
      }
    }
  }

  // acc [n_queries][head_dim_v] += p [n_queries][kTile] times the first n positions of a tile.
  void add_tile(const std::byte* tile, PairAsker* asker, int n, const float* p) const {
    const int n_parts = parts_of(t_.head_dim_v);
    const auto* values = reinterpret_cast<const BytePart*>(tile);
    for (int first = 0; first < t_.n_queries; first += group_, asker = nullptr) {
      // All of them before the first is multiplied: what has just been stored cannot be loaded as a tile yet.
      for (int part = 0; part < n_parts; ++part) round_weights(values[part], n, first, part, asker, p);
      multiply_values(values[0], 0, asker);
      for (int part = 0; part < n_parts; ++part) {
        if (part + 1 < n_parts) multiply_values(values[part + 1], part + 1, asker);
        add_sums(first, part);
      }
    }
  }

 private:
  static constexpr int kMostQueries = kTileRows / 2;  // two planes of each
  static constexpr int kBlocks = cpu::kTile / kPositions, kHalves = kPartDims / 16;
  static constexpr int kQueryTile = 4, kKeyTile = 5, kWeightTile = 6, kValueTile = 7;  // before them sums
  static_assert(kBlocks <= kQueryTile && cpu::kTile == 64);

  using Sums = int32_t[kTileRows][16];
  // Rows: the first plane of each query, then the second.
  struct alignas(64) QueryPart {
    int8_t of[kTileRows][kPartDims];
    float scale[kMostQueries];
  };
  struct alignas(64) WeightPart {
    uint8_t of[kTileRows][cpu::kTile];
    float scale[kMostQueries];
  };
  static int parts_of(int head_dim) { return head_dim / kPartDims; }
  static int groups_of(const AttentionTask& t) { return (t.n_queries + kMostQueries - 1) / kMostQueries; }
  int queries_from(int first) const { return std::min(group_, t_.n_queries - first); }
  QueryPart& query_part(int first, int part) const { return query_[first / group_ * parts_of(t_.head_dim_k) + part]; }

  GRISTMILL_INLINE __m512 joined(const Sums& sums, int j) const {
    return cpu::joined(_mm512_load_si512(sums[j]), _mm512_load_si512(sums[group_ + j]));
  }

  void round_query(int part, int j) {
    const QueryCodes codes = cpu::round_query(t_.q[j] + part * kPartDims);
    QueryPart& to = query_part(j / group_ * group_, part);
    const int row = j % group_;
    for (int half = 0; half < 2; ++half) {
      _mm_store_si128(reinterpret_cast<__m128i*>(to.of[row] + 16 * half), codes.hi[half]);
      _mm_store_si128(reinterpret_cast<__m128i*>(to.of[group_ + row] + 16 * half), codes.lo[half]);
    }
    to.scale[row] = codes.scale;
  }

  GRISTMILL_INLINE void multiply_keys(const BytePart& keys, int first, int part, PairAsker* asker) const {
    Sums* sums = sums_[part % 2];
    load_tile<kQueryTile>(query_part(first, part).of, kPartDims);
    for_constants<kBlocks>([&](auto b) GRISTMILL_LAMBDA {
      clear_tile<b>();
      load_tile<kKeyTile>(keys.code + k_code(b * kPositions, 0));
      multiply_signed_tiles<b, kQueryTile, kKeyTile>();
      store_tile<b>(sums[b]);
      if (asker) asker->advance(int64_t(sizeof keys) / 2 / kBlocks);
    });
  }

  GRISTMILL_INLINE void add_scores(const BytePart& keys, int first, int part, PairAsker* asker, float* scores) const {
    const Sums* sums = sums_[part % 2];
    const float* query_scale = query_part(first, part).scale;
    __m512 key_scale[kBlocks];
    for (int b = 0; b < kBlocks; ++b) key_scale[b] = Avx512Vec::from_half(keys.scale + b * kPositions);
    const int n = queries_from(first);
    const int64_t ask_bytes = int64_t(sizeof keys) / 2 / n;
    float* to = scores + first * cpu::kTile;
    for (int j = 0; j < n; ++j, to += cpu::kTile) {
      const __m512 scale = _mm512_set1_ps(query_scale[j]);
      if (asker) asker->advance(ask_bytes);
#pragma GCC unroll 4
      for (int b = 0; b < kBlocks; ++b) {
        const __m512 before = part == 0 ? _mm512_setzero_ps() : _mm512_loadu_ps(to + b * kPositions);
        _mm512_storeu_ps(to + b * kPositions,
                         _mm512_fmadd_ps(joined(sums[b], j), _mm512_mul_ps(key_scale[b], scale), before));
      }
    }
  }

  // What positions weigh, p, times their values' scales.
  GRISTMILL_INLINE void round_weights(const BytePart& values, int n, int first, int part, PairAsker* asker,
                                      const float* p) const {
    // Positions that are not there may hold anything, and zero times that is not always zero.
    __m512 scale[4];
    for (int i = 0; i < 4; ++i) scale[i] = Avx512Vec::first_n(Avx512Vec::from_half(values.scale + 16 * i), n - 16 * i);
    WeightPart& to = weight_[part];
    const int n_queries = queries_from(first), group = group_;
    const int64_t ask_bytes = int64_t(sizeof values) / 2 / n_queries;
    p += first * cpu::kTile;
    for (int j = 0; j < n_queries; ++j, p += cpu::kTile) {
      if (asker) asker->advance(ask_bytes);
      to.scale[j] = round_weights(p, scale, to.of[j], to.of[group + j]);
    }
  }

  GRISTMILL_INLINE void multiply_values(const BytePart& values, int part, PairAsker* asker) const {
    load_tile<kWeightTile>(weight_[part].of);
    for_constants<kHalves>([&](auto h) GRISTMILL_LAMBDA {
      clear_tile<h>();
      load_tile<kValueTile>(values.code + h * 64, kPartDims * 4);
      multiply_unsigned_tiles<h, kWeightTile, kValueTile>();
      store_tile<h>(sums_[part % 2][h]);
      if (asker) asker->advance(int64_t(sizeof values) / 2 / kHalves);
    });
  }

  // The planes of a query's weights of a part. Returns their scale.
  GRISTMILL_INLINE static float round_weights(const float* p, const __m512 (&scale)[4], uint8_t* hi, uint8_t* lo) {
    __m512i code[4];
    const float code_scale = cpu::round_weights(p, scale, code);
    // Each makes 32 bytes of the second plane and 32 of the first, of 32 positions in order.
    for (int i = 0; i < 2; ++i) {
      const __m512i bytes = _mm512_permutexvar_epi8(plane_order(), _mm512_packus_epi32(code[2 * i], code[2 * i + 1]));
      _mm256_store_si256(reinterpret_cast<__m256i*>(lo + 32 * i), _mm512_castsi512_si256(bytes));
      _mm256_store_si256(reinterpret_cast<__m256i*>(hi + 32 * i), _mm512_extracti64x4_epi64(bytes, 1));
    }
    return code_scale;
  }
  // Packing two vectors of dwords goes by 128 bits: four words of the first, four of the second. Word `at` has position
  // i of 32, and its lower byte the lower plane.
  GRISTMILL_INLINE static __m512i plane_order() {
    alignas(64) static constexpr auto kOrder = [] {
      std::array<uint8_t, 64> order{};
      for (int i = 0; i < 32; ++i) {
        const int at = i % 16 / 4 * 8 + i / 16 * 4 + i % 4;
        order[size_t(i)] = uint8_t(2 * at);
        order[size_t(32 + i)] = uint8_t(2 * at + 1);
      }
      return order;
    }();
    return _mm512_load_si512(kOrder.data());
  }

  GRISTMILL_INLINE void add_sums(int first, int part) const {
    const Sums* sums = sums_[part % 2];
    for (int j = 0; j < queries_from(first); ++j) {
      const __m512 scale = _mm512_set1_ps(weight_[part].scale[j]);
      float* to = t_.acc + int64_t(first + j) * t_.head_dim_v + part * kPartDims;
      for (int h = 0; h < kHalves; ++h)
        _mm512_storeu_ps(to + 16 * h, _mm512_fmadd_ps(joined(sums[h], j), scale, _mm512_loadu_ps(to + 16 * h)));
    }
  }

  const AttentionTask& t_;
  Sums (*sums_)[kBlocks] = nullptr;  // [2]: of two parts in turn
  WeightPart* weight_ = nullptr;     // [part]
  QueryPart* query_ = nullptr;       // [group][part]
  int group_ = 0;                    // queries
  std::optional<TilesInUse> tiles_;
};

}  // namespace
}  // namespace gristmill::cpu

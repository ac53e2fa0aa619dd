// Attention of one token to keys and values of Q8_0, in integers: codes are multiplied as they lie in the cache.
//   scores  lanes are positions; vpdpbusd wants an unsigned factor: 128 + key, the sum begins at -128 sum(q)
//   values  lanes are dimensions
// Exact but for the roundings of attention_codes.h.
#pragma once

#include <cstring>

#include "cpu/generic/attention.h"
#include "cpu/isa/avx512_vnni/attention_codes.h"
#include "cpu/isa/avx512_vnni/vec.h"

namespace gristmill::cpu {
namespace {

constexpr int kPlaneBytes = kTile;  // of a head's weights

class IntegerAttention {
 public:
  static constexpr bool kExists = true;

  static size_t scratch_bytes(const AttentionTask& t) {
    const size_t n = size_t(t.n_queries), parts = size_t(t.head_dim_k / kPartDims);
    return n * (parts * (sizeof(Scale) + 2 * kPartDims) + 2 * kPlaneBytes + sizeof(float)) / 64 * 64 + 64;
  }

  // Rounds the queries, if keys are bytes. Without scratch, where neither keys nor values are, nothing may be called.
  IntegerAttention(const AttentionTask& t, std::byte* scratch) : t_(t) {
    if (!scratch) return;
    const int parts = t.head_dim_k / kPartDims;
    weight_ = reinterpret_cast<uint8_t*>(scratch);
    query_ = reinterpret_cast<int8_t*>(weight_ + t.n_queries * 2 * kPlaneBytes);
    scale_ = reinterpret_cast<Scale*>(query_ + t.n_queries * parts * 2 * kPartDims);
    weight_scale_ = reinterpret_cast<float*>(scale_ + t.n_queries * parts);
    if (t.type_k != KvType::Q8_0) return;
    for (int part = 0; part < parts; ++part)
      for (int j = 0; j < t.n_queries; ++j) round_query(part, j);
  }

  // scores [n_queries][kTile] of a tile. As many bytes as it has are asked for meanwhile.
  void score_tile(const std::byte* tile, PairAsker* asker, float* scores) const {
    for_query_groups<kQueries>(t_.n_queries, [&]<int Q>(int j) {
      for (int part = 0; part < t_.head_dim_k / kPartDims; ++part)
        for (int block = 0; block < kTile / kPositions; block += kBlocks)
          score<Q>(tile, part, block, j, j == 0 ? asker : nullptr, scores);
    });
  }

  // acc [n_queries][head_dim_v] += p [n_queries][kTile] times the first n positions of a tile.
  void add_tile(const std::byte* tile, PairAsker* asker, int n, const float* p) const {
    for_query_groups<kQueries>(t_.n_queries, [&]<int Q>(int j) {
      for (int part = 0; part < t_.head_dim_v / kPartDims; ++part)
        add<Q>(reinterpret_cast<const BytePart*>(tile)[part], part, j, n, j == 0 ? asker : nullptr, p);
    });
  }

 private:
  // Sums of six heads, two planes and two blocks of 16 lanes are 24 of the 32 registers.
  static constexpr int kQueries = 6, kBlocks = 2;
  struct Scale {
    float scale;
    int32_t start;  // of sums: -128 times the codes' sum
  };
  // Sums of a head are four: plane by plane, block by block.
  template <int Q>
  using Sums = __m512i[Q * 4];

  GRISTMILL_INLINE static __m512i broadcast(const void* p) {
    int32_t four;
    std::memcpy(&four, p, 4);
    return _mm512_set1_epi32(four);
  }
  // In place: GCC would keep every sum in two registers and in memory.
  GRISTMILL_INLINE static void multiply_add(__m512i& sum, __m512i u, __m512i s) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(u), "v"(s));
  }

  // query_ is [part][8 times four dimensions][n_queries][plane][4], scale_ [part][n_queries].
  void round_query(int part, int j) {
    const QueryCodes codes = cpu::round_query(t_.q[j] + part * kPartDims);
    alignas(16) int8_t planes[2][kPartDims];
    for (int half = 0; half < 2; ++half) {
      _mm_store_si128(reinterpret_cast<__m128i*>(planes[0] + 16 * half), codes.hi[half]);
      _mm_store_si128(reinterpret_cast<__m128i*>(planes[1] + 16 * half), codes.lo[half]);
    }
    for (int i = 0; i < kPartDims / 4; ++i)
      for (int plane = 0; plane < 2; ++plane)
        std::memcpy(query_ + (((part * 8 + i) * t_.n_queries + j) * 2 + plane) * 4, planes[plane] + 4 * i, 4);
    scale_[part * t_.n_queries + j] = {codes.scale, -128 * codes.sum};
  }

  // Of Q heads, 32 dimensions and two blocks; from the second part on added to what is there.
  template <int Q>
  GRISTMILL_INLINE void score(const std::byte* tile, int part, int block, int j, PairAsker* asker,
                              float* scores) const {
    const auto& keys = reinterpret_cast<const BytePart*>(tile)[part];
    const int8_t* code = keys.code + k_code(block * kPositions, 0);
    const int8_t* q = query_ + (part * 8 * t_.n_queries + j) * 8;
    const Scale* scale = scale_ + part * t_.n_queries + j;
    Sums<Q> sum;
#pragma GCC unroll 24
    for (int i = 0; i < Q * 4; ++i) sum[i] = i % 4 < 2 ? _mm512_setzero_si512() : _mm512_set1_epi32(scale[i / 4].start);
    constexpr int kFours = kPartDims / 4;
    for (int four = 0; four < kFours; ++four, code += 64, q += 8 * t_.n_queries) {
      if (asker) asker->advance(int64_t(sizeof keys) / (kTile / kPositions / kBlocks * kFours));
      const __m512i top = _mm512_set1_epi8(-128),
                    key[2] = {_mm512_xor_si512(_mm512_loadu_si512(code), top),
                              _mm512_xor_si512(_mm512_loadu_si512(code + kPositions * kPartDims), top)};
#pragma GCC unroll 24
      for (int i = 0; i < Q * 4; ++i) multiply_add(sum[i], key[i % 2], broadcast(q + i / 2 * 4));
    }
#pragma GCC unroll 2
    for (int b = 0; b < kBlocks; ++b) {
      const __m512 key_scale = Avx512Vec::from_half(keys.scale + (block + b) * kPositions);
#pragma GCC unroll 6
      for (int i = 0; i < Q; ++i) {
        float* to = scores + (j + i) * kTile + (block + b) * kPositions;
        const __m512 before = part == 0 ? _mm512_setzero_ps() : _mm512_loadu_ps(to);
        const __m512 factor = _mm512_mul_ps(key_scale, _mm512_set1_ps(scale[i].scale));
        _mm512_storeu_ps(to, _mm512_fmadd_ps(joined(sum[i * 4 + b], sum[i * 4 + 2 + b]), factor, before));
      }
    }
  }

  // What head j's p and the values' scales make together, into weight_ [n_queries][plane][kTile].
  GRISTMILL_INLINE void round_weights(const __m512 (&value_scale)[4], const float* p, int j) const {
    __m512i code[4];
    weight_scale_[j] = cpu::round_weights(p + j * kTile, value_scale, code);
    const __m512i words[2] = {_mm512_packus_epi32(code[0], code[1]), _mm512_packus_epi32(code[2], code[3])};
    // Packing goes by 128 bits: dword 4 l + i of the bytes has positions 16 i + 4 l on.
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i low = _mm512_set1_epi16(255);
    const __m512i hi = _mm512_packus_epi16(_mm512_srli_epi16(words[0], 8), _mm512_srli_epi16(words[1], 8));
    const __m512i lo = _mm512_packus_epi16(_mm512_and_si512(words[0], low), _mm512_and_si512(words[1], low));
    uint8_t* to = weight_ + j * 2 * kPlaneBytes;
    _mm512_storeu_si512(to, _mm512_permutexvar_epi32(order, hi));
    _mm512_storeu_si512(to + kPlaneBytes, _mm512_permutexvar_epi32(order, lo));
  }

  template <int Q>
  GRISTMILL_INLINE void add(const BytePart& values, int part, int j, int n, PairAsker* asker, const float* p) const {
    // Positions that are not there may hold anything, and zero times that is not always zero.
    __m512 value_scale[4];
    for (int i = 0; i < 4; ++i)
      value_scale[i] = Avx512Vec::first_n(Avx512Vec::from_half(values.scale + 16 * i), n - 16 * i);
    for (int i = 0; i < Q; ++i) round_weights(value_scale, p, j + i);
    Sums<Q> sum;
#pragma GCC unroll 24
    for (int i = 0; i < Q * 4; ++i) sum[i] = _mm512_setzero_si512();
    const int8_t* code = values.code;
    const uint8_t* weight = weight_ + j * 2 * kPlaneBytes;
    for (int t = 0; t < n; t += 4, code += 4 * kPartDims, weight += 4) {
      if (asker) asker->advance(int64_t(sizeof values) / (kTile / 4));
      const __m512i value[2] = {_mm512_loadu_si512(code), _mm512_loadu_si512(code + 64)};
#pragma GCC unroll 24
      for (int i = 0; i < Q * 4; ++i) multiply_add(sum[i], broadcast(weight + i / 2 * kPlaneBytes), value[i % 2]);
    }
#pragma GCC unroll 6
    for (int i = 0; i < Q; ++i) {
      float* to = t_.acc + int64_t(j + i) * t_.head_dim_v + part * kPartDims;
      const __m512 scale = _mm512_set1_ps(weight_scale_[j + i]);
#pragma GCC unroll 2
      for (int b = 0; b < kBlocks; ++b)
        _mm512_storeu_ps(to + 16 * b, _mm512_fmadd_ps(joined(sum[i * 4 + b], sum[i * 4 + 2 + b]), scale,
                                                      _mm512_loadu_ps(to + 16 * b)));
    }
  }

  const AttentionTask& t_;
  uint8_t* weight_ = nullptr;
  int8_t* query_ = nullptr;
  Scale* scale_ = nullptr;
  float* weight_scale_ = nullptr;
};

}  // namespace
}  // namespace gristmill::cpu

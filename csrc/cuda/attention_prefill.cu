// Prefill: FlashAttention-2 (Dao 2023) with mma.sync on halves. A block has 128 rows of one head, a warp 32 of them:
// each fragment of keys or values that it loads serves two products, or shared memory would be the limit.
//
//   shared   q [128][D] halves | keys [64][D], values [64][D] halves, two stages (F16)
//                              | one stage, and the next tile as it lies in the cache (Q8_0)
//            rows of 16-byte chunks, chunk c of row r at c ^ (r % 8): eight rows of one chunk meet all banks
//   warp     scores 32 x 32 | out 32 x D in registers | q is read from shared memory for every 32 positions
//
// Rows of q are scaled by a power of two each, so that no query overflows a half. Blocks of later rows, which see more,
// start first; heads that share keys run side by side.
#include "cuda/attention_plain.h"
#include "cuda/device/arithmetic.h"
#include "cuda/device/memory.h"
#include "cuda/device/mma.h"
#include "cuda/device/warp.h"

namespace gristmill::cuda {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarp, kWarpRows = 32, kRows = kWarps * kWarpRows;
constexpr int kTile = 64, kStep = 32;  // positions copied and multiplied together
// exp2(this) times the weights, so that small ones are halves of full precision.
constexpr float kWeightBits = 10.0f;

struct Shape {
  int n_head, heads_of_kv;
  int64_t head_bytes, k_scales_at, v_at, v_scales_at;  // in the part of the cache that the layer has
};

DEVICE float minus_infinity() { return float_of_bits(0xff800000u); }

// The 16 bytes of chunk `chunk` of a row of D halves.
template <int D>
DEVICE std::byte* chunk_at(std::byte* rows, int row, int chunk) {
  return rows + row * (2 * D) + ((chunk ^ (row & 7)) * 16);
}

// Of kTile positions: keys, then values.
template <int D>
constexpr int kHalfTileBytes = kTile * D * 4;

// How tiles come to shared memory. start() begins to copy positions first to first + kTile - 1, zeros from `end` on;
// finish() makes a tile ready for every warp and returns it; two are under way at most.
template <KvType type, int D>
struct Loader;

template <int D>
struct Loader<KvType::F16, D> {
  static constexpr int kBytes = 2 * kHalfTileBytes<D>;
  std::byte* stages;
  const std::byte *k, *v;

  DEVICE Loader(std::byte* shared, const std::byte* head, const Shape& shape)
      : stages(shared), k(head), v(head + shape.v_at) {}
  DEVICE void start(int tile, int first, int end) const {
    // A thread has the same chunk of rows that are a multiple of 8 apart: one swizzle, one distance.
    constexpr int kAtOnce = kThreads / (D / 8);
    const int row = int(threadIdx.x) / (D / 8), in_row = int(threadIdx.x) % (D / 8);
    std::byte* to = chunk_at<D>(stages + tile % 2 * kHalfTileBytes<D>, row, in_row);
    const int64_t from = (int64_t(first) + row) * (2 * D) + in_row * 16;
    UNROLL
    for (int i = 0; i < kTile; i += kAtOnce) {
      const int n = first + row + i < end ? 16 : 0;
      copy_async16(to + i * (2 * D), k + from + i * (2 * D), n);
      copy_async16(to + (kTile + i) * (2 * D), v + from + i * (2 * D), n);
    }
    commit_copies();
  }
  // `next` starts the tile after this one.
  template <class Next>
  DEVICE std::byte* finish(int tile, const Next& next) const {
    next();
    wait_copies<1>();
    sync_block();
    return stages + tile % 2 * kHalfTileBytes<D>;
  }
};

template <int D>
struct Loader<KvType::Q8_0, D> {
  static constexpr int kRowScales = D / 16;  // bytes of a position's scales
  static constexpr int kRawBytes = 2 * kTile * (D + kRowScales);
  static constexpr int kBytes = kHalfTileBytes<D> + kRawBytes;
  std::byte *halves, *raw;
  const std::byte *k, *k_scales, *v, *v_scales;

  DEVICE Loader(std::byte* shared, const std::byte* head, const Shape& shape)
      : halves(shared),
        raw(shared + kHalfTileBytes<D>),
        k(head),
        k_scales(head + shape.k_scales_at),
        v(head + shape.v_at),
        v_scales(head + shape.v_scales_at) {}
  // raw: keys, values, scales of keys, scales of values, as they lie in the cache
  DEVICE void start(int, int first, int end) const {
    copy_rows<D>(raw, k, first, end);
    copy_rows<D>(raw + kTile * D, v, first, end);
    copy_rows<kRowScales>(raw + 2 * kTile * D, k_scales, first, end);
    copy_rows<kRowScales>(raw + 2 * kTile * D + kTile * kRowScales, v_scales, first, end);
    commit_copies();
  }
  template <int kRowBytes>
  static DEVICE void copy_rows(std::byte* to, const std::byte* plane, int first, int end) {
    const int64_t from = int64_t(first) * kRowBytes;
    for (int chunk = int(threadIdx.x); chunk < kTile * kRowBytes / 16; chunk += kThreads) {
      const int left = (end - first) * kRowBytes - chunk * 16;
      copy_async16(to + chunk * 16, plane + from + chunk * 16, left < 0 ? 0 : left > 16 ? 16 : left);
    }
  }
  // A scale times a code, rounded to a half.
  template <class Next>
  DEVICE std::byte* finish(int, const Next& next) const {
    wait_copies<0>();
    sync_block();
    for (int i = int(threadIdx.x); i < 2 * kTile * D / 16; i += kThreads) {
      const int row = i / (D / 16), chunk = i % (D / 16);  // rows of keys, then of values
      const uint4 codes = *reinterpret_cast<const uint4*>(raw + i * 16);
      const uint32_t scale =
          reinterpret_cast<const uint16_t*>(raw + 2 * kTile * D)[row * (D / 32) + chunk / 2] * 0x10001u;
      const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
      UNROLL
      for (int half = 0; half < 2; ++half) {
        uint32_t out[4];
        UNROLL
        for (int j = 0; j < 4; ++j) {
          // 0x6400 + u is 1024 + u.
          const uint32_t u = words[2 * half + j / 2] ^ 0x80808080u;
          const uint32_t plus = permute_bytes(u, 0x64646464u, j % 2 ? 0x4342 : 0x4140);
          out[j] = multiply_f16x2(subtract_f16x2(plus, 0x64806480u), scale);
        }
        *reinterpret_cast<uint4*>(chunk_at<D>(halves, row, 2 * chunk + half)) = {out[0], out[1], out[2], out[3]};
      }
    }
    sync_block();
    next();
    return halves;
  }
};

// The rows of a warp as halves; factors[row] undoes their scale. Rows from `n` on are zeros.
template <int D>
DEVICE void load_queries(const float* q, int64_t stride, int n, std::byte* to, float* factors) {
  constexpr int kLanes = D / 4, kAtOnce = kWarp / kLanes;  // lanes of a row
  for (int i = 0; i < kWarpRows; i += kAtOnce) {
    const int row = i + lane_id() / kLanes, at = lane_id() % kLanes * 4;
    float4 v{0, 0, 0, 0};
    if (row < n) v = *reinterpret_cast<const float4*>(q + row * stride + at);
    const uint32_t a = bits_of_float(v.x) & 0x7fffffffu, b = bits_of_float(v.y) & 0x7fffffffu;
    const uint32_t c = bits_of_float(v.z) & 0x7fffffffu, d = bits_of_float(v.w) & 0x7fffffffu;
    const uint32_t ab = a > b ? a : b, cd = c > d ? c : d;
    const uint32_t peak = warp_max<kLanes>(ab > cd ? ab : cd);
    // The largest comes to lie in [2^10, 2^11); NaN and infinity make everything NaN.
    const uint32_t exponent = peak < 11u << 23 ? 11 : peak >> 23;
    const float scale = float_of_bits(exponent < 255 ? (264 - exponent) << 23 : 0x7fc00000u);
    std::byte* place = chunk_at<D>(to, row, at / 8) + at % 8 * 2;
    *reinterpret_cast<uint2*>(place) = {pack_f16(v.x * scale, v.y * scale), pack_f16(v.z * scale, v.w * scale)};
    if (at == 0) factors[row] = float_of_bits((exponent - 10) << 23);
  }
}

// What a warp keeps of its 32 rows. Rows of a lane: r = 2 m + h is row 16 m + 8 h + lane / 4.
template <int D>
struct Rows {
  float out[2][D / 8][4] = {};
  float most[4], total[4] = {}, factor[4];

  // Scores of kStep positions: s[m][b] is the fragment of rows 16 m and positions 8 b.
  static DEVICE void scores(std::byte* q, std::byte* keys, float (&s)[2][kStep / 8][4]) {
    const int matrix = lane_id() / 8, r = lane_id() % 8;
    UNROLL
    for (int c = 0; c < D / 8; c += 2) {
      uint32_t a[2][4];
      load_matrices(a[0], chunk_at<D>(q, matrix % 2 * 8 + r, c ^ (matrix / 2)));
      load_matrices(a[1], chunk_at<D>(q, 16 + matrix % 2 * 8 + r, c ^ (matrix / 2)));
      UNROLL
      for (int b = 0; b < kStep / 8; b += 2) {
        uint32_t k[4];
        load_matrices(k, chunk_at<D>(keys, 8 * (b + matrix / 2) + r, c ^ (matrix % 2)));
        UNROLL
        for (int m = 0; m < 2; ++m) {
          mma_f16(s[m][b], a[m], k[0], k[1]);
          mma_f16(s[m][b + 1], a[m], k[2], k[3]);
        }
      }
    }
  }

  // Scores become weights; those of position first + p are seen by row r where p <= last[r].
  template <bool kMasked>
  DEVICE void soften(float (&s)[2][kStep / 8][4], const int (&last)[4]) {
    float now[4];
    bool changed = false;
    UNROLL
    for (int r = 0; r < 4; ++r) {
      now[r] = most[r];
      UNROLL
      for (int b = 0; b < kStep / 8; ++b) {
        UNROLL
        for (int i = 0; i < 2; ++i) {
          float& v = s[r / 2][b][r % 2 * 2 + i];
          v *= factor[r];
          if (kMasked && 8 * b + lane_id() % 4 * 2 + i > last[r]) v = minus_infinity();
          now[r] = fmaxf(now[r], v);
        }
      }
      now[r] = warp_max<4>(now[r]);
      changed = changed || now[r] > most[r];
    }
    if (warp_ballot(changed) != 0) {
      UNROLL
      for (int r = 0; r < 4; ++r) {
        const float keep = now[r] > most[r] ? exp2_fast(most[r] - now[r]) : 1.0f;
        most[r] = now[r];
        total[r] *= keep;
        UNROLL
        for (int j = 0; j < D / 8; ++j) {
          out[r / 2][j][r % 2 * 2] *= keep;
          out[r / 2][j][r % 2 * 2 + 1] *= keep;
        }
      }
    }
    UNROLL
    for (int r = 0; r < 4; ++r) {
      UNROLL
      for (int b = 0; b < kStep / 8; ++b) {
        UNROLL
        for (int i = 0; i < 2; ++i) {
          float& v = s[r / 2][b][r % 2 * 2 + i];
          v = exp2_fast(v - most[r] + kWeightBits);
          total[r] += v;
        }
      }
    }
  }

  DEVICE void add_values(const float (&p)[2][kStep / 8][4], std::byte* values) {
    const int matrix = lane_id() / 8, row = lane_id() % 8;
    UNROLL
    for (int k = 0; k < kStep / 16; ++k) {
      uint32_t a[2][4];
      UNROLL
      for (int m = 0; m < 2; ++m) {
        a[m][0] = pack_f16(p[m][2 * k][0], p[m][2 * k][1]);
        a[m][1] = pack_f16(p[m][2 * k][2], p[m][2 * k][3]);
        a[m][2] = pack_f16(p[m][2 * k + 1][0], p[m][2 * k + 1][1]);
        a[m][3] = pack_f16(p[m][2 * k + 1][2], p[m][2 * k + 1][3]);
      }
      UNROLL
      for (int j = 0; j < D / 8; j += 2) {
        uint32_t v[4];
        load_matrices_transposed(v, chunk_at<D>(values, 16 * k + matrix % 2 * 8 + row, j ^ (matrix / 2)));
        UNROLL
        for (int m = 0; m < 2; ++m) {
          mma_f16(out[m][j], a[m], v[0], v[1]);
          mma_f16(out[m][j + 1], a[m], v[2], v[3]);
        }
      }
    }
  }
};

// Block (head, rows): the last rows are block 0. factor is that of the scores times log2(e).
template <KvType type, int D>
KERNEL(kThreads, 2)
prefill(const std::byte* layer, Shape shape, const float* q, int n, int n_past, float factor, float* out) {
  SMEM(std::byte, shared);
  std::byte* const queries = shared;
  float* const factors = reinterpret_cast<float*>(shared + kRows * D * 2);
  const int head = int(blockIdx.x), warp = warp_id(), t = lane_id() % 4, g = lane_id() / 4;
  const int row0 = int(gridDim.y - 1 - blockIdx.y) * kRows, warp_row = row0 + warp * kWarpRows;
  const int end = n_past + (row0 + kRows < n ? row0 + kRows : n);  // positions that the block sees
  const int64_t stride = int64_t(shape.n_head) * D;
  const Loader<type, D> loader(shared + kRows * D * 2 + kRows * 4, layer + head / shape.heads_of_kv * shape.head_bytes,
                               shape);
  grid_dependency_launch();
  grid_dependency_wait();

  loader.start(0, 0, end);
  std::byte* const mine = queries + warp * kWarpRows * D * 2;
  load_queries<D>(q + warp_row * stride + head * D, stride, n - warp_row, mine, factors + warp * kWarpRows);
  sync_warp();
  Rows<D> rows;
  int position[4];
  UNROLL
  for (int r = 0; r < 4; ++r) {
    rows.most[r] = minus_infinity();
    rows.factor[r] = factor * factors[warp * kWarpRows + r * 8 + g];
    position[r] = n_past + warp_row + r * 8 + g;
  }
  const int last_of_warp = n_past + warp_row + kWarpRows - 1;
  const int tiles = (end + kTile - 1) / kTile;
  for (int tile = 0; tile < tiles; ++tile) {
    std::byte* keys = loader.finish(tile, [&] {
      if (tile + 1 < tiles) {
        loader.start(tile + 1, (tile + 1) * kTile, end);
      } else {
        commit_copies();
      }
    });
    std::byte* values = keys + kTile * D * 2;
    for (int step = 0; step < kTile; step += kStep) {
      const int first = tile * kTile + step;
      if (first > last_of_warp || first >= end) break;
      float s[2][kStep / 8][4] = {};
      Rows<D>::scores(mine, keys + step * D * 2, s);
      const int last[4] = {position[0] - first, position[1] - first, position[2] - first, position[3] - first};
      if (first + kStep - 1 > last_of_warp - kWarpRows + 1) {
        rows.template soften<true>(s, last);
      } else {
        rows.template soften<false>(s, last);
      }
      rows.add_values(s, values + step * D * 2);
    }
    sync_block();
  }
  UNROLL
  for (int r = 0; r < 4; ++r) {
    const float total = warp_sum<4>(rows.total[r]);
    const int row = warp_row + r * 8 + g;
    if (row >= n) continue;
    float* to = out + row * stride + head * D + 2 * t;
    UNROLL
    for (int j = 0; j < D / 8; ++j)
      *reinterpret_cast<float2*>(to + 8 * j) = {rows.out[r / 2][j][r % 2 * 2] / total,
                                                rows.out[r / 2][j][r % 2 * 2 + 1] / total};
  }
}

template <KvType type, int D>
void launch_prefill(const std::byte* cache, const KvLayout& layout, int layer, const float* q, int n_head, int n,
                    int64_t n_past, float scale, float* out, Stream stream) {
  const int64_t v_at = layout.k_values() + layout.k_scales();
  const Shape shape{n_head, n_head / layout.n_head_kv, layout.head_bytes(), layout.k_values(),
                    v_at,   v_at + layout.v_values()};
  launch("prefill_attention", prefill<type, D>,
         {{unsigned(n_head), unsigned((n + kRows - 1) / kRows)},
          {kThreads},
          size_t(kRows * D * 2 + kRows * 4 + Loader<type, D>::kBytes),
          stream,
          true},
         cache + layout.head_offset(layer, 0), shape, q, n, int(n_past), scale * 1.44269504f, out);
}

}  // namespace

void prefill_attention(const std::byte* cache, const KvLayout& layout, int layer, const float* q, int n_head, int n,
                       int64_t n_past, float scale, float* out, Stream stream) {
  if (n == 0) return;
  const bool same = layout.type_k == layout.type_v && layout.head_dim_k == layout.head_dim_v;
  const int dim = same ? layout.head_dim_k : 0;
  const auto fast = [&]<KvType type, int D>() {
    launch_prefill<type, D>(cache, layout, layer, q, n_head, n, n_past, scale, out, stream);
  };
  if (layout.type_k == KvType::F16 && dim == 128) return fast.template operator()<KvType::F16, 128>();
  if (layout.type_k == KvType::F16 && dim == 64) return fast.template operator()<KvType::F16, 64>();
  if (layout.type_k == KvType::Q8_0 && dim == 128) return fast.template operator()<KvType::Q8_0, 128>();
  if (layout.type_k == KvType::Q8_0 && dim == 64) return fast.template operator()<KvType::Q8_0, 64>();
  const AttentionRows rows{{}, const_cast<std::byte*>(cache), n_past};
  plain_attention(rows, layout, layer, q, n_head, n, scale, out, stream);
}

}  // namespace gristmill::cuda

// A block has one query head of one row and walks over the positions, kTile at a time:
//
//   scores    a warp a position, lanes over the dimensions            shared: score[kTile]
//   weights   every thread the same maximum, in registers             shared: score becomes exp2(score - maximum)
//   values    thread i has dimensions i, i + kThreads, ...            shared: sum[head_dim_v]
#include "cuda/attention_plain.h"

#include "cuda/device/arithmetic.h"
#include "cuda/device/memory.h"
#include "cuda/device/warp.h"

namespace gristmill::cuda {
namespace {

constexpr int kThreads = 128, kTile = 128;

// One head's keys or values.
struct Plane {
  KvType type;
  int head_dim;
  int64_t values_at, scales_at;  // from the start of the first head's part of the layer
};

DEVICE float load_value(const Plane& p, const std::byte* head, int64_t position, int i) {
  const int64_t at = position * p.head_dim + i;
  const std::byte* values = head + p.values_at;
  if (p.type == KvType::F32) return reinterpret_cast<const float*>(values)[at];
  if (p.type == KvType::F16) return f16_to_f32(reinterpret_cast<const uint16_t*>(values)[at]);
  return float(reinterpret_cast<const int8_t*>(values)[at]) *
         f16_to_f32(reinterpret_cast<const uint16_t*>(head + p.scales_at)[at / 32]);
}

// Block (head, row). scale is that of the scores times log2(e).
KERNEL(kThreads, 4)
attend(AttentionRows rows, Plane k, Plane v, int64_t layer_at, int64_t head_bytes, int heads_of_kv, const float* q,
       float scale, float* out) {
  SMEM(float, sum);
  float *score = sum + v.head_dim, *query = score + kTile, *scratch = query + k.head_dim;
  const int head = int(blockIdx.x), n_head = int(gridDim.x), thread = int(threadIdx.x);
  const int64_t row = blockIdx.y;
  grid_dependency_launch();
  grid_dependency_wait();
  const bool many = rows.batch.positions != nullptr;
  const int64_t length = 1 + (many ? int64_t(rows.batch.positions[row]) : rows.n_past + row);
  const std::byte* cache =
      (many ? rows.batch.caches[rows.batch.sequences[row]] : rows.cache) + layer_at + head / heads_of_kv * head_bytes;
  for (int i = thread; i < k.head_dim; i += kThreads) query[i] = q[(row * n_head + head) * k.head_dim + i];
  for (int i = thread; i < v.head_dim; i += kThreads) sum[i] = 0.0f;
  float most = float_of_bits(0xff800000u), total = 0.0f;
  for (int64_t first = 0; first < length; first += kTile) {
    const int here = int(length - first < kTile ? length - first : kTile);
    sync_block();
    for (int j = warp_id(); j < here; j += kThreads / kWarp) {
      float s = 0.0f;
      for (int i = lane_id(); i < k.head_dim; i += kWarp) s = fmaf(query[i], load_value(k, cache, first + j, i), s);
      s = warp_sum(s);
      if (lane_id() == 0) score[j] = s * scale;
    }
    sync_block();
    float tile_most = most;
    for (int j = lane_id(); j < here; j += kWarp) tile_most = fmaxf(tile_most, score[j]);
    tile_most = warp_max(tile_most);
    const float keep = most == tile_most ? 1.0f : exp2f(most - tile_most);
    most = tile_most;
    sync_block();
    float p = 0.0f;
    if (thread < here) {
      p = exp2f(score[thread] - most);
      score[thread] = p;
    }
    total = fmaf(total, keep, block_sum(p, scratch));
    for (int i = thread; i < v.head_dim; i += kThreads) {
      float s = sum[i] * keep;
      for (int j = 0; j < here; ++j) s = fmaf(score[j], load_value(v, cache, first + j, i), s);
      sum[i] = s;
    }
  }
  for (int i = thread; i < v.head_dim; i += kThreads) out[(row * n_head + head) * v.head_dim + i] = sum[i] / total;
}

}  // namespace

void plain_attention(const AttentionRows& rows, const KvLayout& layout, int layer, const float* q, int n_head, int n,
                     float scale, float* out, Stream stream) {
  if (n == 0) return;
  const int64_t k_bytes = layout.k_values() + layout.k_scales();
  const Plane k{layout.type_k, layout.head_dim_k, 0, layout.k_values()};
  const Plane v{layout.type_v, layout.head_dim_v, k_bytes, k_bytes + layout.v_values()};
  const size_t floats = size_t(layout.head_dim_v + kTile + layout.head_dim_k + kThreads / kWarp + 1);
  launch("plain_attention", attend, {{unsigned(n_head), unsigned(n)}, {kThreads}, floats * sizeof(float), stream, true},
         rows, k, v, layout.head_offset(layer, 0), layout.head_bytes(), n_head / layout.n_head_kv, q,
         scale * 1.44269504f, out);
}

}  // namespace gristmill::cuda

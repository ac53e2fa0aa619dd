// Rotation of queries and keys in place, and keys and values to the cache. Both move a few kilobytes a row: what counts
// is that every access is 16 bytes wide where the shapes allow it and that nothing waits longer than it must.
//
//   rotate   a thread has kPairs pairs of one head: NeoX   | x0 .. x3 | ...  | y0 .. y3 | ...    i and i + dims / 2
//                                                   others | x0 y0 x1 y1 | x2 y2 x3 y3 |         2 i and 2 i + 1
//   store    a thread has four neighbours of a row of k or v; 8 lanes have a block of Q8_0
#include <algorithm>
#include <cmath>

#include "cuda/device/memory.h"
#include "cuda/elementwise.h"
#include "cuda/rope_kv.h"

namespace gristmill::cuda {
namespace {

constexpr int kThreads = 128;

struct Heads {
  int n_heads, head_dim, half;  // half: pairs of a head
};

// kPairs: 4, where all that a thread touches lies at multiples of 16 bytes, or 1.
template <RopeStyle style, int kPairs>
KERNEL(kThreads, 8)
rotate(float* x, Heads h, unsigned pieces, const float* cos_sin) {
  grid_dependency_launch();
  const unsigned per_head = unsigned(h.half / kPairs);
  const int64_t row = blockIdx.x / pieces;
  const unsigned at = blockIdx.x % pieces * kThreads + threadIdx.x;
  const unsigned head = at / per_head;
  const int i = int(at % per_head) * kPairs;
  grid_dependency_wait();
  if (head >= unsigned(h.n_heads)) return;
  const float *cosines = cos_sin + row * 2 * h.half + i, *sines = cosines + h.half;
  float* const base = x + (row * h.n_heads + head) * h.head_dim;
  if constexpr (kPairs == 1) {
    float *first = base + (style == RopeStyle::kNeox ? i : 2 * i),
          *second = style == RopeStyle::kNeox ? first + h.half : first + 1;
    float a = *first, b = *second;
    rotate_pair<style>(a, b, *cosines, *sines);
    *first = a;
    *second = b;
  } else {
    auto* first = reinterpret_cast<float4*>(base + (style == RopeStyle::kNeox ? i : 2 * i));
    auto* second = style == RopeStyle::kNeox ? reinterpret_cast<float4*>(base + i + h.half) : first + 1;
    const float4 c = *reinterpret_cast<const float4*>(cosines), s = *reinterpret_cast<const float4*>(sines);
    float4 a = *first, b = *second;
    if constexpr (style == RopeStyle::kNeox) {
      rotate_pair<style>(a.x, b.x, c.x, s.x);
      rotate_pair<style>(a.y, b.y, c.y, s.y);
      rotate_pair<style>(a.z, b.z, c.z, s.z);
      rotate_pair<style>(a.w, b.w, c.w, s.w);
    } else {
      rotate_pair<style>(a.x, a.y, c.x, s.x);
      rotate_pair<style>(a.z, a.w, c.y, s.y);
      rotate_pair<style>(b.x, b.y, c.z, s.z);
      rotate_pair<style>(b.z, b.w, c.w, s.w);
    }
    *first = a;
    *second = b;
  }
}

struct RowsToStore {
  const float* rows;  // [n][n_head_kv * head_dim]
  bool vectors;       // which begin at multiples of 16 bytes
  KvPlane plane;
};

// Block x: a piece of a row; y: keys or values.
template <int kWidth>
KERNEL(kThreads, 8)
store(DeviceBatch batch, RowsToStore k, RowsToStore v, int n_head_kv, int64_t layer_at, int64_t head_bytes,
      unsigned pieces) {
  grid_dependency_launch();
  const RowsToStore rows = blockIdx.y == 0 ? k : v;
  const KvPlane& p = rows.plane;
  const int64_t row = blockIdx.x / pieces;
  const int at = int(blockIdx.x % pieces * kThreads + threadIdx.x) * kWidth;
  grid_dependency_wait();
  if (at >= n_head_kv * p.head_dim) return;
  const int head = at / p.head_dim, i = at % p.head_dim;
  std::byte* const cache = batch.caches[batch.sequences[row]] + layer_at + head * head_bytes;
  const float* from = rows.rows + row * n_head_kv * p.head_dim + at;
  float values[kWidth];
  if (kWidth == 4 && rows.vectors) {
    const float4 four = *reinterpret_cast<const float4*>(from);
    const float in_order[4] = {four.x, four.y, four.z, four.w};
    UNROLL
    for (int j = 0; j < kWidth; ++j) values[j] = in_order[j];
  } else {
    UNROLL
    for (int j = 0; j < kWidth; ++j) values[j] = from[j];
  }
  // Heads of caches in Q8_0 are multiples of 32, so the 8 lanes of a block take the same way.
  store_values<kWidth>(p, cache, batch.positions[row], i, values, 0xffu << (lane_id() & ~7));
}

bool aligned16(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

}  // namespace

void rope(float* x, int n, int n_heads, int head_dim, int dims, const float* cos_sin, RopeStyle style, Stream stream) {
  const Heads h{n_heads, head_dim, dims / 2};
  if (n == 0 || n_heads == 0 || h.half == 0) return;
  const bool wide = h.half % 4 == 0 && head_dim % 4 == 0 && aligned16(x) && aligned16(cos_sin);
  const unsigned threads = unsigned(n_heads * (h.half / (wide ? 4 : 1))), pieces = (threads + kThreads - 1) / kThreads;
  const LaunchConfig config{{unsigned(n) * pieces}, {kThreads}, 0, stream, true};
  if (style == RopeStyle::kNeox) {
    launch("rope", wide ? rotate<RopeStyle::kNeox, 4> : rotate<RopeStyle::kNeox, 1>, config, x, h, pieces, cos_sin);
  } else {
    launch("rope", wide ? rotate<RopeStyle::kInterleaved, 4> : rotate<RopeStyle::kInterleaved, 1>, config, x, h, pieces,
           cos_sin);
  }
}

void store_kv(const DeviceBatch& batch, const KvLayout& layout, int layer, const float* k, const float* v,
              Stream stream) {
  if (batch.n == 0) return;
  const RowsToStore keys{k, aligned16(k), key_plane(layout)}, values{v, aligned16(v), value_plane(layout)};
  const auto both = [&](const RowsToStore& a, const RowsToStore& b, unsigned planes, int width) {
    const int widest = std::max(a.plane.head_dim, b.plane.head_dim);
    const unsigned pieces = unsigned((layout.n_head_kv * widest / width + kThreads - 1) / kThreads);
    launch("store_kv", width == 4 ? store<4> : store<1>,
           {{unsigned(batch.n) * pieces, planes}, {kThreads}, 0, stream, true}, batch, a, b, layout.n_head_kv,
           layout.head_offset(layer, 0), layout.head_bytes(), pieces);
  };
  const int key_width = keys.plane.width(), value_width = values.plane.width();
  if (key_width == value_width) return both(keys, values, 2, key_width);
  both(keys, keys, 1, key_width);
  both(values, values, 1, value_width);
}

}  // namespace gristmill::cuda

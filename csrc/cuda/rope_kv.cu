// Rotation of queries and keys in place, and keys and values to the cache. Both move a few kilobytes a row: what counts
// is that every access is 16 bytes wide where the shapes allow it and that nothing waits longer than it must.
//
//   rotate   a thread has kPairs pairs of one head: NeoX   | x0 .. x3 | ...  | y0 .. y3 | ...    i and i + dims / 2
//                                                   others | x0 y0 x1 y1 | x2 y2 x3 y3 |         2 i and 2 i + 1
//   store    a thread has four neighbours of a row of k or v; 8 lanes have a block of Q8_0
#include <algorithm>
#include <cmath>

#include "cuda/convert.h"
#include "cuda/device/memory.h"
#include "cuda/elementwise.h"

namespace gristmill::cuda {
namespace {

constexpr int kThreads = 128;

struct Heads {
  int n_heads, head_dim, half;  // half: pairs of a head
};

// The CPU's arithmetic, product by product.
template <RopeStyle style>
DEVICE void rotate_pair(float& x, float& y, float c, float s) {
  const float a = x * c - y * s;
  y = fmaf(y, c, x * s);
  x = a;
}

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

// What float16 cannot hold becomes NaN, not infinity: an infinite key may lead to a score of minus infinity, which
// attention would pass over in silence.
constexpr uint16_t kHalfNan = 0x7e00;

DEVICE uint16_t half_or_nan(float v) {
  const uint16_t h = f32_to_f16(v);
  return (h & 0x7c00) == 0x7c00 ? kHalfNan : h;
}

// As formats::Q8_0: halves away from zero.
DEVICE int q8_code(float v, float inverse) {
  const int level = int(fminf(fabsf(v) * inverse + 0.5f, 127.0f));
  return v < 0.0f ? -level : level;
}

// Of a block of 32 whose largest magnitude is `peak`: the scale as a half, the inverse of the scale. Codes have no NaN,
// so the scale carries it.
DEVICE uint16_t q8_scale(uint32_t peak, float& inverse) {
  inverse = 0.0f;
  if (!(float_of_bits(peak) <= 127 * 65504.0f)) return kHalfNan;
  const float d = float_of_bits(peak) / 127.0f;
  const float reciprocal = 1.0f / (d != 0.0f ? d : 1.0f);
  if (d != 0.0f && (bits_of_float(reciprocal) & kMagnitude) < kInfinityBits) inverse = reciprocal;
  return f32_to_f16(d);
}

// One of the two planes that a row goes to.
struct Plane {
  const float* rows;  // [n][n_head_kv * head_dim]
  KvType type;
  int head_dim;
  int64_t values_at, scales_at;  // from the start of a head's part of the cache
  bool vectors;                  // rows begin at multiples of 16 bytes

  int width() const { return head_dim % 4 == 0 ? 4 : 1; }
};

// kWidth values from value i of one head on; its dimension is a multiple of kWidth.
template <int kWidth>
DEVICE void store_values(const Plane& p, std::byte* head, int64_t position, int i, const float (&v)[kWidth]) {
  std::byte* const values = head + p.values_at;
  const int64_t at = position * p.head_dim + i;
  if (p.type == KvType::F32) {
    float* to = reinterpret_cast<float*>(values) + at;
    if constexpr (kWidth == 4) {
      *reinterpret_cast<float4*>(to) = {v[0], v[1], v[2], v[3]};
    } else {
      *to = v[0];
    }
  } else if (p.type == KvType::F16) {
    uint16_t* to = reinterpret_cast<uint16_t*>(values) + at;
    if constexpr (kWidth == 4) {
      *reinterpret_cast<uint2*>(to) = {half_or_nan(v[0]) | uint32_t(half_or_nan(v[1])) << 16,
                                       half_or_nan(v[2]) | uint32_t(half_or_nan(v[3])) << 16};
    } else {
      *to = half_or_nan(v[0]);
    }
  } else if constexpr (kWidth == 4) {
    // Heads are multiples of 32 here, so the 8 lanes of a block take the same way.
    const uint32_t group = 0xffu << (lane_id() & ~7);
    uint32_t peak = peak_bits({v[0], v[1], v[2], v[3]});
    UNROLL
    for (int step = 4; step > 0; step /= 2) {
      const uint32_t other = shuffle_xor(peak, step, group);
      peak = other > peak ? other : peak;
    }
    float inverse;
    const uint16_t scale = q8_scale(peak, inverse);
    const bool nan = scale == kHalfNan;
    *reinterpret_cast<uint32_t*>(values + at) = nan ? 0x01010101u
                                                    : pack_bytes(q8_code(v[0], inverse), q8_code(v[1], inverse),
                                                                 q8_code(v[2], inverse), q8_code(v[3], inverse));
    if (i % 32 == 0) reinterpret_cast<uint16_t*>(head + p.scales_at)[at / 32] = scale;
  }
}

// Block x: a piece of a row; y: keys or values.
template <int kWidth>
KERNEL(kThreads, 8)
store(DeviceBatch batch, Plane k, Plane v, int n_head_kv, int64_t layer_at, int64_t head_bytes, unsigned pieces) {
  grid_dependency_launch();
  const Plane p = blockIdx.y == 0 ? k : v;
  const int64_t row = blockIdx.x / pieces;
  const int at = int(blockIdx.x % pieces * kThreads + threadIdx.x) * kWidth;
  grid_dependency_wait();
  if (at >= n_head_kv * p.head_dim) return;
  const int head = at / p.head_dim, i = at % p.head_dim;
  std::byte* const cache = batch.caches[batch.sequences[row]] + layer_at + head * head_bytes;
  const float* from = p.rows + row * n_head_kv * p.head_dim + at;
  float values[kWidth];
  if (kWidth == 4 && p.vectors) {
    const float4 four = *reinterpret_cast<const float4*>(from);
    const float in_order[4] = {four.x, four.y, four.z, four.w};
    UNROLL
    for (int j = 0; j < kWidth; ++j) values[j] = in_order[j];
  } else {
    UNROLL
    for (int j = 0; j < kWidth; ++j) values[j] = from[j];
  }
  store_values<kWidth>(p, cache, batch.positions[row], i, values);
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
  const int64_t k_bytes = layout.k_values() + layout.k_scales();
  const Plane keys{k, layout.type_k, layout.head_dim_k, 0, layout.k_values(), aligned16(k)};
  const Plane values{v, layout.type_v, layout.head_dim_v, k_bytes, k_bytes + layout.v_values(), aligned16(v)};
  const auto both = [&](const Plane& a, const Plane& b, unsigned planes, int width) {
    const int widest = std::max(a.head_dim, b.head_dim);
    const unsigned pieces = unsigned((layout.n_head_kv * widest / width + kThreads - 1) / kThreads);
    launch("store_kv", width == 4 ? store<4> : store<1>,
           {{unsigned(batch.n) * pieces, planes}, {kThreads}, 0, stream, true}, batch, a, b, layout.n_head_kv,
           layout.head_offset(layer, 0), layout.head_bytes(), pieces);
  };
  if (keys.width() == values.width()) return both(keys, values, 2, keys.width());
  both(keys, keys, 1, keys.width());
  both(values, values, 1, values.width());
}

}  // namespace gristmill::cuda

// Decoding: one query row a sequence, all of its cache read once. The query heads of a KV head (up to 8) share a pass:
//
//   block (KV head, row, split)    positions | split 0 | split 1 | ...       a split is a multiple of warps x 16
//   warp w of the block            tiles of 16 positions w, w + warps, ...   its own copies, kStages tiles deep; no
//                                                                            barrier of the block before the end
//   A fragment of scores           rows 0-7: queries, high halves   rows 8-15: what those leave of q, low halves
//   A fragment of out              rows 0-7: weights, high halves   rows 8-15: low halves
//
// q and weights are split in two halves each because the 16 rows of an mma would else be half empty: scores and sums
// are as exact as float32 at no cost. What a lane holds of scores is what it must give for the next product. Warps
// are combined in shared memory, splits in work space by the block that comes last. How a row is split depends on its
// length and the device only.
#include <algorithm>

#include "cuda/attention_plain.h"
#include "cuda/attention_tile.h"
#include "cuda/convert.h"
#include "cuda/divisor.h"

namespace gristmill::cuda {
namespace {

constexpr int kStages = 3, kHeads = 8;
// Of a block. More have fewer registers, and of F16 no room for their stages; Q8_0 has half the bytes and twice the
// instructions for each of them, and waits for its own results more than for memory.
template <KvType type>
constexpr int kMostWarps = type == KvType::Q8_0 ? 12 : 8;

// How a row is split among blocks: as many positions each, a multiple of `step`, the last the rest.
struct Splits {
  int step;     // warps of a block * kTilePositions
  int largest;  // positions of all splits together with `step` each
  Divisor by_largest;

  DEVICE int chunk(int length) const { return by_largest.quotient(length + largest - 1) * step; }
};

struct Shape {
  int n_head, n_head_kv, heads_of_kv;
  int groups;  // of query heads of a KV head
  Divisor by_groups;
  Splits splits;
  int64_t layer_at, head_bytes;  // in a cache
  int64_t k_scales_at, v_at, v_scales_at;
};

// What a block leaves for the last one: sums of kHeads x D, then maximum and sum of weights of each head. Float: float
// or const float.
template <int D, class Float = float>
struct Partial {
  static constexpr int kFloats = kHeads * D + 2 * kHeads;
  Float* at;
  DEVICE Float* out(int head) const { return at + head * D; }
  DEVICE Float* maximum(int head) const { return at + kHeads * D + 2 * head; }
};

// A warp's sums for one head in shared memory. Lane 4 g + t stores 16 bytes of head g at value_column(j, 2 t or 2 t +
// 1), eight lanes at a time, of two heads: rows are as long as puts those into eight different groups of four banks.
//     Q8_0, rows of D + 4              g + 2 t modulo 8, for columns 8 apart
//     F16, 4 more behind each 32       {0, 4, 1, 5} for columns 16 apart, and of the next head 6 (D = 128) or 2 on
template <KvType type, int D>
struct WarpSums {
  static constexpr int kRow = D + (type == KvType::Q8_0 ? 4 : D == 64 ? 8 : 24);
  static DEVICE int at(int column) { return type == KvType::Q8_0 ? column : column + column / 32 * 4; }
};

// Where results go: rows of n_head * D floats, and where planes is given also in the form that products read.
struct Output {
  float* floats;
  QuantizedRows quantized;

  // Where planes is given, called by whole warps whose lanes have neighbouring slots.
  DEVICE void store(int64_t row, int64_t width, int slot, float4 v) const {
    *reinterpret_cast<float4*>(floats + row * width + 4 * slot) = v;
    if (quantized.planes) store_planes(quantized, row, slot, v);
  }
};

DEVICE float minus_infinity() { return float_of_bits(0xff800000u); }

// The A fragments of query row g of the block, scaled by a power of two such that the largest lies in [2^10, 2^11);
// rows beyond `heads` are zeros. Returns what undoes the scale.
template <int D>
DEVICE float load_queries(const float* q, int heads, uint32_t (&a)[D / 16][4]) {
  const int g = lane_id() / 4, t = lane_id() % 4;
  float v[D / 4];
  uint32_t peak = 0;
  UNROLL
  for (int c = 0; c < D / 32; ++c) {
    UNROLL
    for (int j = 0; j < 2; ++j) {
      float4 four{0, 0, 0, 0};
      if (g < heads) four = *reinterpret_cast<const float4*>(q + g * D + 32 * c + 8 * t + 4 * j);
      v[8 * c + 4 * j] = four.x;
      v[8 * c + 4 * j + 1] = four.y;
      v[8 * c + 4 * j + 2] = four.z;
      v[8 * c + 4 * j + 3] = four.w;
    }
  }
  UNROLL
  for (int i = 0; i < D / 4; ++i) {
    const uint32_t bits = bits_of_float(v[i]) & 0x7fffffffu;
    peak = bits > peak ? bits : peak;
  }
  peak = warp_max<4>(peak);
  // NaN and infinity make everything NaN.
  const uint32_t exponent = peak < 11u << 23 ? 11 : peak >> 23;
  const float factor = float_of_bits(exponent < 255 ? (264 - exponent) << 23 : 0x7fc00000u);
  UNROLL
  for (int c = 0; c < D / 32; ++c) {
    UNROLL
    for (int step = 0; step < 2; ++step) {
      const int i = 8 * c + 4 * step;
      split_f16(v[i] * factor, v[i + 1] * factor, a[2 * c + step][0], a[2 * c + step][1]);
      split_f16(v[i + 2] * factor, v[i + 3] * factor, a[2 * c + step][2], a[2 * c + step][3]);
    }
  }
  return float_of_bits((exponent - 10) << 23);
}

// The sum over parts, brought to the largest of their maxima; maximum(i) and load(i) of part i.
template <class Maximum, class Load>
DEVICE float4 combine(int n, float most, const Maximum& maximum, const Load& load) {
  float4 sum{0, 0, 0, 0};
  UNROLL_8
  for (int i = 0; i < n; ++i) {
    const float weight = exp2_fast(maximum(i) - most);
    const float4 v = load(i);
    sum = {fmaf(v.x, weight, sum.x), fmaf(v.y, weight, sum.y), fmaf(v.z, weight, sum.z), fmaf(v.w, weight, sum.w)};
  }
  return sum;
}

// By the last block of a row and KV head: its splits' partials, for all its heads. Everything that a thread needs is
// loaded at once, the maxima and sums of weights by each for itself: a trip to L2 is longer than all that is done here.
template <int D>
DEVICE void combine_splits(const float* partials, const Shape& shape, int splits, int most_splits, const Output& out,
                           int64_t row, int head0) {
  constexpr int kAtOnce = 16;  // on an H200 all, of a model with 8 KV heads
  const int heads = shape.heads_of_kv;
  for (int i = int(threadIdx.x); i < heads * (D / 4); i += int(blockDim.x)) {
    const int head = i / (D / 4), at = i % (D / 4) * 4;
    const float* const first = partials + int64_t(head / kHeads) * most_splits * Partial<D>::kFloats;
    float most = minus_infinity(), total = 0.0f;
    float4 sum{0, 0, 0, 0};
    for (int begin = 0; begin < splits; begin += kAtOnce) {
      float2 weights[kAtOnce];  // maximum, sum of weights
      float4 values[kAtOnce];
      UNROLL
      for (int s = 0; s < kAtOnce; ++s) {
        weights[s] = {minus_infinity(), 0.0f};
        values[s] = {0, 0, 0, 0};
        if (begin + s >= splits) continue;
        const Partial<D, const float> partial{first + int64_t(begin + s) * Partial<D>::kFloats};
        weights[s] = load_coherent(reinterpret_cast<const float2*>(partial.maximum(head % kHeads)));
        values[s] = load_coherent(reinterpret_cast<const float4*>(partial.out(head % kHeads) + at));
      }
      float now = most;
      UNROLL
      for (int s = 0; s < kAtOnce; ++s) now = fmaxf(now, weights[s].x);
      const float keep = begin == 0 ? 0.0f : exp2_fast(most - now);
      total *= keep;
      sum = {sum.x * keep, sum.y * keep, sum.z * keep, sum.w * keep};
      most = now;
      UNROLL
      for (int s = 0; s < kAtOnce; ++s) {
        if (begin + s >= splits) continue;
        const float weight = exp2_fast(weights[s].x - most);
        const float4 v = values[s];
        total = fmaf(weights[s].y, weight, total);
        sum = {fmaf(v.x, weight, sum.x), fmaf(v.y, weight, sum.y), fmaf(v.z, weight, sum.z), fmaf(v.w, weight, sum.w)};
      }
    }
    out.store(row, int64_t(shape.n_head) * D, head0 * (D / 4) + i,
              {sum.x / total, sum.y / total, sum.z / total, sum.w / total});
  }
}

// factor is that of the scores times log2(e).
template <KvType type, int D>
KERNEL(kMostWarps<type>* kWarp, 1)
decode(DeviceBatch batch, Shape shape, const float* q, float factor, Output out, float* workspace, unsigned* counters) {
  using Tile = KvTile<type, D>;
  SMEM(std::byte, shared);
  const int warps = int(blockDim.x) / kWarp, warp = warp_id(), g = lane_id() / 4, t = lane_id() % 4;
  const int kv_head = shape.by_groups.quotient(int(blockIdx.x)), group = int(blockIdx.x) - kv_head * shape.groups;
  const int split = int(blockIdx.z), most_splits = int(gridDim.z);
  const int64_t row = blockIdx.y;
  const int head0 = kv_head * shape.heads_of_kv + group * kHeads;
  const int heads = shape.heads_of_kv - group * kHeads < kHeads ? shape.heads_of_kv - group * kHeads : kHeads;
  grid_dependency_launch();

  // Ahead of the wait: what the host brought before the pass began, and positions below the last. The kernels that may
  // still run are of this pass, a copy lies before it, and in decoding each of its rows has a sequence of its own
  // (Engine::decode): of this row's cache they write its last position only. Past L1, which only the wait makes fresh.
  const int length = load_coherent(batch.positions + row) + 1, chunk = shape.splits.chunk(length);
  const int begin = split * chunk, end = begin + chunk < length ? begin + chunk : length;
  const std::byte* keys =
      load_coherent(batch.caches + load_coherent(batch.sequences + row)) + shape.layer_at + kv_head * shape.head_bytes;
  const HeadPlanes planes{keys, keys + shape.k_scales_at, keys + shape.v_at, keys + shape.v_scales_at};

  // Copies first: they take longest.
  std::byte* const stages = shared + warp * kStages * Tile::kBytes;
  const auto issue = [&](int i) {
    const int first = begin + (i * warps + warp) * kTilePositions;
    if (first < end) Tile::copy(stages + i % kStages * Tile::kBytes, planes, first, end);
    commit_copies();
  };
  // Tiles are issued in order: behind one that is not early there is none.
  const auto is_early = [&](int i) {
    const int first = begin + (i * warps + warp) * kTilePositions;
    return first < end && (end < length || first + kTilePositions < length);
  };
  UNROLL
  for (int i = 0; i < kStages - 1; ++i)
    if (is_early(i)) issue(i);
  grid_dependency_wait();
  if (begin >= length) return;
  UNROLL
  for (int i = 0; i < kStages - 1; ++i)
    if (!is_early(i)) issue(i);
  const int n_splits = (length + chunk - 1) / chunk;
  uint32_t queries[D / 16][4];
  factor *= load_queries<D>(q + (row * shape.n_head + head0) * D, heads, queries);

  float o[D / 8][4] = {}, most = minus_infinity(), total = 0.0f;
  for (int i = 0;; ++i) {
    const int first = begin + (i * warps + warp) * kTilePositions;
    if (first >= end) break;
    issue(i + kStages - 1);
    wait_copies<kStages - 1>();
    sync_warp();
    const std::byte* stage = stages + i % kStages * Tile::kBytes;
    float s[4];
    Tile::scores(stage, queries, s);
    float tile_most = most;
    UNROLL
    for (int j = 0; j < 4; ++j) {
      s[j] = first + j / 2 * 8 + 2 * t + j % 2 < end ? s[j] * factor : minus_infinity();
      tile_most = fmaxf(tile_most, s[j]);
    }
    tile_most = warp_max<4>(tile_most);
    if (warp_ballot(tile_most > most) != 0) {
      const float keep = tile_most > most ? exp2_fast(most - tile_most) : 1.0f;
      total *= keep;
      UNROLL
      for (int j = 0; j < D / 8; ++j) {
        UNROLL
        for (int r = 0; r < 4; ++r) o[j][r] *= keep;
      }
      most = tile_most;
    }
    UNROLL
    for (int j = 0; j < 4; ++j) {
      s[j] = exp2_fast(s[j] - most + Tile::kWeightBits);
      total += s[j];
    }
    Tile::add_values(stage, s, o);
    sync_warp();
  }
  total = warp_sum<4>(total);

  // The block's warps.
  sync_block();
  using Sums = WarpSums<type, D>;
  float* const warp_sums = reinterpret_cast<float*>(shared);          // [warps][heads], rows of Sums
  float* const warp_maxima = warp_sums + warps * heads * Sums::kRow;  // [warps][heads][2]
  bool* const is_last = reinterpret_cast<bool*>(warp_maxima + 2 * warps * heads);
  if (g < heads) {
    float* to = warp_sums + (warp * heads + g) * Sums::kRow;
    UNROLL
    for (int j = 0; j < D / 8; j += 4) {  // whose columns lie side by side
      *reinterpret_cast<float4*>(to + Sums::at(Tile::value_column(j, 2 * t))) = {
          o[j][0] + o[j][2], o[j + 1][0] + o[j + 1][2], o[j + 2][0] + o[j + 2][2], o[j + 3][0] + o[j + 3][2]};
      *reinterpret_cast<float4*>(to + Sums::at(Tile::value_column(j, 2 * t + 1))) = {
          o[j][1] + o[j][3], o[j + 1][1] + o[j + 1][3], o[j + 2][1] + o[j + 2][3], o[j + 3][1] + o[j + 3][3]};
    }
    if (t == 0) {
      warp_maxima[2 * (warp * heads + g)] = most;
      warp_maxima[2 * (warp * heads + g) + 1] = total;
    }
  }
  sync_block();
  float* const partials =
      workspace + ((row * shape.n_head_kv + kv_head) * shape.groups) * most_splits * Partial<D>::kFloats;
  const Partial<D> partial{partials + (int64_t(group) * most_splits + split) * Partial<D>::kFloats};
  for (int i = int(threadIdx.x); i < heads * (D / 4); i += int(blockDim.x)) {
    const int head = i / (D / 4), at = i % (D / 4) * 4;
    const auto maximum = [&](int w) { return warp_maxima[2 * (w * heads + head)]; };
    float block_most = minus_infinity(), sum = 0.0f;
    for (int w = 0; w < warps; ++w) block_most = fmaxf(block_most, maximum(w));
    for (int w = 0; w < warps; ++w)
      sum = fmaf(warp_maxima[2 * (w * heads + head) + 1], exp2_fast(maximum(w) - block_most), sum);
    const float4 v = combine(warps, block_most, maximum, [&](int w) {
      return *reinterpret_cast<const float4*>(warp_sums + (w * heads + head) * Sums::kRow + Sums::at(at));
    });
    if (n_splits == 1) {
      out.store(row, int64_t(shape.n_head) * D, head0 * (D / 4) + i, {v.x / sum, v.y / sum, v.z / sum, v.w / sum});
    } else {
      *reinterpret_cast<float4*>(partial.out(head) + at) = v;
      if (at == 0) {
        partial.maximum(head)[0] = block_most;
        partial.maximum(head)[1] = sum;
      }
    }
  }
  if (n_splits == 1) return;

  sync_block();  // thread 0 speaks for all
  if (threadIdx.x == 0) {
    unsigned* const counter = counters + row * shape.n_head_kv + kv_head;
    const unsigned others = unsigned(n_splits * shape.groups) - 1;
    *is_last = add_release(counter, 1u) == others;
    if (*is_last) {
      fence_acquire();
      *counter = 0;
    }
  }
  sync_block();
  if (*is_last) combine_splits<D>(partials, shape, n_splits, most_splits, out, row, kv_head * shape.heads_of_kv);
}

// How the fast kernel runs on a device; warps is 0 where it does not take the layout.
struct Plan {
  int warps = 0, most_splits = 1, groups = 1;
  size_t shared_bytes = 0;
};

template <KvType type, int D>
Plan make_plan(const KvLayout& layout, int n_head, const DeviceInfo& device) {
  const int heads_of_kv = n_head / layout.n_head_kv;
  Plan plan;
  plan.groups = (heads_of_kv + kHeads - 1) / kHeads;
  plan.most_splits = std::max(1, device.multiprocessors / (layout.n_head_kv * plan.groups));
  for (plan.warps = kMostWarps<type>; plan.warps > 0; plan.warps /= 2) {
    const size_t copies = size_t(plan.warps) * kStages * KvTile<type, D>::kBytes;
    const size_t sums = size_t(plan.warps) * kHeads * (WarpSums<type, D>::kRow + 2) * 4 + 16;
    plan.shared_bytes = std::max(copies, sums);
    if (int64_t(plan.shared_bytes) <= device.shared_bytes_per_block) return plan;
  }
  return plan;
}

// Calls f.template operator()<type, D>() where the fast kernel is made for the layout.
template <class F>
bool with_tile(const KvLayout& layout, F&& f) {
  if (layout.type_k != layout.type_v || layout.head_dim_k != layout.head_dim_v) return false;
  const bool f16 = layout.type_k == KvType::F16, q8 = layout.type_k == KvType::Q8_0;
  if (f16 && layout.head_dim_k == 128) return f.template operator()<KvType::F16, 128>(), true;
  if (f16 && layout.head_dim_k == 64) return f.template operator()<KvType::F16, 64>(), true;
  if (q8 && layout.head_dim_k == 128) return f.template operator()<KvType::Q8_0, 128>(), true;
  if (q8 && layout.head_dim_k == 64) return f.template operator()<KvType::Q8_0, 64>(), true;
  return false;
}

}  // namespace

int64_t decode_attention_workspace(const KvLayout& layout, int n_head, int n, const DeviceInfo& device) {
  int64_t bytes = 0;
  with_tile(layout, [&]<KvType type, int D>() {
    const Plan plan = make_plan<type, D>(layout, n_head, device);
    bytes = int64_t(n) * layout.n_head_kv * plan.groups * plan.most_splits * Partial<D>::kFloats * 4;
  });
  return bytes;
}

bool decode_attention_quantizes(const KvLayout& layout, int n_head, const DeviceInfo& device) {
  bool fits = false;
  with_tile(layout, [&]<KvType type, int D>() {
    const int heads = n_head / layout.n_head_kv;
    // Whole warps of slots in each group of heads, whole column tiles for the product.
    fits = make_plan<type, D>(layout, n_head, device).warps > 0 && std::min(heads, kHeads) * (D / 4) % kWarp == 0 &&
           heads % kHeads * (D / 4) % kWarp == 0 && n_head * D % kTileColumns == 0;
  });
  return fits;
}

void decode_attention(const DeviceBatch& batch, const KvLayout& layout, int layer, const float* q, int n_head,
                      float scale, float* out, const QuantizedRows& quantized, void* workspace, unsigned* counters,
                      const DeviceInfo& device, Stream stream) {
  if (batch.n == 0) return;
  bool done = false;
  with_tile(layout, [&]<KvType type, int D>() {
    const Plan plan = make_plan<type, D>(layout, n_head, device);
    if (plan.warps == 0) return;
    const int64_t v_at = layout.k_values() + layout.k_scales();
    const int step = plan.warps * kTilePositions, largest = plan.most_splits * step;
    const Shape shape{n_head,
                      layout.n_head_kv,
                      n_head / layout.n_head_kv,
                      plan.groups,
                      make_divisor(plan.groups),
                      {step, largest, make_divisor(largest)},
                      layout.head_offset(layer, 0),
                      layout.head_bytes(),
                      layout.k_values(),
                      v_at,
                      v_at + layout.v_values()};
    launch("decode_attention", decode<type, D>,
           {{unsigned(layout.n_head_kv * plan.groups), unsigned(batch.n), unsigned(plan.most_splits)},
            {unsigned(plan.warps * kWarp)},
            plan.shared_bytes,
            stream,
            true},
           batch, shape, q, scale * 1.44269504f, Output{out, quantized}, static_cast<float*>(workspace), counters);
    done = true;
  });
  if (!done) plain_attention({batch, nullptr, 0}, layout, layer, q, n_head, batch.n, scale, out, stream);
}

}  // namespace gristmill::cuda

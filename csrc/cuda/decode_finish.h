// What a decode product does with its results beyond leaving them in y, so that no launch of its own is needed for it:
// every row tile that is complete is counted in its group, and the warp that brings the last one has the group.
#pragma once

#include "cuda/convert.h"
#include "cuda/decode_work.h"
#include "cuda/rope_kv.h"

namespace gristmill::cuda {

// Values i to i + 3 of a head and the cosines and sines they meet.
struct HeadSlot {
  float4 own, partner;  // partner: NeoX' other halves of the pairs
  float4 cosines, sines;
};

DEVICE float4 load4(const float* p) { return *reinterpret_cast<const float4*>(p); }
DEVICE float4 load4_coherent(const float* p) { return load_coherent(reinterpret_cast<const float4*>(p)); }

DEVICE HeadSlot load_head(const HeadFinish& f, const float* head, int64_t row, int i, bool rotated) {
  HeadSlot s{load4_coherent(head + i), {0, 0, 0, 0}, {0, 0, 0, 0}, {0, 0, 0, 0}};
  if (!rotated || i >= 2 * f.half) return s;
  const float* cosines = f.cos_sin + row * 2 * f.half;
  if (f.neox) {
    const int pair = i < f.half ? i : i - f.half;
    s.partner = load4_coherent(head + (i < f.half ? i + f.half : pair));
    s.cosines = load4(cosines + pair);
    s.sines = load4(cosines + f.half + pair);
  } else {
    const float2 c = *reinterpret_cast<const float2*>(cosines + i / 2);
    const float2 s2 = *reinterpret_cast<const float2*>(cosines + f.half + i / 2);
    s.cosines = {c.x, c.y, 0.0f, 0.0f};
    s.sines = {s2.x, s2.y, 0.0f, 0.0f};
  }
  return s;
}

DEVICE float4 rotate_slot(const HeadFinish& f, const HeadSlot& s, int i) {
  float4 a = s.own, b = s.partner;
  if (i >= 2 * f.half) return a;
  if (!f.neox) {
    rotate_pair<RopeStyle::kInterleaved>(a.x, a.y, s.cosines.x, s.sines.x);
    rotate_pair<RopeStyle::kInterleaved>(a.z, a.w, s.cosines.y, s.sines.y);
    return a;
  }
  const bool is_first = i < f.half;
  const auto one = [&](float own, float partner, float c, float sine) {
    float x = is_first ? own : partner, y = is_first ? partner : own;
    rotate_pair<RopeStyle::kNeox>(x, y, c, sine);
    return is_first ? x : y;
  };
  return {one(a.x, b.x, s.cosines.x, s.sines.x), one(a.y, b.y, s.cosines.y, s.sines.y),
          one(a.z, b.z, s.cosines.z, s.sines.z), one(a.w, b.w, s.cosines.w, s.sines.w)};
}

// A lane has four neighbours of the head; tokens are loaded several at a time, since what takes long is the way to L2.
template <int kTokens>
DEVICE void finish_head(const DecodeWork& work, const DecodePart& part, int head) {
  constexpr int kAtOnce = kTokens > 8 ? 4 : kTokens == 4 ? 2 : 1;  // as registers allow
  const HeadFinish& f = work.finish.heads;
  const int dim = part.role == Role::kValue ? f.head_dim_v : f.head_dim_k, i = 4 * lane_id();
  const bool rotated = part.role != Role::kValue;
  const bool inside = i < dim;  // for whole groups of 8 lanes
  for (int first = 0; first < work.n; first += kAtOnce) {
    HeadSlot slots[kAtOnce] = {};
    std::byte* caches[kAtOnce] = {};
    int32_t positions[kAtOnce] = {};
    UNROLL
    for (int j = 0; j < kAtOnce; ++j) {
      const int token = first + j;
      if (token >= work.n || !inside) break;
      const int64_t row = work.finish.first_token + token;
      slots[j] = load_head(f, part.y + token * part.n_rows + head * dim, row, i, rotated);
      positions[j] = f.batch.positions[row];
      caches[j] = f.batch.caches[f.batch.sequences[row]];
    }
    if (part.role == Role::kQuery) sync_warp();  // all have read
    UNROLL
    for (int j = 0; j < kAtOnce; ++j) {
      const int token = first + j;
      if (token >= work.n) break;
      const float4 v = rotated ? rotate_slot(f, slots[j], i) : slots[j].own;
      if (part.role != Role::kQuery) {
        const float values[4] = {v.x, v.y, v.z, v.w};
        std::byte* const to = inside ? caches[j] + f.layer_at + head * f.head_bytes : nullptr;
        store_values<4>(part.role == Role::kKey ? f.keys : f.values, to, positions[j], i, values, kFullWarp, inside);
      } else if (inside) {
        *reinterpret_cast<float4*>(part.y + token * part.n_rows + head * dim + i) = v;
      }
    }
  }
}

// Eight lanes have a group of 32 of one token: four tokens at a time.
DEVICE void finish_gate(const DecodeWork& work, int group) {
  const RowOutputs& out = work.finish.gated;
  const int slot = 8 * group + lane_id() % 8;
  for (int first = 0; first < work.n; first += 4) {
    const int token = first + lane_id() / 8;
    const bool there = token < work.n;
    const int64_t row = work.finish.first_token + token, at = row * work.finish.n_gated + 4 * slot;
    float4 v{0, 0, 0, 0};
    if (there) v = gated(load4_coherent(work.finish.gate + at), load4_coherent(work.finish.up + at));
    if (there && out.floats) *reinterpret_cast<float4*>(out.floats + at) = v;
    if (out.quantized.planes) store_planes(out.quantized, row, slot, v, there);
  }
}

// The group that a row tile belongs to.
struct RowGroup {
  int index, tiles;  // row tiles it has
  int first;         // of them on the line, where they follow each other; -1 where another launch has some
};
DEVICE RowGroup group_of(const DecodeWork& work, const RowTile& at) {
  if (work.finish.kind == FinishKind::kGate) return {at.index / 2, 4, work.alternate ? at.index / 2 * 4 : -1};
  const DecodePart& part = work.parts[at.part];
  const HeadFinish& f = work.finish.heads;
  const int tiles = (part.role == Role::kValue ? f.head_dim_v : f.head_dim_k) / kTileRows, head = at.index / tiles;
  return {part.first_group + head, tiles, part.first_row_tile + head * tiles};
}

// Groups whose row tiles are all of groups of the line that lie wholly in a block's stretch: its warps count them in
// shared memory, many times nearer than where blocks meet.
constexpr int kBlockGroups = kWarp;  // at most; others are counted as if they went on in another block
struct BlockGroups {
  unsigned* arrivals;      // [kBlockGroups]
  const Stretch& stretch;  // of the block
  int first;               // group of its first row tile

  DEVICE BlockGroups(const DecodeWork& work, unsigned* shared, const Stretch& of_block)
      : arrivals(shared), stretch(of_block), first(0) {
    if (work.finish.kind == FinishKind::kNothing) return;
    first = group_of(work, locate(work, work.line.groups.begin(stretch.first.group))).index;
    if (threadIdx.x < unsigned(kBlockGroups)) arrivals[threadIdx.x] = 0;
    sync_block();
  }
  DEVICE bool has(const DecodeWork& work, const RowGroup& g) const {
    const DecodeLine& line = work.line;
    return g.first >= 0 && g.index - first < kBlockGroups &&
           line.group_begin(line.groups.of(g.first)) >= stretch.begin &&
           line.group_begin(line.groups.of(g.first + g.tiles - 1) + 1) <= stretch.end;
  }
};

// What finishing reads and the kernel ahead does not write, on its way to L2 while that one ends: weights have driven
// out everything since it was last read. By every warp, for row tiles of the stretch's groups that no other warp takes.
DEVICE void prefetch_finish(const DecodeWork& work, const Stretch& stretch) {
  const int first = work.line.groups.begin(stretch.first.group), end = work.line.groups.begin(stretch.last.group + 1);
  for (int row_tile = first + int(threadIdx.x); row_tile < end; row_tile += int(blockDim.x)) {
    const RowTile at = locate(work, row_tile);
    const DecodePart& part = work.parts[at.part];
    if (part.bias) prefetch(part.bias + int64_t(at.index) * kTileRows);
  }
  if (work.finish.kind != FinishKind::kHeads || warp_id() != 0 || lane_id() >= work.n) return;
  constexpr int kLine = 128 / sizeof(float);
  const HeadFinish& f = work.finish.heads;
  const int64_t row = work.finish.first_token + lane_id();
  prefetch(f.batch.positions + row);
  prefetch(f.batch.sequences + row);
  prefetch(f.batch.caches + row);  // mostly its own
  for (int i = 0; i < 2 * f.half; i += kLine) prefetch(f.cos_sin + row * 2 * f.half + i);
}

// By the warp that has written the last of a row tile's results.
template <int kTokens>
DEVICE void finish_row_tile(const DecodeWork& work, const BlockGroups& block, int row_tile) {
  const DecodeFinish& finish = work.finish;
  if (finish.kind == FinishKind::kNothing) return;
  const RowTile at = locate(work, row_tile);
  const RowGroup group = group_of(work, at);
  const bool last = block.has(work, group)
                        ? arrives_last_in_block(block.arrivals + (group.index - block.first), group.tiles)
                        : arrives_last(finish.arrivals + group.index, group.tiles);
  if (!last) return;
  if (finish.kind == FinishKind::kHeads) {
    const DecodePart& part = work.parts[at.part];
    finish_head<kTokens>(work, part, group.index - part.first_group);
  } else {
    finish_gate(work, group.index);
  }
}

}  // namespace gristmill::cuda

// The k largest logits of a row in two launches, without a sort of the whole and without atomics on what is crowded.
//
//   find_candidates   a block has 4096 logits, 8 a thread in registers     -> workspace: its k largest, in any order;
//                                                                             its maximum and sum of exponentials
//   merge_candidates  a block has the candidates of a row                  -> the k largest, sorted in shared memory
//
// A key is the logit in an order of unsigned integers, then the complement of its id: no two are equal, and the larger
// one comes first in the result. The k-th largest key is found bit by bit from the top, counting keys at or above a
// guess with one barrier a bit, until exactly k are: seldom more bits than tell apart the logits around the k-th.
#include "cuda/sampling.h"

#include <algorithm>

#include "core/error.h"
#include "cuda/device/arithmetic.h"
#include "cuda/device/memory.h"
#include "cuda/device/warp.h"

namespace gristmill::cuda {
namespace {

constexpr int kThreads = 512, kWarps = kThreads / kWarp, kHeld = 8, kSlice = kThreads * kHeld, kMostCandidates = 1024;

// Of one slice. sum is that of exp(logit - maximum).
struct SliceSum {
  float maximum, sum;
  int finite;
};

DEVICE uint64_t make_key(float logit, int id) {
  const uint32_t bits = logit == 0.0f ? 0 : bits_of_float(logit);  // zeros of both signs are equal
  const uint32_t order = bits >> 31 ? ~bits : bits | 0x80000000u;
  return uint64_t(order) << 32 | ~uint32_t(id);
}
DEVICE int id_of(uint64_t key) { return int(~uint32_t(key)); }

// Of the whole block; scratch is written again two calls later at the earliest.
DEVICE int block_count(int n, int* scratch) {
  n = warp_sum(n);
  if (lane_id() == 0) scratch[warp_id()] = n;
  sync_block();
  int sum = 0;
  UNROLL
  for (int i = 0; i < kWarps; ++i) sum += scratch[i];
  return sum;
}

// The keys of a block, those that do not exist being 0. for_each(f) calls f(key) for this thread's, in every thread
// equally often.
struct HeldKeys {
  uint64_t keys[kHeld];

  template <class F>
  DEVICE void for_each(const F& f) const {
    UNROLL
    for (int i = 0; i < kHeld; ++i) f(keys[i]);
  }
};
struct StoredKeys {
  const uint64_t* keys;
  int n;

  template <class F>
  DEVICE void for_each(const F& f) const {
    for (int i = 0; i < n; i += kThreads) f(i + int(threadIdx.x) < n ? keys[i + int(threadIdx.x)] : 0);
  }
};

// The k-th largest key; there are at least k that are not 0. scratch: [2][kWarps].
template <class Keys>
DEVICE uint64_t find_threshold(const Keys& keys, int k, int* scratch) {
  uint64_t found = 0;
  for (int bit = 63; bit >= 0; --bit) {
    const uint64_t guess = found | uint64_t(1) << bit;
    int n = 0;
    keys.for_each([&](uint64_t key) { n += key >= guess; });
    n = block_count(n, scratch + bit % 2 * kWarps);
    if (n >= k) found = guess;
    if (n == k) break;
  }
  return found;
}

// Writes the keys at or above the threshold to `to`, in any order. count is 0 before.
template <class Keys>
DEVICE void collect(const Keys& keys, uint64_t threshold, unsigned* count, uint64_t* to) {
  keys.for_each([&](uint64_t key) {
    const bool chosen = key != 0 && key >= threshold;
    const uint32_t lanes = warp_ballot(chosen), lane = uint32_t(lane_id());
    unsigned first = 0;
    if (lanes != 0 && lane == 0) first = atomic_add(count, count_bits(lanes));
    first = shuffle(first, 0);
    if (chosen) to[first + count_bits(lanes & ((1u << lane) - 1))] = key;
  });
}

// Block (slice, row). candidates [rows][slices][k], sums [rows][slices].
KERNEL(kThreads, 2)
find_candidates(const float* logits, int row_length, int n_vocab, int k, uint64_t* candidates, SliceSum* sums) {
  SMEM(float, scratch);  // [kWarps + 1], then the counts
  int* const counts = reinterpret_cast<int*>(scratch + kWarps + 1);
  unsigned* const collected = reinterpret_cast<unsigned*>(counts + 2 * kWarps);
  const int64_t row = blockIdx.y, slot = row * gridDim.x + blockIdx.x;
  const int first = int(blockIdx.x) * kSlice, left = n_vocab - first;
  const int valid = left < 0 ? 0 : left < kSlice ? left : kSlice;
  const float* from = logits + row * row_length;
  if (threadIdx.x == 0) *collected = 0;
  grid_dependency_launch();
  grid_dependency_wait();

  float values[kHeld];
  HeldKeys held;
  float most = float_of_bits(0xff800000u);
  int finite = 1;
  UNROLL
  for (int i = 0; i < kHeld; ++i) {
    const int id = first + i * kThreads + int(threadIdx.x);
    const bool exists = id < row_length;
    values[i] = exists ? from[id] : float_of_bits(0xff800000u);
    if (exists && (bits_of_float(values[i]) & 0x7f800000u) == 0x7f800000u) finite = 0;
    held.keys[i] = id < n_vocab ? make_key(values[i], id) : 0;
    if (id >= n_vocab) values[i] = float_of_bits(0xff800000u);
    most = fmaxf(most, values[i]);
  }
  most = warp_max(most);
  if (lane_id() == 0) scratch[warp_id()] = most;
  sync_block();
  for (int i = 0; i < kWarps; ++i) most = fmaxf(most, scratch[i]);
  float sum = 0.0f;
  UNROLL
  for (int i = 0; i < kHeld; ++i) sum += valid > 0 ? expf(values[i] - most) : 0.0f;
  sync_block();
  sum = block_sum(sum, scratch);
  finite = block_count(finite, counts) == kThreads;
  if (threadIdx.x == 0) sums[slot] = {most, sum, finite};

  uint64_t* const to = candidates + slot * k;
  const int wanted = k < valid ? k : valid;
  sync_block();  // counts
  collect(held, find_threshold(held, wanted, counts), collected, to);
  for (int i = wanted + int(threadIdx.x); i < k; i += kThreads) to[i] = 0;
}

// Largest first; n is a power of two.
DEVICE void sort_descending(uint64_t* keys, int n) {
  for (int size = 2; size <= n; size *= 2) {
    for (int step = size / 2; step > 0; step /= 2) {
      for (int i = int(threadIdx.x); i < n / 2; i += kThreads) {
        const int a = i / step * 2 * step + i % step, b = a + step;
        const uint64_t x = keys[a], y = keys[b];
        if ((x < y) == ((a & size) == 0)) {
          keys[a] = y;
          keys[b] = x;
        }
      }
      sync_block();
    }
  }
}

// Block row. kInRegisters: there are at most kSlice candidates.
template <bool kInRegisters>
KERNEL(kThreads, 1)
merge_candidates(const float* logits, int row_length, int n_vocab, int k, int slices, int sorted,
                 const uint64_t* candidates, const SliceSum* sums, int32_t* ids, float* values, float* log_sum,
                 int32_t* finite) {
  SMEM(uint64_t, keys);  // [sorted], a power of two that is k or more
  int* const counts = reinterpret_cast<int*>(keys + sorted);
  unsigned* const collected = reinterpret_cast<unsigned*>(counts + 2 * kWarps);
  const int64_t row = blockIdx.x;
  const int n = slices * k, wanted = k < n_vocab ? k : n_vocab;
  if (threadIdx.x == 0) *collected = 0;
  for (int i = int(threadIdx.x); i < sorted; i += kThreads) keys[i] = 0;
  grid_dependency_launch();
  grid_dependency_wait();

  if (warp_id() == 0) {
    float most = float_of_bits(0xff800000u), sum = 0.0f;
    int all_finite = 1;
    for (int i = lane_id(); i < slices; i += kWarp) {
      most = fmaxf(most, sums[row * slices + i].maximum);
      all_finite &= sums[row * slices + i].finite;
    }
    most = warp_max(most);
    for (int i = lane_id(); i < slices; i += kWarp)
      sum = fmaf(sums[row * slices + i].sum, expf(sums[row * slices + i].maximum - most), sum);
    sum = warp_sum(sum);
    all_finite = warp_sum(all_finite);
    if (lane_id() == 0) {
      log_sum[row] = most + logf(sum);
      finite[row] = all_finite == kWarp;
    }
  }
  const StoredKeys stored{candidates + row * n, n};
  sync_block();
  if constexpr (kInRegisters) {
    HeldKeys held;
    UNROLL
    for (int i = 0; i < kHeld; ++i) {
      const int at = i * kThreads + int(threadIdx.x);
      held.keys[i] = at < n ? stored.keys[at] : 0;
    }
    collect(held, find_threshold(held, wanted, counts), collected, keys);
  } else {
    collect(stored, find_threshold(stored, wanted, counts), collected, keys);
  }
  sync_block();
  sort_descending(keys, sorted);
  for (int i = int(threadIdx.x); i < k; i += kThreads) {
    const int id = i < wanted ? id_of(keys[i]) : -1;
    ids[row * k + i] = id;
    values[row * k + i] = i < wanted ? logits[row * row_length + id] : float_of_bits(0xff800000u);
  }
}

int slices_of(int64_t row_length) { return int((row_length + kSlice - 1) / kSlice); }

}  // namespace

int64_t top_candidates_workspace(int n_rows, int64_t row_length, int k) {
  return int64_t(n_rows) * slices_of(row_length) * (int64_t(k) * int64_t(sizeof(uint64_t)) + int64_t(sizeof(SliceSum)));
}

void top_candidates(const float* logits, int n_rows, int64_t row_length, int64_t n_vocab, int k, int32_t* ids,
                    float* values, float* log_sum, int32_t* finite, void* workspace, Stream stream) {
  if (n_rows == 0) return;
  if (k < 1 || k > kMostCandidates)
    throw ArgumentError("[cuda] candidates of a row, expected 1 to 1024, got " + std::to_string(k));
  const int slices = slices_of(row_length);
  auto* candidates = static_cast<uint64_t*>(workspace);
  auto* sums = reinterpret_cast<SliceSum*>(candidates + int64_t(n_rows) * slices * k);
  const size_t counters = (2 * kWarps + 1) * sizeof(int);
  launch("find_candidates", find_candidates,
         {{unsigned(slices), unsigned(n_rows)}, {kThreads}, (kWarps + 1) * sizeof(float) + counters, stream, true},
         logits, int(row_length), int(n_vocab), k, candidates, sums);
  int sorted = 2;
  while (sorted < k) sorted *= 2;
  launch("merge_candidates", slices * k <= kSlice ? merge_candidates<true> : merge_candidates<false>,
         {{unsigned(n_rows)}, {kThreads}, size_t(sorted) * sizeof(uint64_t) + counters, stream, true}, logits,
         int(row_length), int(n_vocab), k, slices, sorted, candidates, sums, ids, values, log_sum, finite);
}

}  // namespace gristmill::cuda

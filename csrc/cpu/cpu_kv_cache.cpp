#include "cpu/cpu_kv_cache.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>

#include "core/checked.h"
#include "core/error.h"
#include "core/half.h"
#include "formats/q8_0.h"

namespace gristmill::cpu {
namespace {

int64_t whole_pages(int64_t bytes) {
  static const int64_t page = sysconf(_SC_PAGESIZE);
  return (bytes + page - 1) / page * page;
}

constexpr uint16_t kHalfNan = 0x7e00;

// What float16 cannot hold becomes NaN, not infinity: an infinite key may lead to a score of minus infinity, which
// attention would pass over in silence, while a NaN reaches the logits and is seen there.
uint16_t to_half(float x) {
  const uint16_t h = float_to_half(x);
  return (h & 0x7c00) == 0x7c00 ? kHalfNan : h;
}

constexpr float kLargestInQ8 = 127 * 65504.0f;

// Scale and codes of 32 values as ggml makes Q8_0 blocks; codes have no NaN, so the scale carries it, and what blocks
// cannot hold becomes NaN as above.
void quantize_32(const float* x, uint16_t& d, int8_t* q) {
  for (int i = 0; i < 32; ++i) {
    if (std::fabs(x[i]) <= kLargestInQ8) continue;
    d = kHalfNan;
    std::memset(q, 1, 32);
    return;
  }
  formats::Q8_0::Block block;
  formats::Q8_0::from_float(x, nullptr, block);
  d = block.d;
  std::memcpy(q, block.qs, 32);
}

void store_key(KvType type, int head_dim, const float* k, int lane, std::byte* block) {
  switch (type) {
    case KvType::F32:
      for (int i = 0; i < head_dim; ++i) reinterpret_cast<float*>(block)[i * kPositions + lane] = k[i];
      return;
    case KvType::F16:
      for (int i = 0; i < head_dim; ++i) reinterpret_cast<uint16_t*>(block)[i * kPositions + lane] = to_half(k[i]);
      return;
    case KvType::Q8_0:
      for (int i = 0; i < head_dim; i += 32, block += 34 * kPositions) {
        int8_t q[32];
        quantize_32(k + i, reinterpret_cast<uint16_t*>(block)[lane], q);
        int8_t* codes = reinterpret_cast<int8_t*>(block) + 2 * kPositions;
        for (int j = 0; j < 32; ++j) codes[j * kPositions + lane] = q[j];
      }
      return;
  }
}

void store_value(KvType type, int head_dim, const float* v, std::byte* row) {
  switch (type) {
    case KvType::F32:
      std::memcpy(row, v, size_t(head_dim) * 4);
      return;
    case KvType::F16:
      for (int i = 0; i < head_dim; ++i) reinterpret_cast<uint16_t*>(row)[i] = to_half(v[i]);
      return;
    case KvType::Q8_0:
      for (int i = 0; i < head_dim; i += 32, row += 34) {
        uint16_t d;
        quantize_32(v + i, d, reinterpret_cast<int8_t*>(row) + 2);
        std::memcpy(row, &d, 2);
      }
      return;
  }
}

}  // namespace

CpuKvCache::CpuKvCache(const KvShape& shape) : KvCache(shape) {
  if ((shape.type_k == KvType::Q8_0 && shape.head_dim_k % 32 != 0) ||
      (shape.type_v == KvType::Q8_0 && shape.head_dim_v % 32 != 0))
    throw ArgumentError("[kv cache] q8_0, expected heads of a multiple of 32, got " + std::to_string(shape.head_dim_k) +
                        " and " + std::to_string(shape.head_dim_v));
  const int64_t blocks = (shape.n_ctx + kTile - 1) / kTile * (kTile / kPositions);
  k_bytes_ = whole_pages(blocks * k_block_bytes(shape.type_k, shape.head_dim_k));
  v_bytes_ = whole_pages(shape.n_ctx * v_row_bytes(shape.type_v, shape.head_dim_v));
  total_bytes_ =
      int64_t(checked_mul(uint64_t(k_bytes_ + v_bytes_), uint64_t(shape.n_layer) * uint64_t(shape.n_head_kv)));
  void* memory =
      mmap(nullptr, size_t(total_bytes_), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED)
    throw DeviceError("[kv cache] " + std::to_string(total_bytes_) + " bytes of address space for a context of " +
                      std::to_string(shape.n_ctx) + " were refused (" + std::strerror(errno) +
                      "); a smaller n_ctx needs less");
  memory_ = static_cast<std::byte*>(memory);
  // Every layer and head has a region of its own: huge pages would take 2 MiB of each with the first token.
  madvise(memory, size_t(total_bytes_), MADV_NOHUGEPAGE);
}

CpuKvCache::~CpuKvCache() { munmap(memory_, size_t(total_bytes_)); }

void CpuKvCache::truncate(int64_t n) {
  const int64_t before = n_past();
  KvCache::truncate(n);
  // Give pages back when much is dropped; short steps back (a changed last token) keep theirs.
  if (before - n < 1024) return;
  const KvShape& s = shape();
  const int64_t k_used = whole_pages((n + kPositions - 1) / kPositions * k_block_bytes(s.type_k, s.head_dim_k));
  const int64_t v_used = whole_pages(n * v_row_bytes(s.type_v, s.head_dim_v));
  for (int layer = 0; layer < s.n_layer; ++layer) {
    for (int head = 0; head < s.n_head_kv; ++head) {
      if (k_used < k_bytes_) madvise(k(layer, head) + k_used, size_t(k_bytes_ - k_used), MADV_DONTNEED);
      if (v_used < v_bytes_) madvise(v(layer, head) + v_used, size_t(v_bytes_ - v_used), MADV_DONTNEED);
    }
  }
}

void CpuKvCache::store(int layer, int head, int64_t position, const float* key, const float* value) const {
  const KvShape& s = shape();
  std::byte* block = k(layer, head) + position / kPositions * k_block_bytes(s.type_k, s.head_dim_k);
  store_key(s.type_k, s.head_dim_k, key, int(position % kPositions), block);
  store_value(s.type_v, s.head_dim_v, value, v(layer, head) + position * v_row_bytes(s.type_v, s.head_dim_v));
}

}  // namespace gristmill::cpu

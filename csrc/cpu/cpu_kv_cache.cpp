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

// The position of x [head_dim] in a tile of Q8_0.
template <int (*code)(int position, int d)>
void store_bytes(const float* x, int head_dim, int position, std::byte* tile) {
  auto* part = reinterpret_cast<BytePart*>(tile);
  for (int first = 0; first < head_dim; first += kPartDims, ++part) {
    int8_t q[kPartDims];
    quantize_32(x + first, part->scale[position], q);
    for (int d = 0; d < kPartDims; ++d) part->code[code(position, d)] = q[d];
  }
}

void store_key(KvType type, int head_dim, const float* k, int position, std::byte* tile) {
  const int lane = position % kPositions;
  std::byte* block = tile + position / kPositions * k_block_bytes(type, head_dim);
  switch (type) {
    case KvType::F32:
      for (int i = 0; i < head_dim; ++i) reinterpret_cast<float*>(block)[i * kPositions + lane] = k[i];
      return;
    case KvType::F16:
      for (int i = 0; i < head_dim; ++i) reinterpret_cast<uint16_t*>(block)[i * kPositions + lane] = to_half(k[i]);
      return;
    case KvType::Q8_0:
      return store_bytes<k_code>(k, head_dim, position, tile);
  }
}

void store_value(KvType type, int head_dim, const float* v, int position, std::byte* tile) {
  std::byte* row = tile + position * v_row_bytes(type, head_dim);
  switch (type) {
    case KvType::F32:
      std::memcpy(row, v, size_t(head_dim) * 4);
      return;
    case KvType::F16:
      for (int i = 0; i < head_dim; ++i) reinterpret_cast<uint16_t*>(row)[i] = to_half(v[i]);
      return;
    case KvType::Q8_0:
      return store_bytes<v_code>(v, head_dim, position, tile);
  }
}

}  // namespace

CpuKvCache::CpuKvCache(const KvShape& shape) : KvCache(shape) {
  if ((shape.type_k == KvType::Q8_0 && shape.head_dim_k % 32 != 0) ||
      (shape.type_v == KvType::Q8_0 && shape.head_dim_v % 32 != 0))
    throw ArgumentError("[kv cache] q8_0, expected heads of a multiple of 32, got " + std::to_string(shape.head_dim_k) +
                        " and " + std::to_string(shape.head_dim_v));
  const int64_t tiles = (std::min(shape.n_ctx, kChunk) + kTile - 1) / kTile,
                chunks = (shape.n_ctx + kChunk - 1) / kChunk;
  k_bytes_ = tiles * kv_tile_bytes(shape.type_k, shape.head_dim_k);
  v_bytes_ = tiles * kv_tile_bytes(shape.type_v, shape.head_dim_v);
  total_bytes_ = int64_t(checked_mul(uint64_t(chunk_bytes()), uint64_t(chunks)));
  void* memory =
      mmap(nullptr, size_t(total_bytes_), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED)
    throw DeviceError("[kv cache] " + std::to_string(total_bytes_) + " bytes of address space for a context of " +
                      std::to_string(shape.n_ctx) + " were refused (" + std::strerror(errno) +
                      "); a smaller n_ctx needs less");
  memory_ = static_cast<std::byte*>(memory);
  // In the first chunk a short sequence pays for what it uses; behind it a chunk may come as a whole.
  madvise(memory, size_t(total_bytes_), MADV_NOHUGEPAGE);
  if (chunks > 1) advise(chunk_bytes(), total_bytes_, MADV_HUGEPAGE);
}

CpuKvCache::~CpuKvCache() { munmap(memory_, size_t(total_bytes_)); }

void CpuKvCache::truncate(int64_t n) {
  const int64_t before = n_past();
  KvCache::truncate(n);
  // Give pages back when much is dropped; short steps back (a changed last token) keep theirs.
  if (before - n < 1024) return;
  advise((n + kChunk - 1) / kChunk * chunk_bytes(), total_bytes_, MADV_DONTNEED);
}

void CpuKvCache::advise(int64_t begin, int64_t end, int advice) const {
  static const int64_t page = sysconf(_SC_PAGESIZE);
  begin = (begin + page - 1) / page * page;
  if (begin < end) madvise(memory_ + begin, size_t(end - begin), advice);
}

void CpuKvCache::store(int layer, int head, int64_t position, const float* key, const float* value) const {
  const KvShape& s = shape();
  const int64_t chunk = position / kChunk * chunk_bytes(), tile = position % kChunk / kTile;
  const int at = int(position % kTile);
  store_key(s.type_k, s.head_dim_k, key, at, k(layer, head) + chunk + tile * kv_tile_bytes(s.type_k, s.head_dim_k));
  store_value(s.type_v, s.head_dim_v, value, at, v(layer, head) + chunk + tile * kv_tile_bytes(s.type_v, s.head_dim_v));
}

}  // namespace gristmill::cpu

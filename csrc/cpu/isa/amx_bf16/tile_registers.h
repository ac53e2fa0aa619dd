// The eight tile registers: up to 16 rows of up to 64 bytes, which tdpbf16ps reads as 16 x 32 bfloat16 and sums as
// 16 x 16 float32, and tdpbssd and tdpbusd as 16 x 64 int8 and int32. Written out as assembly, since GCC's intrinsics
// up to 12 do not tell the compiler what memory they read.
//
//   c[16][16] += a[16][32 k] b[16 pairs of k][16][2]      a is weights in prefill, queries in attention
//   c[16][16] += a[16][64 k] b[16 fours of k][16][4]      int8
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/generic/constants.h"

namespace gristmill::cpu {
namespace {

constexpr int kTileRows = 16, kTileBytes = kTileRows * 64, kStepK = 32;

struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Tiles, all whole unless told otherwise, as long as this lives. Outside, a thread has no tiles that the system would
// have to save.
struct TilesInUse {
  explicit TilesInUse(const TileShapes& shapes = {}) { asm volatile("ldtilecfg %0" ::"m"(shapes)); }
  ~TilesInUse() { asm volatile("tilerelease" ::: "memory"); }
  TilesInUse(const TilesInUse&) = delete;
  TilesInUse& operator=(const TilesInUse&) = delete;
};

template <int kTile>
GRISTMILL_INLINE void clear_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
}
template <int kTile>
GRISTMILL_INLINE void load_tile(const void* p, int64_t row_bytes = 64) {
  asm volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(kTile), "r"(p), "r"(row_bytes) : "memory");
}
// The same for what is read once and should leave L1 to others.
template <int kTile>
GRISTMILL_INLINE void stream_tile(const void* p, int64_t row_bytes = 64) {
  asm volatile("tileloaddt1 (%1,%2,1), %%tmm%c0" ::"i"(kTile), "r"(p), "r"(row_bytes) : "memory");
}
template <int kTile>
GRISTMILL_INLINE void store_tile(void* p, int64_t row_bytes = 64) {
  asm volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(kTile), "r"(p), "r"(row_bytes) : "memory");
}
template <int kSum, int kA, int kB>
GRISTMILL_INLINE void multiply_tiles() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kA), "i"(kB));
}
// Of bytes with a sign; those of the first operand without one.
template <int kSum, int kA, int kB>
GRISTMILL_INLINE void multiply_signed_tiles() {
  asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kA), "i"(kB));
}
template <int kSum, int kA, int kB>
GRISTMILL_INLINE void multiply_unsigned_tiles() {
  asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kA), "i"(kB));
}

}  // namespace
}  // namespace gristmill::cpu

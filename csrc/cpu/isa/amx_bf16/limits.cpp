// Limits of AMX: tdpbf16ps on four tiles of sums, more than its latency times how many start in a cycle; the rest is
// AVX-512's.
#include "cpu/limit_kernels.h"

#if defined(__AVX512BF16__) && defined(GRISTMILL_HAS_AMX_BF16)
#include "cpu/isa/amx_bf16/tile_registers.h"

namespace gristmill::cpu {
namespace {

constexpr int kSums = 4;

int64_t multiply_add_tiles(int64_t iterations) {
  alignas(64) uint16_t ones[kTileRows][32];
  for (auto& row : ones)
    for (auto& x : row) x = 0x3f80;
  const TilesInUse tiles_in_use;
  load_tile<6>(ones);
  load_tile<7>(ones);
  int64_t total = 0;
  while (iterations > 0) {
    int64_t some = iterations < 1 << 18 ? iterations : 1 << 18;  // float32 sums of 32 a time are exact up to 2^24
    iterations -= some;
    for_constants<kSums>([](auto i) GRISTMILL_LAMBDA { clear_tile<i>(); });
    for (; some > 0; --some) for_constants<kSums>([](auto i) GRISTMILL_LAMBDA { multiply_tiles<i, 6, 7>(); });
    for_constants<kSums>([&](auto i) GRISTMILL_LAMBDA {
      alignas(64) float sums[kTileRows][16];
      store_tile<i>(sums);
      for (const auto& row : sums)
        for (const float x : row) total += int64_t(x);
    });
  }
  return total;
}

}  // namespace

LimitKernels amx_bf16_limits() {
  LimitKernels limits = avx512_vnni_limits();
  limits.multiply_add_bf16 = multiply_add_tiles;
  return limits;
}

}  // namespace gristmill::cpu
#endif

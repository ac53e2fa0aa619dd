#include "peaks.h"

#include "cuda/device/launch.h"
#include "cuda/device/memory.h"
#include "cuda/device/warp.h"
#include "cuda/device/wgmma.h"

namespace gristmill::cuda::bench {
namespace {

// Two warpgroups on operands of their own in shared memory: 64 x 64 and 256 x 64 halves.
constexpr int kOperandBytes = (64 + 256) * 128, kGroups = 2;
KERNEL(kGroups* kWarpgroup, 1) multiply_wgmma_kernel(float* sink, int rounds) {
  SMEM(std::byte, shared);
  // Halves of both signs from 1/16 to 1/8: what power a product takes, and so the clock, depends on its numbers.
  for (int i = int(threadIdx.x); i < kGroups * kOperandBytes / 4; i += int(blockDim.x))
    reinterpret_cast<uint32_t*>(shared)[i] = 0x2c002c00u | (unsigned(i) * 0x9e3779b1u & 0x83ff83ffu);
  fence_proxy_async();  // what ordinary stores wrote is read by wgmma
  sync_block();
  const std::byte* mine = shared + int(threadIdx.x) / kWarpgroup * kOperandBytes;
  float d[128];
  for (int round = 0; round < rounds; ++round) {
    fence_products();
    UNROLL
    for (int k = 0; k < 64; k += 16)
      multiply_64x256(d, operand_at(mine, k), operand_at(mine + 64 * 128, k), round > 0 || k > 0);
    commit_products();
    wait_products<1>();
  }
  wait_products<0>();
  settle_products(d);
  float sum = 0.0f;
  UNROLL
  for (int i = 0; i < 128; ++i) sum += d[i];
  sink[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

KERNEL(32, 1) nothing_kernel() {
  grid_dependency_launch();
  grid_dependency_wait();
}

}  // namespace

double multiply_wgmma(float* sink, int rounds, const DeviceInfo& device, Stream stream) {
  const unsigned blocks = unsigned(device.multiprocessors);
  launch("multiply_wgmma", multiply_wgmma_kernel,
         {{blocks}, {unsigned(kGroups * kWarpgroup)}, size_t(kGroups) * kOperandBytes, stream}, sink, rounds);
  return 2.0 * 64 * 256 * 64 * rounds * kGroups * blocks;
}
void do_nothing(bool dependent, Stream stream) { launch("nothing", nothing_kernel, {{1}, {32}, 0, stream, dependent}); }

}  // namespace gristmill::cuda::bench

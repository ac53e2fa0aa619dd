#include "peaks.h"

#include "cuda/device/arithmetic.h"
#include "cuda/device/memory.h"
#include "cuda/device/mma.h"
#include "cuda/device/warp.h"
#include "cuda/device/wgmma.h"

namespace gristmill::cuda::bench {
namespace {

constexpr int kThreads = 512, kUnroll = 8, kRounds = 4096, kChains = 8;

KERNEL(kThreads, 2) read_kernel(const std::byte* p, size_t bytes, unsigned* sink) {
  const size_t step = size_t(gridDim.x) * kThreads * 16;
  uint32_t sum = 0;
  for (size_t at = (size_t(blockIdx.x) * kThreads + threadIdx.x) * 16; at < bytes; at += step * kUnroll) {
    uint4 v[kUnroll];
    UNROLL
    for (int i = 0; i < kUnroll; ++i) v[i] = at + step * i < bytes ? load_once16(p + at + step * i) : uint4{0, 0, 0, 0};
    UNROLL
    for (int i = 0; i < kUnroll; ++i) sum ^= v[i].x ^ v[i].y ^ v[i].z ^ v[i].w;
  }
  if (sum == 0x12345678u) *sink = sum;
}

template <bool kHalves>
KERNEL(256, 2)
multiply_kernel(float* sink) {
  uint32_t a[4] = {0x3c003c01u + threadIdx.x, 0x3c013c00u, 0x38003c00u, 0x3c003800u};
  float f[kChains][4] = {};
  int d[kChains][4] = {};
  for (int round = 0; round < kRounds; ++round) {
    UNROLL
    for (int c = 0; c < kChains; ++c) {
      if constexpr (kHalves) {
        mma_f16(f[c], a, 0x2c002c01u + unsigned(c), 0x2c012c00u);
      } else {
        mma_u8_k32(d[c], a, 0x01020304u + unsigned(c), 0x04030201u, d[c]);
      }
    }
  }
  float sum = 0.0f;
  UNROLL
  for (int c = 0; c < kChains; ++c) sum += f[c][0] + f[c][3] + float(d[c][0] + d[c][3]);
  sink[blockIdx.x * 256 + threadIdx.x] = sum;
}

// Two warpgroups on operands of their own in shared memory: 64 x 64 and 256 x 64 halves.
constexpr int kOperandBytes = (64 + 256) * 128, kGroups = 2;
KERNEL(kGroups* kWarpgroup, 1) multiply_wgmma_kernel(float* sink) {
  SMEM(std::byte, shared);
  for (int i = int(threadIdx.x); i < kGroups * kOperandBytes / 4; i += int(blockDim.x))
    reinterpret_cast<uint32_t*>(shared)[i] = 0x2c002c01u + unsigned(i) * 0x9e3779b1u % 0x03000300u;
  fence_proxy_async();  // what ordinary stores wrote is read by wgmma
  sync_block();
  const std::byte* mine = shared + int(threadIdx.x) / kWarpgroup * kOperandBytes;
  float d[128];
  for (int round = 0; round < kRounds; ++round) {
    fence_products();
    UNROLL
    for (int k = 0; k < 64; k += 16)
      multiply_64x256(d, operand_at(mine, k), operand_at(mine + 64 * 128, k), round > 0 || k > 0);
    commit_products();
    wait_products<1>();
  }
  wait_products<0>();
  float sum = 0.0f;
  UNROLL
  for (int i = 0; i < 128; ++i) sum += d[i];
  sink[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

KERNEL(32, 1) nothing_kernel() {
  grid_dependency_launch();
  grid_dependency_wait();
}

template <bool kHalves>
double multiply(float* sink, const DeviceInfo& device, Stream stream) {
  const unsigned blocks = unsigned(2 * device.multiprocessors);
  launch("multiply", multiply_kernel<kHalves>, {{blocks}, {256}, 0, stream}, sink);
  const double one = 2.0 * 16 * 8 * (kHalves ? 16 : 32);
  return one * kChains * kRounds * 8 * blocks;  // 8 warps a block
}

}  // namespace

void read_memory(const std::byte* p, size_t bytes, unsigned* sink, const DeviceInfo& device, Stream stream) {
  launch("read", read_kernel, {{unsigned(2 * device.multiprocessors)}, {unsigned(kThreads)}, 0, stream}, p, bytes,
         sink);
}
double multiply_halves(float* sink, const DeviceInfo& device, Stream stream) {
  return multiply<true>(sink, device, stream);
}
double multiply_bytes(float* sink, const DeviceInfo& device, Stream stream) {
  return multiply<false>(sink, device, stream);
}
double multiply_wgmma(float* sink, const DeviceInfo& device, Stream stream) {
  const unsigned blocks = unsigned(device.multiprocessors);
  launch("multiply_wgmma", multiply_wgmma_kernel,
         {{blocks}, {unsigned(kGroups * kWarpgroup)}, size_t(kGroups) * kOperandBytes, stream}, sink);
  return 2.0 * 64 * 256 * 64 * kRounds * kGroups * blocks;
}
void do_nothing(bool dependent, Stream stream) { launch("nothing", nothing_kernel, {{1}, {32}, 0, stream, dependent}); }

}  // namespace gristmill::cuda::bench

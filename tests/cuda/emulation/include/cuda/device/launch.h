// Emulation of csrc/cuda/device/launch.h: a kernel is a function, a launch runs its grid on the host.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "cuda/runtime.h"
#include "cuda/switches.h"
#include "emulation/block.h"

#define KERNEL(threads, blocks) void
#define DEVICE inline __attribute__((always_inline))
#define HOST_DEVICE inline __attribute__((always_inline))
#define SMEM(type, name) type* const name = reinterpret_cast<type*>(::gristmill::cuda::emulation::shared_memory())
#define GRID_CONSTANT const
#define UNROLL
#define UNROLL_8

// CUDA's vector types, with its alignment.
struct alignas(8) int2 {
  int x, y;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

namespace gristmill::cuda {

struct LaunchConfig {
  Dim3 grid, block;
  size_t shared_bytes = 0;
  Stream stream = nullptr;
  bool dependent = false;
};

template <class... Parameters>
bool runs_sm90_code(void (*)(Parameters...)) {
  return true;
}

template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), const LaunchConfig& config, Arguments... arguments) {
  emulation::check_stream(config.stream);
  emulation::count_launch(name);
  const bool first = starts_capture();
  const bool dependent = config.dependent && switches().dependent_launch && !first;
  const auto run = [=] {
    emulation::run_grid(name, config.grid, config.block, config.shared_bytes, dependent, [=] { kernel(arguments...); });
  };
  if (emulation::recording()) return emulation::record_work(run, dependent);
  run();
}

}  // namespace gristmill::cuda

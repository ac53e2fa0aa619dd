// What a kernel's source says in place of CUDA's own words, so that it also compiles as C++: the emulation under
// tests/cuda/emulation/include has a header of the same name for each one in this folder, with the same functions. All
// inline assembly is in this folder.
//   KERNEL(threads, blocks) void name(...)   a kernel for at most `threads` threads, at least `blocks` blocks an SM
//   DEVICE, HOST_DEVICE                      functions called by kernels; by kernels and by the host
//   SMEM(type, name)                         the launch's dynamic shared memory, aligned to 1024 bytes
//   launch("name", kernel, config, args...)  throws DeviceError
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <atomic>
#include <string>

#include "core/error.h"
#include "cuda/runtime.h"
#include "cuda/switches.h"

#define KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
#define DEVICE __device__ __forceinline__
#define HOST_DEVICE __host__ __device__ __forceinline__
#define SMEM(type, name)                                              \
  extern __shared__ __align__(1024) unsigned char gristmill_shared[]; \
  type* const name = reinterpret_cast<type*>(gristmill_shared)
// A struct of parameters that is read where it lies, also by a variable index.
#define GRID_CONSTANT const __grid_constant__
#define UNROLL _Pragma("unroll")
#define UNROLL_8 _Pragma("unroll 8")

namespace gristmill::cuda {

using Dim3 = dim3;

struct LaunchConfig {
  Dim3 grid, block;
  size_t shared_bytes = 0;
  Stream stream = nullptr;
  // Programmatic dependent launch: may start before the launch ahead of it in the stream has ended, and must call
  // grid_dependency_wait() before it touches what that one writes or reads. An ordinary launch on older GPUs.
  bool dependent = false;
};

[[noreturn]] inline void throw_launch_error(const char* name, cudaError_t error, const Place& place) {
  cudaGetLastError();  // as for every call (driver/runtime.cu): it must not be found again by a later one
  throw DeviceError("[cuda] launch of " + std::string(name) + " (" + place.text() + "): " + cudaGetErrorString(error));
}

// Whether the kernels run on the current device as code of sm_90 or later: what runs on such a GPU may still have been
// made for an older one. Only that code waits in grid_dependency_wait() and has bulk copies. It is the same for all
// kernels of the library, and asked once of each device. Throws where it cannot be told: code for the wrong GPU is an
// empty kernel.
template <class... Parameters>
bool runs_sm90_code(void (*kernel)(Parameters...), Place place = Place::current()) {
  static std::array<std::atomic<int>, 64> versions{};
  int device = 0;
  if (const cudaError_t error = cudaGetDevice(&device); error != cudaSuccess)
    throw_launch_error("a kernel, cudaGetDevice", error, place);
  std::atomic<int>& version = versions[size_t(device) % versions.size()];
  if (version.load(std::memory_order_relaxed) == 0) {
    cudaFuncAttributes attributes{};
    const cudaError_t error = cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel));
    if (error != cudaSuccess) throw_launch_error("a kernel, cudaFuncGetAttributes", error, place);
    version.store(attributes.ptxVersion, std::memory_order_relaxed);
  }
  return version.load(std::memory_order_relaxed) >= 90;
}

struct KernelName {
  const char* text;
  Place place;
  KernelName(const char* name, Place where = Place::current())  // NOLINT: implicit
      : text(name), place(where) {}
};

template <class... Parameters, class... Arguments>
void launch(KernelName name, void (*kernel)(Parameters...), const LaunchConfig& config, Arguments... arguments) {
  const auto set = [&](cudaFuncAttribute attribute, int value) {
    const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value);
    if (error != cudaSuccess) throw_launch_error(name.text, error, name.place);
  };
  if (config.shared_bytes > (48 << 10)) set(cudaFuncAttributeMaxDynamicSharedMemorySize, int(config.shared_bytes));
  // A kernel that may overlap its neighbours wants the split of L1 and shared memory that the large ones among them
  // need: an SM changes the split only when it is empty.
  if (config.dependent) set(cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t launch_config{};
  launch_config.gridDim = config.grid;
  launch_config.blockDim = config.block;
  launch_config.dynamicSmemBytes = config.shared_bytes;
  launch_config.stream = reinterpret_cast<cudaStream_t>(config.stream);
  launch_config.attrs = &attribute;
  const bool first = starts_capture();
  const bool dependent = config.dependent && switches().dependent_launch;
  launch_config.numAttrs = dependent && !first && runs_sm90_code(kernel) ? 1 : 0;
  cudaError_t error = cudaLaunchKernelEx(&launch_config, kernel, Parameters(arguments)...);
  if (error == cudaSuccess && switches().sync) {
    cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    error = cudaStreamIsCapturing(launch_config.stream, &capture);
    if (error == cudaSuccess && capture == cudaStreamCaptureStatusNone)
      error = cudaStreamSynchronize(launch_config.stream);
  }
  if (error != cudaSuccess) throw_launch_error(name.text, error, name.place);
}

}  // namespace gristmill::cuda

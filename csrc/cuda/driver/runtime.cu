#include "cuda/runtime.h"

#include <cuda_runtime.h>

#include <atomic>
#include <cstdio>
#include <utility>

#include "core/error.h"

namespace gristmill::cuda {
namespace {

void check(cudaError_t error, const char* call, const Place& place) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // the error is reported here, and must not be found again by a later call
  int device = 0;
  const bool known = cudaGetDevice(&device) == cudaSuccess;
  throw DeviceError("[cuda" + (known ? ":" + std::to_string(device) : std::string()) + "] " + call + " (" +
                    place.text() + "): " + cudaGetErrorString(error));
}

// For calls of destructors, which cannot throw: the first that fails in this process is said on stderr, since after a
// kernel's fault all of them do. At the end of the process the runtime may be gone, and the memory with it.
void note(cudaError_t error, const char* call) noexcept {
  static std::atomic<bool> noted = false;
  if (error == cudaSuccess) return;
  cudaGetLastError();
  if (error == cudaErrorCudartUnloading || noted.exchange(true)) return;
  std::fprintf(stderr, "gristmill: [cuda] %s: %s\n", call, cudaGetErrorString(error));
}
bool on_device(int index) noexcept {
  const cudaError_t error = cudaSetDevice(index);
  note(error, "cudaSetDevice");
  return error == cudaSuccess;
}

cudaStream_t raw(Stream stream) { return reinterpret_cast<cudaStream_t>(stream); }
cudaEvent_t raw(Event event) { return reinterpret_cast<cudaEvent_t>(event); }

int attribute(cudaDeviceAttr which, int device, const Place& place) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device), "cudaDeviceGetAttribute", place);
  return value;
}

// Any kernel of the library: where this one has no code, none has.
__global__ void probe() {}

}  // namespace

int device_count(std::string* why) {
  int n = 0;
  const cudaError_t error = cudaGetDeviceCount(&n);
  if (error == cudaSuccess) return n;
  cudaGetLastError();
  if (why) *why = cudaGetErrorString(error);
  return 0;
}

DeviceInfo device_info(int index, Place place) {
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, index), "cudaGetDeviceProperties", place);
  DeviceInfo info;
  info.index = index;
  info.name = properties.name;
  info.major = properties.major;
  info.minor = properties.minor;
  info.multiprocessors = properties.multiProcessorCount;
  info.l2_bytes = properties.l2CacheSize;
  info.shared_bytes_per_block = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, index, place);
  info.shared_bytes_per_multiprocessor = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, index, place);
  info.memory_bytes = int64_t(properties.totalGlobalMem);
  check(cudaDriverGetVersion(&info.driver_version), "cudaDriverGetVersion", place);
  info.unusable = below_least_capability(info.major, info.minor);
  if (!info.unusable.empty()) return info;
  set_device(index, place);
  cudaFuncAttributes attributes{};
  const cudaError_t error = cudaFuncGetAttributes(&attributes, probe);
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction ||
      error == cudaErrorInvalidPtx || error == cudaErrorUnsupportedPtxVersion) {
    cudaGetLastError();
    info.unusable = std::string("this build has no code for it: ") + cudaGetErrorString(error);
  } else {
    check(error, "cudaFuncGetAttributes", place);
    info.free_bytes = free_memory(place);
  }
  return info;
}

void set_device(int index, Place place) { check(cudaSetDevice(index), "cudaSetDevice", place); }

int current_device(Place place) {
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice", place);
  return device;
}

int64_t free_memory(Place place) {
  size_t free_bytes = 0, total = 0;
  check(cudaMemGetInfo(&free_bytes, &total), "cudaMemGetInfo", place);
  return int64_t(free_bytes);
}

void* allocate_device(size_t bytes, Place place) {
  void* p = nullptr;
  const cudaError_t error = cudaMalloc(&p, bytes > 0 ? bytes : 1);
  check(error, error == cudaSuccess ? "" : ("cudaMalloc of " + std::to_string(bytes) + " bytes").c_str(), place);
  return p;
}
void free_device(void* p, int device) noexcept {
  if (p && on_device(device)) note(cudaFree(p), "cudaFree");
}

void* allocate_pinned(size_t bytes, Place place) {
  void* p = nullptr;
  check(cudaMallocHost(&p, bytes > 0 ? bytes : 1), "cudaMallocHost", place);
  return p;
}
void free_pinned(void* p, int device) noexcept {
  if (p && on_device(device)) note(cudaFreeHost(p), "cudaFreeHost");
}

Stream make_stream(Place place) {
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags", place);
  return reinterpret_cast<Stream>(stream);
}
void destroy_stream(Stream stream) noexcept {
  if (stream) cudaStreamDestroy(raw(stream));
}
void synchronize(Stream stream, Place place) {
  check(cudaStreamSynchronize(raw(stream)), "cudaStreamSynchronize", place);
}

void copy_to_device(void* to, const void* host, size_t bytes, Stream stream, Place place) {
  check(cudaMemcpyAsync(to, host, bytes, cudaMemcpyHostToDevice, raw(stream)), "cudaMemcpyAsync to the device", place);
}
void copy_to_host(void* host, const void* from, size_t bytes, Stream stream, Place place) {
  check(cudaMemcpyAsync(host, from, bytes, cudaMemcpyDeviceToHost, raw(stream)), "cudaMemcpyAsync to the host", place);
}
void copy_on_device(void* to, const void* from, size_t bytes, Stream stream, Place place) {
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, raw(stream)), "cudaMemcpyAsync on the device",
        place);
}
void fill(void* p, int byte, size_t bytes, Stream stream, Place place) {
  check(cudaMemsetAsync(p, byte, bytes, raw(stream)), "cudaMemsetAsync", place);
}

Event make_event(Place place) {
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreateWithFlags", place);
  return reinterpret_cast<Event>(event);
}
Event make_timer(Place place) {
  cudaEvent_t event = nullptr;
  check(cudaEventCreate(&event), "cudaEventCreate", place);
  return reinterpret_cast<Event>(event);
}
void destroy_event(Event event) noexcept {
  if (event) cudaEventDestroy(raw(event));
}
void record(Event event, Stream stream, Place place) {
  check(cudaEventRecord(raw(event), raw(stream)), "cudaEventRecord", place);
}
void wait(Stream stream, Event event, Place place) {
  check(cudaStreamWaitEvent(raw(stream), raw(event)), "cudaStreamWaitEvent", place);
}
void synchronize(Event event, Place place) { check(cudaEventSynchronize(raw(event)), "cudaEventSynchronize", place); }
float milliseconds(Event from, Event to, Place place) {
  float ms = 0;
  check(cudaEventElapsedTime(&ms, raw(from), raw(to)), "cudaEventElapsedTime", place);
  return ms;
}

static thread_local bool capture_is_empty = false;

bool starts_capture() noexcept { return std::exchange(capture_is_empty, false); }
void begin_capture(Stream stream, Place place) {
  check(cudaStreamBeginCapture(raw(stream), cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture", place);
  capture_is_empty = true;
}
Graph end_capture(Stream stream, Place place) {
  capture_is_empty = false;
  cudaGraph_t graph = nullptr;
  check(cudaStreamEndCapture(raw(stream), &graph), "cudaStreamEndCapture", place);
  cudaGraphExec_t executable = nullptr;
  const cudaError_t error = cudaGraphInstantiate(&executable, graph, 0);
  cudaGraphDestroy(graph);
  check(error, "cudaGraphInstantiate", place);
  return reinterpret_cast<Graph>(executable);
}
void launch_graph(Graph graph, Stream stream, Place place) {
  check(cudaGraphLaunch(reinterpret_cast<cudaGraphExec_t>(graph), raw(stream)), "cudaGraphLaunch", place);
}
void destroy_graph(Graph graph) noexcept {
  if (graph) cudaGraphExecDestroy(reinterpret_cast<cudaGraphExec_t>(graph));
}

}  // namespace gristmill::cuda

// csrc/cuda/runtime.h on host memory. "Device" memory is a heap block of the exact size, filled with 0xff; work happens
// at once, so streams and events have nothing to do. A graph is the list of launches made while it was captured.
#include "cuda/runtime.h"

#include <cstdlib>
#include <cstring>

#include "core/error.h"
#include "emulation/block.h"
#include "emulation/device.h"

namespace gristmill::cuda {
namespace {

// What exists of a device: enough for host code to make its choices.
emulation::DeviceTraits traits;

template <class Handle>
Handle token() {
  return reinterpret_cast<Handle>(std::malloc(1));
}

}  // namespace

namespace emulation {
DeviceTraits& device_traits() { return traits; }
}  // namespace emulation

int device_count() { return 1; }

DeviceInfo device_info(int index, Place) {
  DeviceInfo info;
  info.index = index;
  info.name = "host emulation";
  info.major = traits.major;
  info.minor = traits.minor;
  info.multiprocessors = traits.multiprocessors;
  info.l2_bytes = 1 << 20;
  info.shared_bytes_per_block = 227 << 10;
  info.shared_bytes_per_multiprocessor = 228 << 10;
  info.memory_bytes = traits.memory_bytes;
  info.free_bytes = free_memory();
  return info;
}

void set_device(int, Place) {}
int64_t free_memory(Place) { return traits.memory_bytes - traits.used_bytes; }

void* allocate_device(size_t bytes, Place place) {
  if (emulation::recording()) emulation::fail(place, "an allocation inside of a capture");
  if (int64_t(bytes) > free_memory())
    throw DeviceError("[cuda] cudaMalloc of " + std::to_string(bytes) + " bytes (" + place.text() + "): out of memory");
  // The size lies in front, at a distance that keeps the alignment of cudaMalloc.
  constexpr size_t kFront = 256;
  void* p = nullptr;
  if (posix_memalign(&p, kFront, kFront + bytes) != 0) std::abort();
  std::memcpy(p, &bytes, sizeof(bytes));
  traits.used_bytes += int64_t(bytes);
  std::memset(static_cast<std::byte*>(p) + kFront, 0xff, bytes);
  return static_cast<std::byte*>(p) + kFront;
}
void free_device(void* p) noexcept {
  if (!p) return;
  std::byte* front = static_cast<std::byte*>(p) - 256;
  size_t bytes;
  std::memcpy(&bytes, front, sizeof(bytes));
  traits.used_bytes -= int64_t(bytes);
  std::free(front);
}
void* allocate_pinned(size_t bytes, Place) { return std::malloc(bytes > 0 ? bytes : 1); }
void free_pinned(void* p) noexcept { std::free(p); }

Stream make_stream(Place) { return token<Stream>(); }
void destroy_stream(Stream stream) noexcept { std::free(stream); }
void synchronize(Stream, Place) {}

// The back end captures launches only.
static void copy(void* to, const void* from, size_t bytes, const Place& place) {
  if (emulation::recording()) emulation::fail(place, "a copy inside of a capture");
  std::memcpy(to, from, bytes);
}
void copy_to_device(void* to, const void* host, size_t bytes, Stream, Place place) { copy(to, host, bytes, place); }
void copy_to_host(void* host, const void* from, size_t bytes, Stream, Place place) { copy(host, from, bytes, place); }
void copy_on_device(void* to, const void* from, size_t bytes, Stream, Place place) { copy(to, from, bytes, place); }
void fill(void* p, int byte, size_t bytes, Stream, Place place) {
  if (emulation::recording()) emulation::fail(place, "a fill inside of a capture");
  std::memset(p, byte, bytes);
}

Event make_event(Place) { return token<Event>(); }
void destroy_event(Event event) noexcept { std::free(event); }
void record(Event, Stream, Place) {}
void wait(Stream, Event, Place) {}
void synchronize(Event, Place) {}
float milliseconds(Event, Event, Place) { return 1.0f; }

struct GraphHandle {
  std::vector<std::function<void()>> work;
};
void begin_capture(Stream, Place) { emulation::begin_recording(); }
Graph end_capture(Stream, Place) { return new GraphHandle{emulation::end_recording()}; }
void launch_graph(Graph graph, Stream, Place) {
  for (const auto& work : graph->work) work();
}
void destroy_graph(Graph graph) noexcept { delete graph; }

}  // namespace gristmill::cuda

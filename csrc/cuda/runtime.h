// The CUDA calls that host code makes, without CUDA's headers: driver/runtime.cu makes them, tests/cuda/emulation has
// them on host memory. Everything throws DeviceError with the call, its place and the driver's words.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "cuda/place.h"

namespace gristmill::cuda {

struct StreamHandle;
struct EventHandle;
struct GraphHandle;
using Stream = StreamHandle*;  // a cudaStream_t
using Event = EventHandle*;
using Graph = GraphHandle*;  // a cudaGraphExec_t

struct DeviceInfo {
  int index = 0;
  std::string name;
  int major = 0, minor = 0;  // compute capability
  int multiprocessors = 0;
  int64_t l2_bytes = 0, shared_bytes_per_block = 0, shared_bytes_per_multiprocessor = 0;
  int64_t memory_bytes = 0, free_bytes = 0;
  int driver_version = 0;  // 1000 major + 10 minor
  std::string unusable;    // why nothing of this library runs there; empty where it does
  bool bulk_copies() const { return major >= 9; }
};

// Why a GPU of this compute capability is of no use, whatever was compiled; empty where it is.
inline std::string below_least_capability(int major, int minor) {
  if (major >= 8) return "";
  return "compute capability " + std::to_string(major) + "." + std::to_string(minor) + ", expected at least 8.0";
}

// Devices there are; 0 where the driver finds none or fails, with its words for that in *why.
int device_count(std::string* why = nullptr);
// The device is then the current one: to go back to one that nobody has used would make a context there, which takes
// memory and may fail. One that is unusable is described all the same, with no free memory: it is not asked for
// that.
DeviceInfo device_info(int index, Place place = Place::current());
// Makes a context there, where there is none yet. Every entry point of the back end begins with it.
void set_device(int index, Place place = Place::current());
// Bytes free on the current device.
int64_t free_memory(Place place = Place::current());

// What an allocation takes of the device's free memory: the driver hands out pages, and keeps pages for small pieces.
constexpr int64_t allocated_bytes(int64_t bytes) {
  constexpr int64_t kPage = 2 << 20, kLargestPiece = 1 << 20, kPieceStep = 512;
  const int64_t step = bytes > kLargestPiece ? kPage : kPieceStep;
  return (bytes + step - 1) / step * step;
}

// The calling thread's; asking makes no context.
int current_device(Place place = Place::current());
// On the current device, which frees it again. Freeing makes that one the current one, on whatever thread: a session's
// end may be anywhere, and with another device current the call would make a context there.
void* allocate_device(size_t bytes, Place place = Place::current());
void free_device(void* p, int device) noexcept;
// Host memory that copies do not have to stage.
void* allocate_pinned(size_t bytes, Place place = Place::current());
void free_pinned(void* p, int device) noexcept;

struct FreeDevice {
  int device = 0;
  void operator()(void* p) const noexcept { free_device(p, device); }
};
struct FreePinned {
  int device = 0;
  void operator()(void* p) const noexcept { free_pinned(p, device); }
};
template <class T>
using DevicePointer = std::unique_ptr<T[], FreeDevice>;
template <class T>
using PinnedPointer = std::unique_ptr<T[], FreePinned>;

template <class T>
DevicePointer<T> make_device(size_t n, Place place = Place::current()) {
  const int device = current_device(place);
  return {static_cast<T*>(allocate_device(n * sizeof(T), place)), FreeDevice{device}};
}
template <class T>
PinnedPointer<T> make_pinned(size_t n, Place place = Place::current()) {
  const int device = current_device(place);
  return {static_cast<T*>(allocate_pinned(n * sizeof(T), place)), FreePinned{device}};
}

Stream make_stream(Place place = Place::current());
void destroy_stream(Stream stream) noexcept;
// Until all work of the stream is done; errors of kernels arrive here.
void synchronize(Stream stream, Place place = Place::current());

void copy_to_device(void* to, const void* host, size_t bytes, Stream stream, Place place = Place::current());
void copy_to_host(void* host, const void* from, size_t bytes, Stream stream, Place place = Place::current());
void copy_on_device(void* to, const void* from, size_t bytes, Stream stream, Place place = Place::current());
void fill(void* p, int byte, size_t bytes, Stream stream, Place place = Place::current());

Event make_event(Place place = Place::current());
Event make_timer(Place place = Place::current());  // an event that milliseconds() takes; others are cheaper
void destroy_event(Event event) noexcept;
void record(Event event, Stream stream, Place place = Place::current());
void wait(Stream stream, Event event, Place place = Place::current());  // the stream waits
void synchronize(Event event, Place place = Place::current());          // the host waits
float milliseconds(Event from, Event to, Place place = Place::current());

struct DestroyStream {
  void operator()(Stream stream) const noexcept { destroy_stream(stream); }
};
struct DestroyEvent {
  void operator()(Event event) const noexcept { destroy_event(event); }
};
using StreamPointer = std::unique_ptr<StreamHandle, DestroyStream>;
using EventPointer = std::unique_ptr<EventHandle, DestroyEvent>;

// What is launched on the stream between these two becomes a graph.
void begin_capture(Stream stream, Place place = Place::current());
// Whether nothing was captured yet; asked by the launch that comes first, and false from then on. That one must not be
// dependent (LaunchConfig): there is no kernel in the graph that it could depend on.
bool starts_capture() noexcept;
Graph end_capture(Stream stream, Place place = Place::current());
void launch_graph(Graph graph, Stream stream, Place place = Place::current());
void destroy_graph(Graph graph) noexcept;

}  // namespace gristmill::cuda

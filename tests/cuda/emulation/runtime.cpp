// csrc/cuda/runtime.h on host memory. "Device" memory is a heap block of the exact size, filled with 0xff; work happens
// at once, but the host may touch what is copied to or from it only after it has waited (AddressSanitizer tells). A
// graph is the list of launches made while it was captured.
#include "cuda/runtime.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

#include "core/error.h"
#include "emulation/block.h"
#include "emulation/device.h"
#include "emulation/sanitizer.h"

#ifdef GRISTMILL_ASAN
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#endif

namespace gristmill::cuda {

// A host range that a copy reads or writes: nobody else's until the host has waited for it.
struct HostRange {
  const void* begin;
  size_t bytes;
  uint64_t number;  // of the copy on its stream
};
struct StreamHandle {
  int device;
  uint64_t n_copies = 0;
  std::vector<HostRange> in_flight = {};
};
struct EventHandle {
  StreamHandle* stream = nullptr;
  uint64_t n_copies = 0;  // of the stream when it was recorded
  bool timed = false;
};

namespace {

// What exists of a device: enough for host code to make its choices.
std::vector<emulation::DeviceTraits> devices(1);
thread_local int current = 0;
int accessible = 0;  // the device whose memory is not poisoned

// Blocks of device memory: their sizes and whose they are.
struct Block {
  size_t bytes;
  int device;
};
std::map<void*, Block>& blocks() {
  static std::map<void*, Block> all;
  return all;
}

StreamHandle default_stream{-1};
StreamHandle& handle_of(Stream stream) { return stream ? *stream : default_stream; }

// The host has waited for the first n copies of the stream.
void give_back(StreamHandle& stream, uint64_t n) {
  std::erase_if(stream.in_flight, [&](const HostRange& range) {
    if (range.number > n) return false;
    ASAN_UNPOISON_MEMORY_REGION(range.begin, range.bytes);
    return true;
  });
}
void take(StreamHandle& stream, const void* host, size_t bytes) {
  ASAN_POISON_MEMORY_REGION(host, bytes);
  stream.in_flight.push_back({host, bytes, ++stream.n_copies});
}

std::string at_device(const char* call, const Place& place) {
  return "[cuda:" + std::to_string(current) + "] " + call + " (" + place.text() + "): ";
}

}  // namespace

namespace emulation {
int current_device() { return current; }
void for_each_allocation(int device, const std::function<void(std::byte*, size_t)>& f) {
  for (const auto& [p, block] : blocks())
    if (block.device == device) f(static_cast<std::byte*>(p), block.bytes);
}
DeviceTraits& device_traits(int index) { return devices.at(size_t(index)); }
void set_device_count(int n) { devices.resize(size_t(n)); }
void count_launch(const char* name) {
  ++devices[size_t(current)].launches;
  int& left = devices[size_t(current)].launches_left;
  if (left < 0 || left-- > 0) return;
  throw DeviceError("[cuda] launch of " + std::string(name) + ": the emulation was told to fail");
}
void check_stream(Stream stream, const Place& place) {
  if (stream && stream->device != current)
    fail(place, "a stream of device %d is used while %d is the current one", stream->device, current);
}
}  // namespace emulation

int device_count(std::string* why) {
  if (devices.empty() && why) *why = "the emulation has no device";
  return int(devices.size());
}

DeviceInfo device_info(int index, Place place) {
  emulation::DeviceTraits& traits = devices.at(size_t(index));
  ++traits.times_asked;
  if (traits.fails) throw DeviceError(at_device("cudaSetDevice", place) + "the device is busy or unavailable");
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
  info.unusable = below_least_capability(info.major, info.minor);
  if (info.unusable.empty() && !traits.has_code) info.unusable = "this build has no code for it: no kernel image";
  if (!info.unusable.empty()) return info;
  set_device(index, place);
  info.free_bytes = free_memory(place);
  return info;
}

void set_device(int index, Place place) {
  if (index < 0 || size_t(index) >= devices.size())
    throw DeviceError(at_device("cudaSetDevice", place) + "invalid device ordinal");
  devices[size_t(index)].has_context = true;
  current = index;
  if (index == accessible) return;
  accessible = index;
  for (const auto& [p, block] : blocks()) {
    if (block.device == current) {
      ASAN_UNPOISON_MEMORY_REGION(p, block.bytes);
    } else {
      ASAN_POISON_MEMORY_REGION(p, block.bytes);
    }
  }
}
int current_device(Place) { return current; }
int64_t free_memory(Place) { return devices[size_t(current)].memory_bytes - devices[size_t(current)].used_bytes; }

void* allocate_device(size_t bytes, Place place) {
  if (emulation::recording()) emulation::fail(place, "an allocation inside of a capture");
  emulation::DeviceTraits& traits = devices[size_t(current)];
  if (allocated_bytes(int64_t(bytes)) > free_memory())
    throw DeviceError(at_device(("cudaMalloc of " + std::to_string(bytes) + " bytes").c_str(), place) +
                      "out of memory");
  // The alignment of cudaMalloc.
  void* p = nullptr;
  if (posix_memalign(&p, 256, bytes > 0 ? bytes : 1) != 0) std::abort();
  blocks()[p] = {bytes, current};
  traits.used_bytes += allocated_bytes(int64_t(bytes));
  traits.peak_bytes = std::max(traits.peak_bytes, traits.used_bytes);
  std::memset(p, 0xff, bytes);
  return p;
}
void free_device(void* p, int device) noexcept {
  if (!p) return;
  set_device(device, Place::current());
  const auto found = blocks().find(p);
  if (found == blocks().end()) emulation::fail(Place::current(), "what is freed was not allocated");
  if (found->second.device != device)
    emulation::fail(Place::current(), "memory of device %d is freed on device %d", found->second.device, device);
  ASAN_UNPOISON_MEMORY_REGION(p, found->second.bytes);
  devices[size_t(found->second.device)].used_bytes -= allocated_bytes(int64_t(found->second.bytes));
  blocks().erase(found);
  std::free(p);
}
void* allocate_pinned(size_t bytes, Place) { return std::malloc(bytes > 0 ? bytes : 1); }
void free_pinned(void* p, int device) noexcept {
  if (p) set_device(device, Place::current());
  std::free(p);
}

Stream make_stream(Place) { return new StreamHandle{current}; }
void destroy_stream(Stream stream) noexcept {
  give_back(*stream, stream->n_copies);
  delete stream;
}
void synchronize(Stream stream, Place) {
  give_back(handle_of(stream), handle_of(stream).n_copies);
  emulation::wait_for_everything(current);
}

// The back end captures launches only.
static void copy(void* to, const void* from, size_t bytes, Stream stream, const Place& place) {
  emulation::check_stream(stream, place);
  if (emulation::recording()) emulation::fail(place, "a copy inside of a capture");
  std::memcpy(to, from, bytes);
  emulation::wait_for_everything(current);
}
void copy_to_device(void* to, const void* host, size_t bytes, Stream stream, Place place) {
  copy(to, host, bytes, stream, place);
  take(handle_of(stream), host, bytes);
}
void copy_to_host(void* host, const void* from, size_t bytes, Stream stream, Place place) {
  copy(host, from, bytes, stream, place);
  take(handle_of(stream), host, bytes);
}
void copy_on_device(void* to, const void* from, size_t bytes, Stream stream, Place place) {
  copy(to, from, bytes, stream, place);
}
void fill(void* p, int byte, size_t bytes, Stream stream, Place place) {
  emulation::check_stream(stream, place);
  if (emulation::recording()) emulation::fail(place, "a fill inside of a capture");
  std::memset(p, byte, bytes);
  emulation::wait_for_everything(current);
}

Event make_event(Place) { return new EventHandle; }
Event make_timer(Place) {
  Event event = new EventHandle;
  event->timed = true;
  return event;
}
void destroy_event(Event event) noexcept { delete event; }
void record(Event event, Stream stream, Place) {
  event->stream = &handle_of(stream);
  event->n_copies = handle_of(stream).n_copies;
}
void wait(Stream, Event, Place) {}
void synchronize(Event event, Place) {
  if (event->stream) give_back(*event->stream, event->n_copies);
}
float milliseconds(Event from, Event to, Place place) {
  if (!from->timed || !to->timed) emulation::fail(place, "the time of an event without one");
  return 1.0f;
}

struct GraphHandle {
  std::vector<std::function<void()>> work;
};
bool starts_capture() noexcept { return emulation::recording() && emulation::recorded_count() == 0; }
void begin_capture(Stream, Place place) {
  if (devices[size_t(current)].no_capture)
    throw DeviceError(at_device("cudaStreamBeginCapture", place) + "not permitted");
  emulation::begin_recording();
}
Graph end_capture(Stream, Place place) {
  auto work = emulation::end_recording();
  if (devices[size_t(current)].no_graph) throw DeviceError(at_device("cudaGraphInstantiate", place) + "not supported");
  return new GraphHandle{std::move(work)};
}
void launch_graph(Graph graph, Stream stream, Place place) {
  emulation::check_stream(stream, place);
  if (devices[size_t(current)].no_graph_launch)
    throw DeviceError(at_device("cudaGraphLaunch", place) + "out of memory");
  for (const auto& work : graph->work) work();
}
void destroy_graph(Graph graph) noexcept { delete graph; }

}  // namespace gristmill::cuda

#include "cuda/limits.h"

#include <algorithm>
#include <chrono>

namespace gristmill::cuda {
namespace {

class Clock {
 public:
  explicit Clock(Stream stream) : stream_(stream), begin_(make_timer()), end_(make_timer()) {}

  // Milliseconds of one launch; run() returns its work.
  template <class F>
  double time(const F& run, double* work = nullptr) {
    record(begin_.get(), stream_);
    const double done = run();
    record(end_.get(), stream_);
    synchronize(end_.get());
    if (work) *work = done;
    return double(milliseconds(begin_.get(), end_.get()));
  }

  // The most work a second of launches that go on for `seconds`.
  template <class F>
  double best_rate(double seconds, const F& run) {
    using Wall = std::chrono::steady_clock;
    const auto began = Wall::now();
    run();  // loads the kernel
    double best = 0.0;
    do {
      double work = 0.0;
      const double ms = time(run, &work);
      best = std::max(best, work / (ms / 1e3));
    } while (std::chrono::duration<double>(Wall::now() - began).count() < seconds);
    return best;
  }

 private:
  Stream stream_;
  EventPointer begin_, end_;
};

}  // namespace

DeviceLimits measure_limits(int device, double seconds) {
  set_device(device);
  const DeviceInfo info = device_info(device);
  const StreamPointer own(make_stream());
  Clock clock(own.get());
  const size_t bytes =
      std::max<size_t>(size_t(std::min(int64_t{1} << 30, info.free_bytes / 8)) / (16 << 10), 2) * (16 << 10);
  const auto memory = make_device<std::byte>(bytes);
  const auto sink = make_device<float>(size_t(512) * size_t(info.multiprocessors));
  fill(memory.get(), 1, bytes, own.get());
  DeviceLimits limits;
  limits.read_gb_s = clock.best_rate(seconds / 2, [&] {
    read_memory(memory.get(), bytes, reinterpret_cast<unsigned*>(sink.get()), info, own.get());
    return double(bytes) / 1e9;
  });
  limits.copy_gb_s = clock.best_rate(seconds / 2, [&] {
    copy_on_device(memory.get(), memory.get() + bytes / 2, bytes / 2, own.get());
    return double(bytes) / 1e9;
  });
  int rounds = 64;
  const auto multiply = [&] { return multiply_halves(sink.get(), rounds, info, own.get()) / 1e9; };
  multiply();  // loads the kernel
  while (rounds < 1 << 20 && clock.time(multiply) < 1.0) rounds *= 2;
  limits.half_gop_s = clock.best_rate(seconds / 2, multiply);
  synchronize(own.get());
  return limits;
}

}  // namespace gristmill::cuda

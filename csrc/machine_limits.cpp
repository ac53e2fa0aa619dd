#include "machine_limits.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/error.h"
#include "core/page_buffer.h"
#include "core/thread_pool.h"
#include "cpu/limit_kernels.h"

namespace gristmill {
namespace {

constexpr int kMaxThreads = 1024;
constexpr int kMinPasses = 3;
// Small enough that no thread waits long for the last one, large enough that claiming it costs nothing.
constexpr size_t kChunk = size_t(1) << 20;
constexpr int kTasksPerThread = 32;
constexpr double kTaskSeconds = 5e-4;

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

void check(int n_threads, double seconds) {
  if (n_threads < 1 || n_threads > kMaxThreads)
    throw ArgumentError("[limits] threads, expected 1 to " + std::to_string(kMaxThreads) + ", got " +
                        std::to_string(n_threads));
  if (!(seconds >= 0 && seconds <= 60))
    throw ArgumentError("[limits] seconds, expected 0 to 60, got " + std::to_string(seconds));
}

// Seconds of the fastest of the passes that fit in `seconds`, kMinPasses of them in any case. What slows a pass down
// is not the machine's limit but something else that ran.
template <class F>
double fastest(double seconds, const F& pass) {
  double best = std::numeric_limits<double>::infinity();
  const double end = now() + seconds;
  for (int i = 0; i < kMinPasses || now() < end; ++i) {
    const double start = now();
    pass();
    best = std::min(best, now() - start);
  }
  return best;
}

double fastest_reading(std::span<const std::byte> bytes, ThreadPool& pool, double seconds,
                       const cpu::LimitKernels& kernels) {
  std::atomic<uint64_t> seen{0};
  double time = std::numeric_limits<double>::infinity();
  for (const auto read : kernels.read_bytes) {
    const auto pass = [&](int i) {
      const auto chunk = bytes.subspan(size_t(i) * kChunk);
      seen.fetch_xor(read(chunk.data(), std::min(kChunk, chunk.size())), std::memory_order_relaxed);
    };
    const int n_chunks = int((bytes.size() + kChunk - 1) / kChunk);
    time = std::min(time, fastest(seconds / cpu::kReadWays, [&] { pool.run(n_chunks, pass); }));
  }
  return double(bytes.size()) / time / 1e9;
}

}  // namespace

double measure_read_bandwidth(int n_threads, size_t bytes, double seconds, const std::string& isa) {
  check(n_threads, seconds);
  if (bytes == 0) throw ArgumentError("[limits] bytes, expected at least 1, got 0");
  const cpu::LimitKernels kernels = cpu::choose_limits(isa);
  const PageBuffer buffer(bytes);
  ThreadPool pool(n_threads);
  // Written, since untouched pages are all the same page of zeros; by the threads that read, so that it lies near them.
  pool.run(int((bytes + kChunk - 1) / kChunk), [&](int i) {
    std::memset(buffer.get() + size_t(i) * kChunk, i + 1, std::min(kChunk, bytes - size_t(i) * kChunk));
  });
  return fastest_reading({buffer.get(), bytes}, pool, seconds, kernels);
}

double measure_reading(std::span<const std::byte> bytes, int n_threads, double seconds, const std::string& isa) {
  check(n_threads, seconds);
  if (bytes.empty()) throw ArgumentError("[limits] bytes, expected at least 1, got 0");
  const cpu::LimitKernels kernels = cpu::choose_limits(isa);
  ThreadPool pool(n_threads);
  return fastest_reading(bytes, pool, seconds, kernels);
}

double measure_peak_ops(int n_threads, const std::string& kind, double seconds, const std::string& isa) {
  check(n_threads, seconds);
  const cpu::PeakLoop loop = cpu::peak_loop(cpu::choose_limits(isa), kind);
  if (!loop) return 0;
  int64_t iterations = 1024;
  for (double time = 0; iterations < cpu::kMaxLimitIterations; iterations *= 2) {
    time = fastest(0, [&] { loop(iterations); });
    if (time >= kTaskSeconds) break;
  }
  ThreadPool pool(n_threads);
  std::atomic<int64_t> done{0};
  const int n_tasks = n_threads * kTasksPerThread;
  int64_t each = 0;
  const double time = fastest(seconds, [&] {
    done.store(0, std::memory_order_relaxed);
    pool.run(n_tasks, [&](int) { done.fetch_add(loop(iterations), std::memory_order_relaxed); });
    each = done.load(std::memory_order_relaxed);
  });
  return 2.0 * double(each) / time / 1e9;
}

}  // namespace gristmill

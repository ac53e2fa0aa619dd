#include "kernel_timer.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "core/error.h"
#include "core/page_buffer.h"
#include "cpu/cpu_backend.h"
#include "cpu/dispatch.h"

namespace gristmill {
namespace {

constexpr size_t kMinCalls = 3;
constexpr size_t kMaxCalls = 1 << 20;

}  // namespace

std::vector<double> time_matmul(const MatmulTiming& timing) {
  const Weight& w = timing.weight;
  const size_t bytes = size_t(w.n_rows) * size_t(w.row_bytes());
  if (bytes == 0 || timing.n < 1) throw ArgumentError("[time_matmul] a product without elements takes no time");
  if (timing.decode && timing.n > cpu::kDecodeRows)
    throw ArgumentError("[time_matmul] rows of x when decoding, expected at most " + std::to_string(cpu::kDecodeRows) +
                        ", got " + std::to_string(timing.n));
  const size_t stride = (bytes + 63) / 64 * 64;
  const size_t n_copies = std::max<size_t>(1, (timing.weight_bytes + stride - 1) / stride);
  const PageBuffer memory(n_copies * stride, timing.large_pages);
  std::vector<Weight> copies(n_copies, w);
  for (size_t i = 0; i < n_copies; ++i) {
    std::memcpy(memory.get() + i * stride, w.data, bytes);
    copies[i].data = memory.get() + i * stride;
  }
  cpu::CpuBackend backend(cpu::choose_kernels(timing.isa), timing.n_threads);
  const size_t n_x = size_t(timing.n) * size_t(w.n_cols);
  const auto x = backend.allocate(n_x);
  const auto y = backend.allocate(size_t(timing.n) * size_t(w.n_rows));
  // A linear congruence, in [-1, 1). No value stands out of its group, so what kernels do for those that do is left
  // out.
  uint32_t state = 1;
  for (size_t i = 0; i < n_x; ++i) {
    state = state * 1664525u + 1013904223u;
    x[i] = float(int32_t(state)) * 0x1p-31f;
  }
  const auto call = [&](const Weight& copy) {
    const Product product{&copy, nullptr, y.get()};
    backend.matmul({&product, 1}, x.get(), timing.n, timing.decode ? Phase::kDecode : Phase::kPrefill);
  };
  using Clock = std::chrono::steady_clock;
  const auto seconds_since = [](Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  const Clock::time_point warm_up = Clock::now();
  for (const Weight& copy : copies) {
    call(copy);
    if (seconds_since(warm_up) > timing.seconds) break;
  }
  std::vector<double> times;
  const Clock::time_point begin = Clock::now();
  for (size_t i = 0; times.size() < kMinCalls || seconds_since(begin) < timing.seconds; ++i) {
    const Clock::time_point start = Clock::now();
    call(copies[i % n_copies]);
    times.push_back(seconds_since(start));
    if (times.size() == kMaxCalls) break;
  }
  return times;
}

}  // namespace gristmill

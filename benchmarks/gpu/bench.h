// Timing and reporting: each figure is one line of JSON on standard output, with the limit it stands beside.
#pragma once

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "cuda/runtime.h"
#include "formats/registry.h"

namespace gristmill::cuda::bench {

struct Limits {
  double copy_bytes = 0, read_bytes = 0;  // a second
  double half_flops = 0, byte_ops = 0;    // a second, multiply and add counted as 2
  double gemm_flops = 0;                  // of what prefill uses: mma.sync's half_flops, or wgmma's
  const char* gemm = "mma.sync f16";
};

struct Context {
  DeviceInfo device;
  Stream stream;
  Limits limits;
};

// Median milliseconds of f(i), which launches on the stream; f runs `inner` times between two events.
template <class F>
double median_ms(Stream stream, int inner, const F& f, int repeats = 7) {
  const Event begin = make_event(), end = make_event();
  std::vector<double> times;
  int i = 0;
  for (int warm = 0; warm < 3; ++warm) f(i++);
  for (int r = 0; r < repeats; ++r) {
    record(begin, stream);
    for (int k = 0; k < inner; ++k) f(i++);
    record(end, stream);
    synchronize(end);
    times.push_back(milliseconds(begin, end) / inner);
  }
  destroy_event(begin);
  destroy_event(end);
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

// share: of the limit named; 0 where there is none.
inline void report(const std::string& part, const std::string& name, double value, const char* unit, double share = 0,
                   const char* limit = "") {
  std::printf("{\"part\": \"%s\", \"name\": \"%s\", \"value\": %.6g, \"unit\": \"%s\"", part.c_str(), name.c_str(),
              value, unit);
  if (share > 0) std::printf(", \"share\": %.4f, \"limit\": \"%s\"", share, limit);
  std::printf("}\n");
  std::fflush(stdout);
}

void measure_limits(Context& context);
void bench_kernels(const Context& context);
// One 32B-shaped model: mixes are "Q4_K_M", "Q4_0", "Q8_0", "F16".
void bench_model(const Context& context, const std::string& mix, int n_layer);

// `count` rows of a format as in a file: a few distinct ones of normal weights of spread n_cols^-1/2, over and over.
std::vector<std::byte> random_rows(const formats::FormatInfo& format, int64_t count, int64_t n_cols);

}  // namespace gristmill::cuda::bench

// What the parts of the benchmark share: sizes, limits, timing and reporting. Each figure is one line of JSON on
// standard output, with the limit it stands beside.
#pragma once

#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cuda/matrix.h"
#include "cuda/runtime.h"
#include "formats/registry.h"

namespace gristmill::cuda::bench {

// What is measured; by default QwQ-32B's shape.
struct Sizes {
  int64_t n_embd = 5120, n_ff = 27648, n_head = 40, n_head_kv = 8, head_dim = 128, n_vocab = 152064;
  int prefill = 2048;                          // tokens of a pass
  std::vector<int64_t> contexts{4096, 32768};  // positions that one sequence's attention reads
  std::vector<int> sequences{8, 32};           // that decode together,
  int64_t shared_context = 512;                // each with so many positions
  std::vector<std::string_view> formats = {};  // empty: all there are
  int repeats = 7, inner = 20;                 // timings, and launches in each
  size_t limit_bytes = size_t{2} << 30;        // read and copied for the limits of memory
  int limit_rounds = 4096, launches = 200;     // of products and of empty kernels
  bool cold = true;                            // matrices and caches are more than L2 holds
};
// So little that the emulation runs all of it: what is wrong in the benchmark shows before a GPU is there.
Sizes tiny_sizes();

struct Limits {
  double copy_bytes = 0, read_bytes = 0;  // a second
  double half_flops = 0, byte_ops = 0;    // a second, multiply and add counted as 2
  double gemm_flops = 0;                  // of what prefill uses: mma.sync's half_flops, or wgmma's
  const char* gemm = "mma.sync f16";
  double launch_ms = 0;  // from one dependent kernel of a graph to the next
};

struct Context {
  DeviceInfo device;
  Stream stream;
  Sizes sizes;
  Limits limits;

  // How many things of this size to go round in, so that none is still in L2 when its turn comes again.
  int64_t copies(int64_t bytes) const { return 1 + (sizes.cold ? 4 * device.l2_bytes / bytes : 1); }
};

inline double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Median milliseconds of f(i), which launches on the stream; f runs `inner` times between two events.
template <class F>
double median_ms(const Context& c, int inner, const F& f) {
  const Event begin = make_timer(), end = make_timer();
  std::vector<double> times;
  int i = 0;
  f(i++);  // loads the kernels
  for (int r = 0; r < c.sizes.repeats; ++r) {
    record(begin, c.stream);
    for (int k = 0; k < inner; ++k) f(i++);
    record(end, c.stream);
    synchronize(end);
    times.push_back(milliseconds(begin, end) / inner);
  }
  destroy_event(begin);
  destroy_event(end);
  return median(std::move(times));
}

// As median_ms, of n launches as a model's step makes them: one graph, so that the host's part of a launch is not what
// is measured. f(0) to f(n - 1) are captured once.
template <class F>
double graph_ms(const Context& c, int n, const F& f) {
  f(0);
  begin_capture(c.stream);
  for (int i = 0; i < n; ++i) f(i);
  const Graph graph = end_capture(c.stream);
  // Several at a time: the first one's start on an idle stream is the host's, and is spread.
  const double ms = median_ms(c, 4, [&](int) { launch_graph(graph, c.stream); }) / n;
  destroy_graph(graph);
  return ms;
}
// Launches of a graph that goes round in `copies` things.
inline int rounds(const Context& c, int64_t copies) { return std::max(c.sizes.inner, int(copies)); }

// share: of the limit named; 0 where there is none.
void report(const std::string& part, const std::string& name, double value, const char* unit, double share = 0,
            const char* limit = "");
// A kernel that moves bytes, in GB/s beside a bandwidth.
void report_bytes(const std::string& part, const std::string& name, double bytes, double ms, double limit,
                  const char* limit_name);

void measure_limits(Context& context);
void bench_products(const Context& context);   // matrices of every format: decoding, prefill, repacking
void bench_attention(const Context& context);  // decoding and prefill
void bench_rows(const Context& context);       // what works on rows of activations and logits
// A model of this shape: mixes are "Q4_K_M", "Q4_0", "Q8_0", "F16".
void bench_model(const Context& context, const std::string& mix, int n_layer);
// Four layers of it and its output against the CPU back end.
void compare_with_cpu(const Context& context, const std::string& mix);

// `count` rows of a format as in a file: kDistinctRows ones of normal weights of spread n_cols^-1/2, over and over.
constexpr int64_t kDistinctRows = 23;  // has no divisor in common with the rows of a tile: tiles are as many
std::vector<std::byte> random_rows(const formats::FormatInfo& format, int64_t count, int64_t n_cols);
// A matrix of those on the device.
struct DeviceMatrix {
  DevicePointer<std::byte> memory;
  Matrix matrix;
  std::shared_ptr<const std::vector<float>> values = nullptr;  // of the distinct rows

  const float* row(int64_t r) const { return values->data() + r % kDistinctRows * matrix.n_cols; }
};
DeviceMatrix random_matrix(const Context& c, const formats::FormatInfo& format, int64_t n_rows, int64_t n_cols);
DeviceMatrix copy_of(const Context& c, const DeviceMatrix& other);
// Floats on the device, normal.
DevicePointer<float> random_floats(const Context& c, size_t n);

}  // namespace gristmill::cuda::bench

// What works on rows of activations and logits. With one row these are over before memory's bandwidth counts: they
// stand beside the time from one empty kernel of a graph to the next.
#include "bench.h"
#include "cuda/elementwise.h"
#include "cuda/matmul.h"
#include "cuda/sampling.h"

namespace gristmill::cuda::bench {
namespace {

void report_one(const Context& c, const std::string& name, double ms) {
  report("rows", name, 1e3 * ms, "us", c.limits.launch_ms / ms, "an empty kernel");
}
void report_many(const Context& c, const std::string& name, double bytes, double ms) {
  report_bytes("rows", name, bytes, ms, c.limits.copy_bytes, "copy");
}

// The norm of x + y for the product that follows: quantized where it decodes, halves where it is a prefill.
void bench_norm(const Context& c, int n, bool decode) {
  const int64_t n_cols = c.sizes.n_embd, padded = padded_columns(n_cols);
  const size_t size = size_t(n * n_cols);
  const auto x = random_floats(c, size), y = random_floats(c, size), weight = random_floats(c, size_t(n_cols));
  const auto out = make_device<float>(size), scales = make_device<float>(size_t(n * padded / 16));
  const auto planes = make_device<int8_t>(size_t(2 * n * padded));
  const auto sums = make_device<int32_t>(size_t(n * padded / 16));
  const auto halves = make_device<uint16_t>(size_t(prefill_rows(c.device, n) * padded));
  RowOutputs rows;
  rows.floats = out.get();
  if (decode) {
    rows.quantized = {planes.get(), scales.get(), sums.get(), padded};
  } else {
    rows.halves = {halves.get(), scales.get(), padded, prefill_order(c.device)};
  }
  const double ms = graph_ms(c, c.sizes.inner,
                             [&](int) { rms_norm(x.get(), y.get(), weight.get(), 1e-5f, n, n_cols, rows, c.stream); });
  const std::string name =
      std::string("add, norm, ") + (decode ? "quantization" : "halves") + ", " + std::to_string(n) + " rows";
  // x and y read; x, the norm and its other form written.
  if (decode) return report_one(c, name, ms);
  report_many(c, name, double(size) * (4 * sizeof(float) + sizeof(uint16_t)), ms);
}

void bench_swiglu(const Context& c, int n) {
  const int64_t n_cols = c.sizes.n_ff, padded = padded_columns(n_cols);
  const size_t size = size_t(n * n_cols);
  const auto gate = random_floats(c, size), up = random_floats(c, size);
  const auto halves = make_device<uint16_t>(size_t(prefill_rows(c.device, n) * padded));
  const auto scales = make_device<float>(size_t(n));
  RowOutputs rows;
  rows.floats = gate.get();
  rows.halves = {halves.get(), scales.get(), padded, prefill_order(c.device)};
  const double ms = graph_ms(c, c.sizes.inner, [&](int) { swiglu(gate.get(), up.get(), n, n_cols, rows, c.stream); });
  report_many(c, "SwiGLU, halves, " + std::to_string(n) + " rows",
              double(size) * (3 * sizeof(float) + sizeof(uint16_t)), ms);
}

void bench_embed(const Context& c, const char* format_name, int n) {
  const formats::FormatInfo& format = *formats::find_format(std::string_view(format_name));
  const int64_t n_cols = c.sizes.n_embd;
  const DeviceMatrix table = random_matrix(c, format, c.sizes.n_vocab, n_cols);
  std::vector<int32_t> ids;
  for (int i = 0; i < n; ++i) ids.push_back(int32_t(int64_t(i) * 7919 % c.sizes.n_vocab));
  const auto rows = make_device<int32_t>(ids.size());
  copy_to_device(rows.get(), ids.data(), ids.size() * sizeof(int32_t), c.stream);
  const auto out = make_device<float>(size_t(n * n_cols));
  const double ms =
      graph_ms(c, c.sizes.inner, [&](int) { dequantize_rows(table.matrix, rows.get(), n, out.get(), c.stream); });
  const std::string name = std::string("embed, ") + format_name + ", " + std::to_string(n) + " rows";
  if (n == 1) return report_one(c, name, ms);
  const double row_bytes = double(n_cols / format.block_size * format.type_size);
  report_many(c, name, n * (row_bytes + double(n_cols) * sizeof(float)), ms);
}

void bench_top(const Context& c, int n, int k) {
  const int64_t n_vocab = c.sizes.n_vocab;
  const auto logits = random_floats(c, size_t(n * n_vocab));
  const auto ids = make_device<int32_t>(size_t(n * k)), finite = make_device<int32_t>(size_t(n));
  const auto values = make_device<float>(size_t(n * k)), sums = make_device<float>(size_t(n));
  const auto space = make_device<std::byte>(size_t(top_candidates_workspace(n, n_vocab, k)));
  const double ms = graph_ms(c, c.sizes.inner, [&](int) {
    top_candidates(logits.get(), n, n_vocab, n_vocab, k, ids.get(), values.get(), sums.get(), finite.get(), space.get(),
                   c.stream);
  });
  report_one(c, "largest " + std::to_string(k) + " of " + std::to_string(n) + " rows of logits", ms);
}

}  // namespace

void bench_rows(const Context& c) {
  bench_norm(c, 1, true);
  bench_norm(c, c.sizes.sequences.back(), true);
  bench_norm(c, c.sizes.prefill, false);
  bench_swiglu(c, c.sizes.prefill);
  for (const char* format : {"Q4_K", "F16"}) {
    bench_embed(c, format, 1);
    bench_embed(c, format, c.sizes.prefill);
  }
  for (const int k : {64, 256}) {
    bench_top(c, 1, k);
    bench_top(c, c.sizes.sequences.back(), k);
  }
}

}  // namespace gristmill::cuda::bench

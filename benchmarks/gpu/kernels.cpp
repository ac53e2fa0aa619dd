// Each kernel alone, at the shapes of QwQ-32B, beside the limit that binds it.
#include <cmath>
#include <cstring>
#include <random>

#include "bench.h"
#include "cuda/attention.h"
#include "cuda/elementwise.h"
#include "cuda/matmul.h"
#include "peaks.h"

namespace gristmill::cuda::bench {

std::vector<std::byte> random_rows(const formats::FormatInfo& format, int64_t count, int64_t n_cols) {
  constexpr int64_t kDistinct = 16;
  const int64_t row_bytes = n_cols / format.block_size * format.type_size;
  std::vector<std::byte> bytes(static_cast<size_t>(count * row_bytes));
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0.0f, 1.0f / std::sqrt(float(n_cols)));
  std::vector<float> row(static_cast<size_t>(n_cols));
  for (int64_t r = 0; r < count; ++r) {
    std::byte* to = bytes.data() + r * row_bytes;
    if (r < kDistinct) {
      for (float& v : row) v = normal(random);
      format.from_float(row.data(), nullptr, to, n_cols);
    } else {
      std::memcpy(to, to - kDistinct * row_bytes, size_t(row_bytes));
    }
  }
  return bytes;
}

void measure_limits(Context& c) {
  constexpr size_t kBytes = size_t{2} << 30;
  const auto from = make_device<std::byte>(kBytes), to = make_device<std::byte>(kBytes);
  const auto sink = make_device<float>(size_t(c.device.multiprocessors) * 512);
  fill(from.get(), 0x5a, kBytes, c.stream);
  double ms = median_ms(c.stream, 2, [&](int) { copy_on_device(to.get(), from.get(), kBytes, c.stream); });
  c.limits.copy_bytes = 2e3 * double(kBytes) / ms;
  ms = median_ms(c.stream, 2, [&](int) {
    read_memory(from.get(), kBytes, reinterpret_cast<unsigned*>(sink.get()), c.device, c.stream);
  });
  c.limits.read_bytes = 1e3 * double(kBytes) / ms;
  double operations = 0;
  ms = median_ms(c.stream, 2, [&](int) { operations = multiply_halves(sink.get(), 4096, c.device, c.stream); });
  c.limits.half_flops = 1e3 * operations / ms;
  ms = median_ms(c.stream, 2, [&](int) { operations = multiply_bytes(sink.get(), 4096, c.device, c.stream); });
  c.limits.byte_ops = 1e3 * operations / ms;
  c.limits.gemm_flops = c.limits.half_flops;
  if (prefill_order(c.device) == HalfOrder::kPanels) {
    ms = median_ms(c.stream, 2, [&](int) { operations = multiply_wgmma(sink.get(), c.device, c.stream); });
    c.limits.gemm_flops = 1e3 * operations / ms;
    c.limits.gemm = "wgmma f16";
  }
  report("limits", "device copy, read and written", c.limits.copy_bytes / 1e9, "GB/s");
  report("limits", "read", c.limits.read_bytes / 1e9, "GB/s");
  report("limits", "mma.sync f16, f32 sums", c.limits.half_flops / 1e12, "TFLOP/s");
  if (c.limits.gemm_flops != c.limits.half_flops)
    report("limits", "wgmma f16, f32 sums", c.limits.gemm_flops / 1e12, "TFLOP/s");
  report("limits", "mma.sync int8", c.limits.byte_ops / 1e12, "TOP/s");
  report("limits", "launch", 1e3 * median_ms(c.stream, 200, [&](int) { do_nothing(false, c.stream); }), "us");
  report("limits", "dependent launch", 1e3 * median_ms(c.stream, 200, [&](int) { do_nothing(true, c.stream); }), "us");
  begin_capture(c.stream);
  for (int i = 0; i < 200; ++i) do_nothing(true, c.stream);
  const Graph graph = end_capture(c.stream);
  report("limits", "dependent launch in a graph",
         1e3 * median_ms(c.stream, 1, [&](int) { launch_graph(graph, c.stream); }) / 200, "us");
  destroy_graph(graph);
}

namespace {

struct Shape {
  const char* name;
  std::vector<int64_t> n_rows;
  int64_t n_cols;
};
const Shape kShapes[] = {{"qkv", {5120, 1024, 1024}, 5120},
                         {"attention output", {5120}, 5120},
                         {"gate and up", {27648, 27648}, 5120},
                         {"down", {5120}, 27648},
                         {"head", {152064}, 5120}};

// Copies of a shape's matrices, more than any cache holds.
struct Matrices {
  std::vector<DevicePointer<std::byte>> memory;
  std::vector<std::vector<Matrix>> sets;
  int64_t bytes = 0;  // of one set

  Matrices(const Context& c, const formats::FormatInfo& format, const Shape& shape) {
    for (const int64_t rows : shape.n_rows) bytes += matrix_bytes(format.id, rows, shape.n_cols);
    const int64_t copies = 1 + 4 * c.device.l2_bytes / bytes;
    for (int64_t i = 0; i < copies; ++i) {
      sets.emplace_back();
      for (const int64_t rows : shape.n_rows) {
        const size_t size = size_t(matrix_bytes(format.id, rows, shape.n_cols));
        memory.push_back(make_device<std::byte>(size));
        const Matrix m{format.id, memory.back().get(), rows, shape.n_cols};
        if (i == 0) {
          const std::vector<std::byte> host = random_rows(format, rows, shape.n_cols);
          const auto raw = make_device<std::byte>(host.size());
          copy_to_device(raw.get(), host.data(), host.size(), c.stream);
          repack(m, 0, raw.get(), rows, c.stream);
          synchronize(c.stream);
        } else {
          copy_on_device(memory.back().get(), sets[0][sets.back().size()].tiles, size, c.stream);
        }
        sets.back().push_back(m);
      }
    }
  }
};

struct Activations {
  int64_t padded;
  DevicePointer<float> x, scales, half_scales;
  DevicePointer<int8_t> planes;
  DevicePointer<int32_t> sums;
  DevicePointer<uint16_t> halves;
  QuantizedRows quantized;
  HalfRows half_rows;

  Activations(const Context& c, int n, int64_t n_cols)
      : padded(padded_columns(n_cols)),
        x(make_device<float>(size_t(n * n_cols))),
        scales(make_device<float>(size_t(n * padded / 32))),
        half_scales(make_device<float>(size_t(n))),
        planes(make_device<int8_t>(size_t(2 * n * padded))),
        sums(make_device<int32_t>(size_t(n * padded / 16))),
        halves(make_device<uint16_t>(size_t(prefill_rows(c.device, n) * padded))),
        quantized{planes.get(), scales.get(), sums.get(), padded} {
    half_rows.values = halves.get();
    half_rows.scales = half_scales.get();
    half_rows.padded = padded;
    half_rows.order = prefill_order(c.device);
    std::vector<float> host(size_t(n * n_cols));
    std::mt19937 random(2);
    std::normal_distribution<float> normal;
    for (float& v : host) v = normal(random);
    copy_to_device(x.get(), host.data(), host.size() * sizeof(float), c.stream);
    RowOutputs out;
    out.quantized = quantized;
    out.halves = half_rows;
    convert_rows(x.get(), n, n_cols, out, c.stream);
    synchronize(c.stream);
  }
};

void bench_products(const Context& c, const formats::FormatInfo& format, const Shape& shape) {
  const Matrices matrices(c, format, shape);
  int64_t n_rows = 0;
  for (const int64_t rows : shape.n_rows) n_rows += rows;
  const auto partials = make_device<float>(size_t(decode_partials(c.device)));
  const size_t n_counters = size_t(2 * (n_rows / kTileRows + 8));
  const auto counters = make_device<unsigned>(n_counters);
  fill(counters.get(), 0, n_counters * sizeof(unsigned), c.stream);
  const auto y = make_device<float>(size_t(n_rows * 2048));
  const auto products = [&](int i, int n) {
    std::vector<DeviceProduct> all;
    float* at = y.get();
    for (const Matrix& m : matrices.sets[size_t(i) % matrices.sets.size()]) {
      all.push_back({m, nullptr, at});
      at += n * m.n_rows;
    }
    return all;
  };
  const std::string name = std::string(format.name) + " " + shape.name;
  for (const int n : {1, 4, 8, 32}) {
    const Activations x(c, n, shape.n_cols);
    const DecodeInput input{x.x.get(), x.quantized};
    const double ms = median_ms(c.stream, 20, [&](int i) {
      decode_matmul(products(i, n), input, n, {partials.get(), counters.get()}, {}, c.device, false, c.stream);
    });
    const double rate = 1e3 * double(matrices.bytes) / ms;
    report("decode", name + ", " + std::to_string(n) + " tokens", rate / 1e9, "GB/s", rate / c.limits.read_bytes,
           "read");
  }
  if (shape.n_rows.size() != 1 || n_rows > 100000) return;
  constexpr int kPrefill = 2048;
  const Activations x(c, kPrefill, shape.n_cols);
  const auto scratch = make_device<uint16_t>(size_t(prefill_scratch(c.device, shape.n_cols)));
  const double ms = median_ms(c.stream, 2, [&](int i) {
    prefill_matmul(products(i, kPrefill), x.half_rows, kPrefill, scratch.get(), c.device, c.stream);
  });
  const double rate = 2e3 * double(n_rows) * double(shape.n_cols) * kPrefill / ms;
  report("prefill", name + ", 2048 tokens", rate / 1e12, "TFLOP/s", rate / c.limits.gemm_flops, c.limits.gemm);
}

void bench_attention(const Context& c, KvType type, int64_t n_ctx) {
  constexpr int kHeads = 40, kHeadsKv = 8, kDim = 128;
  const KvLayout layout{type, type, 4, kHeadsKv, kDim, kDim, n_ctx};  // four layers: more than a cache holds
  const auto cache = make_device<std::byte>(size_t(layout.total_bytes()));
  fill(cache.get(), 0x11, size_t(layout.total_bytes()), c.stream);
  const auto q = make_device<float>(kHeads * kDim), out = make_device<float>(kHeads * kDim);
  fill(q.get(), 0, kHeads * kDim * sizeof(float), c.stream);
  const auto position = make_device<int32_t>(1), sequence = make_device<int32_t>(1);
  const auto caches = make_device<std::byte*>(1);
  const int32_t last = int32_t(n_ctx - 1), zero = 0;
  std::byte* address = cache.get();
  copy_to_device(position.get(), &last, sizeof(last), c.stream);
  copy_to_device(sequence.get(), &zero, sizeof(zero), c.stream);
  copy_to_device(caches.get(), &address, sizeof(address), c.stream);
  const auto space = make_device<std::byte>(size_t(decode_attention_workspace(layout, kHeads, 1, c.device)));
  const auto counters = make_device<unsigned>(kHeadsKv);
  fill(counters.get(), 0, kHeadsKv * sizeof(unsigned), c.stream);
  const double ms = median_ms(c.stream, 20, [&](int i) {
    decode_attention({1, position.get(), sequence.get(), caches.get()}, layout, i % 4, q.get(), kHeads, 0.09f,
                     out.get(), {}, space.get(), counters.get(), c.device, c.stream);
  });
  const double rate = 1e3 * double(layout.head_bytes() * kHeadsKv) / ms;
  report("attention", std::string(type == KvType::F16 ? "f16" : "q8_0") + " cache, " + std::to_string(n_ctx),
         rate / 1e9, "GB/s", rate / c.limits.copy_bytes, "copy");
}

}  // namespace

void bench_kernels(const Context& c) {
  for (const char* name : {"Q4_K", "Q6_K", "Q4_0", "Q8_0", "F16", "Q5_K", "Q3_K", "Q2_K"})
    for (const Shape& shape : kShapes) bench_products(c, *formats::find_format(std::string_view(name)), shape);
  for (const KvType type : {KvType::F16, KvType::Q8_0})
    for (const int64_t n_ctx : {4096, 32768}) bench_attention(c, type, n_ctx);
}

}  // namespace gristmill::cuda::bench

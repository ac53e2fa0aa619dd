// The kernels that read weights, in every format: beside the bandwidth of memory or the tensor peak, whichever binds.
#include <map>
#include <memory>
#include <span>
#include <utility>

#include "bench.h"
#include "cuda/elementwise.h"
#include "cuda/matmul.h"
#include "verify.h"

namespace gristmill::cuda::bench {
namespace {

struct Shape {
  const char* name;
  std::vector<int64_t> n_rows;
  int64_t n_cols;
};

// Copies of a shape's matrices, more than any cache holds.
struct Matrices {
  std::vector<std::vector<DeviceMatrix>> sets;
  int64_t bytes = 0;  // of one set

  Matrices(const Context& c, const formats::FormatInfo& format, const Shape& shape) {
    for (const int64_t rows : shape.n_rows) bytes += matrix_bytes(format.id, rows, shape.n_cols);
    for (int64_t i = 0; i < c.copies(bytes); ++i) {
      sets.emplace_back();
      for (size_t j = 0; j < shape.n_rows.size(); ++j)
        sets.back().push_back(i == 0 ? random_matrix(c, format, shape.n_rows[j], shape.n_cols)
                                     : copy_of(c, sets[0][j]));
    }
  }
  // The results of products, y poisoned before they ran.
  void verify(const Context& c, const std::string& name, const float* x, int n, const float* y, Arithmetic a) const {
    for (const DeviceMatrix& m : sets.front()) {
      verify_product(c, name, m, x, n, y, a);
      y += n * m.matrix.n_rows;
    }
  }
  std::vector<DeviceProduct> products(int i, int n, float* y) const {
    std::vector<DeviceProduct> all;
    for (const DeviceMatrix& m : sets[size_t(i) % sets.size()]) {
      all.push_back({m.matrix, nullptr, y});
      y += n * m.matrix.n_rows;
    }
    return all;
  }
};

// Rows of activations in the forms that products read.
struct Activations {
  int64_t padded;
  DevicePointer<float> x, scales, half_scales;
  DevicePointer<int8_t> planes;
  DevicePointer<int32_t> sums;
  DevicePointer<uint16_t> halves;
  RowOutputs forms;

  Activations(const Context& c, int n, int64_t n_cols)
      : padded(padded_columns(n_cols)),
        x(random_floats(c, size_t(n * n_cols))),
        scales(make_device<float>(size_t(n * padded / 16))),
        half_scales(make_device<float>(size_t(n))),
        planes(make_device<int8_t>(size_t(2 * n * padded))),
        sums(make_device<int32_t>(size_t(n * padded / 16))),
        halves(make_device<uint16_t>(size_t(prefill_rows(c.device, n) * padded))) {
    forms.quantized = {planes.get(), scales.get(), sums.get(), padded};
    forms.halves.values = halves.get();
    forms.halves.scales = half_scales.get();
    forms.halves.padded = padded;
    forms.halves.order = prefill_order(c.device);
    convert_rows(x.get(), n, n_cols, forms, c.stream);
    synchronize(c.stream);
  }
};

// Drawn once for all formats: the host takes longer to draw them than a GPU to multiply.
class AllActivations {
 public:
  explicit AllActivations(const Context& c) : c_(c) {}
  const Activations& of(int n, int64_t n_cols) {
    auto& entry = made_[{n, n_cols}];
    if (!entry) entry = std::make_unique<Activations>(c_, n, n_cols);
    return *entry;
  }

 private:
  const Context& c_;
  std::map<std::pair<int, int64_t>, std::unique_ptr<Activations>> made_;
};

int64_t all_rows(const Shape& shape) {
  int64_t n_rows = 0;
  for (const int64_t rows : shape.n_rows) n_rows += rows;
  return n_rows;
}

void bench_decode(const Context& c, const formats::FormatInfo& format, const Shape& shape, const Matrices& matrices,
                  AllActivations& activations) {
  const int64_t n_rows = all_rows(shape);
  constexpr int kMost = 32;
  const auto y = make_device<float>(size_t(kMost * n_rows));
  const auto partials = make_device<float>(size_t(decode_partials(c.device)));
  const auto n_counters = size_t(decode_counters(matrices.products(0, 1, y.get())));
  const auto counters = make_device<unsigned>(n_counters);
  fill(counters.get(), 0, n_counters * sizeof(unsigned), c.stream);
  // Tokens, and blocks an SM: one token in both forms of the kernel.
  constexpr std::pair<int, int> kForms[] = {{1, 1}, {1, 2}, {4, 1}, {8, 1}, {kMost, 1}};
  for (const auto& [n, resident] : kForms) {
    if (resident > 1 && !fits_twice(format.id)) continue;
    const Activations& x = activations.of(n, shape.n_cols);
    const DecodeWorkspace space{partials.get(), counters.get(), resident};
    const DecodeInput input{x.x.get(), x.forms.quantized};
    const bool floats = format.kind == formats::Kind::kFloat;
    const std::string name = std::string(format.name) + " " + shape.name + ", " + std::to_string(n) + " tokens" +
                             (resident > 1 ? ", two blocks an SM" : "");
    fill(y.get(), 0xff, size_t(n * n_rows) * sizeof(float), c.stream);
    const double ms = graph_ms(c, rounds(c, int64_t(matrices.sets.size())), [&, tokens = n](int i) {
      decode_matmul(matrices.products(i, tokens, y.get()), input, tokens, space, {}, c.device, true, c.stream);
    });
    // Quantized formats multiply two int8 planes of each activation.
    const double operations = floats ? 0.0 : 2.0 * 2 * n * double(n_rows) * double(shape.n_cols);
    const double read_ms = 1e3 * double(matrices.bytes) / c.limits.read_bytes;
    const double multiply_ms = 1e3 * operations / c.limits.byte_ops;
    report("decode", name, double(matrices.bytes) / ms / 1e6, "GB/s", std::max(read_ms, multiply_ms) / ms,
           read_ms >= multiply_ms ? "read" : "mma.sync int8");
    matrices.verify(c, "decode " + name, x.x.get(), n, y.get(), floats ? Arithmetic::kFloats : Arithmetic::kPlanes);
  }
}

void bench_prefill(const Context& c, const formats::FormatInfo& format, const Shape& shape, const Matrices& matrices,
                   AllActivations& activations) {
  const int n = c.sizes.prefill;
  const int64_t n_rows = all_rows(shape), first_rows = shape.n_rows.front();
  const auto y = make_device<float>(size_t(n * n_rows));
  const Activations& x = activations.of(n, shape.n_cols);
  const auto scratch = make_device<uint16_t>(size_t(prefill_scratch(c.device, shape.n_cols)));
  const std::string name = std::string(format.name) + " " + shape.name;
  fill(y.get(), 0xff, size_t(n * n_rows) * sizeof(float), c.stream);
  double ms = median_ms(c, 2, [&](int i) {
    prefill_matmul(matrices.products(i, n, y.get()), x.forms.halves, n, scratch.get(), c.device, c.stream);
  });
  const double rate = 2e3 * double(n_rows) * double(shape.n_cols) * n / ms;
  report("prefill", name + ", " + std::to_string(n) + " tokens", rate / 1e12, "TFLOP/s", rate / c.limits.gemm_flops,
         c.limits.gemm);
  matrices.verify(c, "prefill " + name, x.x.get(), n, y.get(), Arithmetic::kHalves);
  // The part of it that makes halves, as many rows at once as the scratch memory holds.
  const int64_t padded = padded_columns(shape.n_cols);
  const int tiles = int(
      std::min(prefill_scratch(c.device, shape.n_cols) / padded, (first_rows + kTileRows - 1) / kTileRows * kTileRows) /
      kTileRows);
  ms = median_ms(c, c.sizes.inner, [&](int i) {
    dequantize_halves(matrices.sets[size_t(i) % matrices.sets.size()].front().matrix, 0, tiles, x.forms.halves.order,
                      scratch.get(), c.stream);
  });
  const double per_row = double(padded / kTileColumns * tile_bytes(format.id)) / kTileRows + 2.0 * double(padded);
  report_bytes("dequantize", name, per_row * tiles * kTileRows, ms, c.limits.copy_bytes, "copy");
}

// From the file's blocks to tiles, on the device: once for every weight that is loaded.
void bench_repack(const Context& c, const formats::FormatInfo& format, const Shape& shape, const Matrix& matrix) {
  const int64_t n_rows = shape.n_rows.front();
  const size_t bytes = size_t(shape.n_cols / format.block_size * format.type_size * n_rows);
  const auto raw = make_device<std::byte>(bytes);
  fill(raw.get(), 0, bytes, c.stream);
  const DeviceMatrix to = copy_of(c, {nullptr, matrix});
  const double ms = median_ms(c, c.sizes.inner, [&](int) { repack(to.matrix, 0, raw.get(), n_rows, c.stream); });
  report_bytes("repack", std::string(format.name) + " " + shape.name, double(2 * bytes), ms, c.limits.copy_bytes,
               "copy");
}

}  // namespace

void bench_products(const Context& c) {
  const Sizes& s = c.sizes;
  const int64_t q = s.n_head * s.head_dim, kv = s.n_head_kv * s.head_dim;
  const std::vector<Shape> shapes = {{"qkv", {q, kv, kv}, s.n_embd},
                                     {"attention output", {s.n_embd}, q},
                                     {"gate and up", {s.n_ff, s.n_ff}, s.n_embd},
                                     {"down", {s.n_embd}, s.n_ff},
                                     {"head", {s.n_vocab}, s.n_embd}};
  AllActivations activations(c);
  for (const formats::FormatInfo& format : std::span(formats::begin_formats(), formats::end_formats())) {
    if (!s.formats.empty() && std::ranges::find(s.formats, format.name) == s.formats.end()) continue;
    for (const Shape& shape : shapes) {
      const Matrices matrices(c, format, shape);
      bench_decode(c, format, shape, matrices, activations);
      const bool head = shape.n_rows.front() == s.n_vocab;
      if (!head) bench_prefill(c, format, shape, matrices, activations);
      if (!head && shape.n_cols == s.n_ff) bench_repack(c, format, shape, matrices.sets.front().front().matrix);
    }
  }
}

}  // namespace gristmill::cuda::bench

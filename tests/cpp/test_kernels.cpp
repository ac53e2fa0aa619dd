// Products of every format by every instruction set on buffers that end at forbidden pages: weights (the last row of a
// file may end where its mapping does), activations, bias and results. Values are held to dequantized weights in
// double; tests/python/test_kernels.py has the tight bounds. Formats without a fast path are held to the same.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "cpu/dispatch.h"
#include "fallback_formats.h"
#include "guarded_buffer.h"

namespace gristmill::test {
namespace {

struct Case {
  std::string name;
  const formats::FormatInfo* format;
  cpu::MatmulFunction matmul[cpu::kPasses];
  cpu::Activations activations[cpu::kPasses];
  int64_t float_ahead = 0;
};
using cpu::Pass;

// matmul and activations: [pass][format].
template <class Matmul, class Activations>
Case case_of(const std::string& name, const formats::FormatInfo& format, const Matmul& matmul, int in_matmul,
             const Activations& activations, int in_activations) {
  Case c{name, &format, {}, {}};
  for (int pass = 0; pass < cpu::kPasses; ++pass) {
    c.matmul[pass] = matmul[pass][in_matmul];
    c.activations[pass] = activations[pass][in_activations];
  }
  return c;
}

constexpr const char* kPassNames[] = {"prefill", "precise prefill", "decode", "precise decode"};

std::mt19937 random_bits(1);

void fill_normal(float* x, size_t n) {
  std::normal_distribution<float> normal;
  for (size_t i = 0; i < n; ++i) x[i] = normal(random_bits);
}

// y of one product in two tasks, rows [0, split) and [split, n_rows).
void multiply(const Case& c, Pass pass, const Weight& w, const float* x, int n, const float* bias, float* y) {
  const cpu::Activations& a = c.activations[int(pass)];
  const int64_t stride = a.bytes(w.n_cols, 1);
  Guarded<std::byte> quantized(a.quantize ? size_t(a.bytes(w.n_cols, n)) : 1);
  if (a.quantize)
    for (int tile = 0; tile * a.tokens < n; ++tile) a.quantize(x, w.n_cols, n, tile, quantized.data());
  const std::byte* input = a.quantize ? quantized.data() : reinterpret_cast<const std::byte*>(x);
  const int64_t split = w.n_rows / 3;
  for (const auto& [begin, end] : {std::pair{split, w.n_rows}, {int64_t(0), split}}) {
    c.matmul[int(pass)]({&w, begin, end, input, stride, n, bias, y, c.float_ahead});
    if (begin > 0)
      for (int t = 0; t < n; ++t)
        for (int64_t r = 0; r < begin; ++r)
          CHECK(std::isnan(y[t * w.n_rows + r]), "%s wrote row %d of no task", c.name.c_str(), int(r));
  }
}

// Holds every token_step-th token, from the last one on, to double.
void check_case(const Case& c, Pass pass, int64_t n_rows, int64_t n_cols, int n, Guarded<std::byte>::Side side,
                int token_step = 1) {
  Weight w{c.format, nullptr, n_rows, n_cols};
  const Guarded<std::byte> packed(size_t(n_rows * w.row_bytes()), side);
  w.data = packed.data();
  std::vector<float> weights(size_t(n_rows * n_cols));
  fill_normal(weights.data(), weights.size());
  c.format->from_float(weights.data(), nullptr, packed.data(), n_rows * n_cols);
  c.format->to_float(packed.data(), weights.data(), n_rows * n_cols);
  const Guarded<float> x(size_t(n * n_cols)), bias(static_cast<size_t>(n_rows)), y(size_t(n * n_rows));
  fill_normal(x.data(), x.size());
  fill_normal(bias.data(), bias.size());
  std::fill(y.begin(), y.end(), std::numeric_limits<float>::quiet_NaN());
  multiply(c, pass, w, x.data(), n, bias.data(), y.data());
  CHECK(std::ranges::all_of(y, [](float value) { return std::isfinite(value); }),
        "%s %s, %d x %d, %d tokens: no number", c.name.c_str(), kPassNames[int(pass)], int(n_rows), int(n_cols), n);
  for (int t = n - 1; t >= 0; t -= token_step) {
    const float* v = x.data() + t * n_cols;
    double peak = 0.0, activations = 0.0;
    for (int64_t k = 0; k < n_cols; ++k) {
      peak = std::max(peak, double(std::fabs(v[k])));
      activations += std::fabs(v[k]);
    }
    for (int64_t r = 0; r < n_rows; ++r) {
      double exact = bias[size_t(r)], magnitudes = 0.0, weight_peak = 0.0;
      for (int64_t k = 0; k < n_cols; ++k) {
        const double weight = weights[size_t(r * n_cols + k)];
        exact += weight * v[k];
        magnitudes += std::fabs(weight);
        weight_peak = std::max(weight_peak, std::fabs(weight));
      }
      // Twice what rounding every activation the whole way costs, for the float32 sums; where weights are rounded too,
      // twice what that costs.
      double allowed = 1e-6;
      switch (c.activations[int(pass)].bits) {
        case 8:
          allowed += magnitudes * peak / 127;
          break;
        case 14:
          allowed += (magnitudes * peak + weight_peak * activations) / 8191;
          break;
        case 15:
          allowed += magnitudes * peak / 16256;
          break;
        case 16:
          allowed += magnitudes * peak * 0x1p-14;
          break;
        default:
          allowed += magnitudes * peak * 0x1p-20;
      }
      const double error = std::fabs(y[size_t(t * n_rows + r)] - exact);
      CHECK(error <= allowed, "%s %s, %d x %d, token %d of %d, row %d: error %g of %g", c.name.c_str(),
            kPassNames[int(pass)], int(n_rows), int(n_cols), t, n, int(r), error, allowed);
    }
  }
}

// Enough rows for trios of panels and lanes that lie apart, in both of multiply()'s tasks.
constexpr int64_t kManyRows = 650;
// Enough tokens for kernels that unpack weights beside the products of the ones before.
constexpr int kManyTokens = 200;

void check_all_shapes(const Case& c) {
  for (const Pass pass : {Pass::kDecode, Pass::kPreciseDecode})
    for (const int n : {1, 5})
      check_case(c, pass, kManyRows, std::max(c.format->block_size, 64), n, Guarded<std::byte>::kEnd);
  for (const Pass pass : {Pass::kPrefill, Pass::kPrecisePrefill})
    for (const int64_t n_cols : {std::max(c.format->block_size, 64), c.format->block_size == 256 ? 512 : 288})
      check_case(c, pass, kManyRows, n_cols, 9, Guarded<std::byte>::kEnd);

  for (const Pass pass : {Pass::kPrefill, Pass::kPrecisePrefill})
    check_case(c, pass, 81, c.format->block_size == 256 ? 768 : 576, kManyTokens, Guarded<std::byte>::kEnd);

  const int block = c.format->block_size;
  for (const int64_t n_cols : {block, 3 * block, block == 256 ? 1280 : 288, block == 1 ? 37 : 2 * block})
    for (const int64_t n_rows : {1, 3, 17, 45})
      for (const auto side : {Guarded<std::byte>::kEnd, Guarded<std::byte>::kBegin}) {
        for (const Pass pass : {Pass::kDecode, Pass::kPreciseDecode})
          for (const int n : {1, 2, 3, 5, 8}) check_case(c, pass, n_rows, n_cols, n, side);
        for (const Pass pass : {Pass::kPrefill, Pass::kPrecisePrefill})
          for (const int n : {1, 9, 15}) check_case(c, pass, n_rows, n_cols, n, side);
      }
}

// Activations that no cache holds, so that pieces of them are passed over by blocks of rows, of which one of
// multiply()'s tasks has two: sums wait in memory from piece to piece.
void check_blocks(const Case& c) {
  for (const Pass pass : {Pass::kPrefill, Pass::kPrecisePrefill})
    check_case(c, pass, 1100, 1280, 410, Guarded<std::byte>::kEnd, 37);
}

template <class Format>
constexpr formats::FormatInfo unknown_info() {
  using Block = typename Format::Block;
  return {Format::kId,
          Format::kName,
          Format::kKind,
          Format::kBlockSize,
          int(sizeof(Block)),
          Format::kGroup,
          0.0f,
          [](const void* blocks, float* y, int64_t n) {
            for (int64_t i = 0; i < n / Format::kBlockSize; ++i)
              Format::to_float(static_cast<const Block*>(blocks)[i], y + i * Format::kBlockSize);
          },
          [](const float* x, const float*, void* blocks, int64_t n) {
            for (int64_t i = 0; i < n / Format::kBlockSize; ++i)
              Format::from_float(x + i * Format::kBlockSize, nullptr, static_cast<Block*>(blocks)[i]);
          },
          nullptr};
}

template <class... Format>
void check_fallbacks(const cpu::Kernels& kernels, const FallbackKernels& fallback, std::tuple<Format...>*) {
  static constexpr formats::FormatInfo infos[] = {unknown_info<Format>()...};
  const int quantized = cpu::format_index(formats::find_format(uint32_t(formats::TypeId::Q8_0)));
  for (int i = 0; i < int(sizeof...(Format)); ++i)
    check_all_shapes(case_of(std::string(kernels.name) + " fallback " + std::string(infos[i].name), infos[i],
                             fallback.matmul, i, kernels.activations, quantized));
}

void check_isa(const std::string& isa) {
  const cpu::Kernels& kernels = cpu::choose_kernels(isa);
  for (const auto* f = formats::begin_formats(); f != formats::end_formats(); ++f) {
    const int i = cpu::format_index(f);
    Case c = case_of(isa + " " + std::string(f->name), *f, kernels.matmul, i, kernels.activations, i);
    c.float_ahead = kernels.float_ahead;
    check_all_shapes(c);
    // One for each number of planes that weights and activations are made of.
    if (f->name == "Q4_0" || f->name == "F16" || f->name == "BF16") check_blocks(c);
  }
  auto* unknown = static_cast<UnknownFormats*>(nullptr);
#if defined(__x86_64__)
  if (isa == "avx2") check_fallbacks(kernels, fallback_avx2(), unknown);
  if (isa == "avx512_vnni") check_fallbacks(kernels, fallback_avx512_vnni(), unknown);
#endif
#ifdef GRISTMILL_HAS_AMX_BF16
  if (isa == "amx_bf16") check_fallbacks(kernels, fallback_amx_bf16(), unknown);
#endif
  (void)unknown;
}

}  // namespace
}  // namespace gristmill::test

int main() {
  const std::vector<std::string> supported = gristmill::cpu::supported_isas();
  for (const std::string& isa : gristmill::cpu::built_isas()) {
    if (std::ranges::find(supported, isa) == supported.end()) {
      std::printf("test_kernels: skipped %s, which this machine lacks\n", isa.c_str());
      continue;
    }
    gristmill::test::check_isa(isa);
  }
  return gristmill::test::failures("test_kernels");
}

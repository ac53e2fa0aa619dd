// Products of prefill against float64: every format's rows as halves, then the GEMM with edges in every direction, and
// that a token's bits do not change in company.
#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "blocks.h"
#include "check.h"
#include "core/half.h"
#include "cuda/elementwise.h"
#include "cuda/gemm.h"
#include "cuda/matmul.h"
#include "device_under_test.h"
#include "quantize.h"

namespace gristmill::cuda::test {
namespace {

int most_major = 9;  // GPUs before sm_90 know no wgmma, and those after have another

void check_halves(const formats::FormatInfo& format) {
  const int64_t n_cols = format.block_size == 256 ? 512 : 320;
  const HostMatrix host = make_matrix(format, 40, n_cols, 4);
  const DeviceMatrix device(host);
  const int64_t padded = padded_columns(n_cols), rows = device.matrix.row_tiles() * kTileRows;
  const auto out = make_device<uint16_t>(size_t(rows * padded));
  const HalfOrder order = HalfOrder::kRows;
  dequantize_halves(device.matrix, 0, 1, order, out.get(), nullptr);
  dequantize_halves(device.matrix, 1, int(rows / kTileRows) - 1, order, out.get() + kTileRows * padded, nullptr);
  const std::vector<uint16_t> halves = to_host(out.get(), size_t(rows * padded));
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t k = 0; k < padded; ++k) {
      const float v = r < host.n_rows && k < n_cols ? host.values[size_t(r * n_cols + k)] : 0.0f;
      const uint16_t got = halves[size_t(r * padded + k)];
      CHECK(half_to_float(got) == half_to_float(float_to_half(v)), "%s: row %d, column %d is %g, not %g",
            std::string(format.name).c_str(), int(r), int(k), double(half_to_float(got)), double(v));
    }
}

std::vector<float> multiply(const DeviceMatrix& m, const std::vector<float>& x, int n, const std::vector<float>& bias) {
  DeviceInfo device = device_info(0);
  device.major = std::min(device.major, most_major);
  const auto floats = to_device(x), device_bias = to_device(bias);
  const int64_t padded = padded_columns(m.matrix.n_cols);
  const auto values = make_device<uint16_t>(size_t(prefill_rows(device, n) * padded));
  const auto scales = make_device<float>(size_t(n));
  const HalfRows halves{values.get(), scales.get(), padded, prefill_order(device)};
  convert_rows(floats.get(), n, m.matrix.n_cols, {nullptr, {}, halves}, nullptr);
  const auto y = make_device<float>(size_t(n * m.matrix.n_rows));
  const auto scratch = make_device<uint16_t>(size_t(prefill_scratch(device, m.matrix.n_cols)));
  const DeviceProduct product{m.matrix, device_bias.get(), y.get()};
  prefill_matmul({&product, 1}, halves, n, scratch.get(), device, nullptr);
  return to_host(y.get(), size_t(n * m.matrix.n_rows));
}

void check_product(const char* name, int64_t n_rows, int64_t n_cols, int n) {
  const HostMatrix host = make_matrix(*formats::find_format(std::string_view(name)), n_rows, n_cols, 5);
  const DeviceMatrix device(host);
  std::mt19937 random{unsigned(n)};
  std::normal_distribution<float> normal;
  std::vector<float> x(size_t(n * n_cols)), bias(static_cast<size_t>(n_rows));
  // Rows of very different size: each has a scale of its own.
  for (size_t i = 0; i < x.size(); ++i) x[i] = normal(random) * std::ldexp(1.0f, int(i / size_t(n_cols)) % 40 - 20);
  for (float& v : bias) v = normal(random);
  const std::vector<float> y = multiply(device, x, n, bias);
  for (int t = 0; t < n; ++t)
    for (int64_t r = 0; r < n_rows; ++r) {
      double exact = bias[size_t(r)], products = 0.0;
      for (int64_t k = 0; k < n_cols; ++k) {
        const double p = double(host.values[size_t(r * n_cols + k)]) * x[size_t(t * n_cols + k)];
        exact += p;
        products += std::fabs(p);
      }
      // Half a unit in the last of 11 bits for each factor, the smallest halves, and float32 sums.
      const double allowed = products * (0x1p-10 + 0x1p-20) + 1e-6;
      const double error = std::fabs(y[size_t(t * n_rows + r)] - exact);
      CHECK(error <= allowed, "%s %d x %d: token %d of %d, row %d: error %g of %g", name, int(n_rows), int(n_cols), t,
            n, int(r), error, allowed);
    }
  const int t = n / 2;
  const std::vector<float> one(x.begin() + t * n_cols, x.begin() + (t + 1) * n_cols);
  const std::vector<float> alone = multiply(device, one, 1, bias);
  for (int64_t r = 0; r < n_rows; ++r)
    CHECK(alone[size_t(r)] == y[size_t(t * n_rows + r)], "%s: token %d of %d, row %d differs in company", name, t, n,
          int(r));
}

void check_waves() {
  CHECK(whole_waves(9216, 27648, 2048, 132) == 33 * kGemmRows, "33 x 16 blocks are four waves of 132");
  CHECK(whole_waves(9216, 100, 2048, 132) == kGemmRows, "a small matrix is one piece");
}

}  // namespace
}  // namespace gristmill::cuda::test

int main() {
  using namespace gristmill;
  cuda::emulation::set_seed(3);
  cuda::test::most_major = 8;
  for (const formats::FormatInfo* f = formats::begin_formats(); f != formats::end_formats(); ++f)
    cuda::test::check_halves(*f);
  cuda::test::check_product("Q4_K", 300, 512, 5);
  cuda::emulation::set_seed(4);
  cuda::test::check_product("F16", 40, 301, 150);
  cuda::test::check_product("Q8_0", 130, 320, 129);
  // By wgmma, from panels.
  cuda::test::most_major = 9;
  for (const uint64_t seed : {5, 6}) {
    cuda::emulation::set_seed(seed);
    cuda::test::check_product("Q6_K", 300, 512, 5);
    if (seed > 5) continue;
    cuda::test::check_product("F16", 41, 301, 150);
    cuda::test::check_product("BF16", 20, 64, 3);
    cuda::test::check_product("F32", 270, 64, 3);
    // Twenty steps: each of the four stages is filled five times, so its barriers' parity comes round twice.
    cuda::test::check_product("Q8_0", 24, 1280, 5);
  }
  cuda::test::check_waves();
  return test::failures("test_matmul_prefill");
}

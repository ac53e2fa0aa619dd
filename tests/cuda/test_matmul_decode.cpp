// Decode products of every format in the registry against float64, for every number of tokens, on devices of several
// sizes with and without bulk copies; and that a token's bits do not change in company.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "blocks.h"
#include "check.h"
#include "cuda/matmul.h"
#include "device_under_test.h"
#include "quantize.h"
#include "told_device.h"

namespace gristmill::cuda::test {
namespace {

struct Case {
  const formats::FormatInfo* format;
  std::vector<int64_t> n_rows;  // of each product
  int64_t n_cols;
};

int resident = kDecodeResident;

std::vector<float> multiply(const std::vector<DeviceMatrix>& matrices, const std::vector<float>& x, int n,
                            int64_t n_cols, const std::vector<float>& bias) {
  const DeviceInfo device = told_device();
  const auto floats = to_device(x);
  const DeviceQuantized quantized(quantize(x, n, n_cols));
  const auto device_bias = to_device(bias);
  int64_t n_results = 0;
  for (const DeviceMatrix& m : matrices) n_results += n * m.matrix.n_rows;
  const auto y = make_device<float>(size_t(n_results));
  const auto partials = make_device<float>(size_t(decode_partials(device)));
  std::vector<DeviceProduct> products;
  float* at = y.get();
  for (size_t i = 0; i < matrices.size(); ++i) {
    products.push_back({matrices[i].matrix, i % 2 == 0 ? device_bias.get() : nullptr, at});
    at += n * matrices[i].matrix.n_rows;
  }
  const auto counters = to_device(std::vector<unsigned>(size_t(decode_counters(products)), 0u));
  const DecodeWorkspace space{partials.get(), counters.get(), resident};
  decode_matmul(products, {floats.get(), quantized.rows}, n, space, {}, device, true, nullptr);
  for (const unsigned c : to_host(counters.get(), size_t(decode_counters(products))))
    CHECK(c == 0, "a counter was left at %u", c);
  return to_host(y.get(), size_t(n_results));
}

void check_case(const Case& c, int n) {
  const std::string name(c.format->name);
  std::mt19937 random(unsigned(n) + 5);
  std::normal_distribution<float> normal;
  std::vector<float> x(size_t(n * c.n_cols)), bias(size_t(*std::max_element(c.n_rows.begin(), c.n_rows.end())));
  for (float& v : x) v = normal(random);
  for (float& v : bias) v = normal(random);
  std::vector<HostMatrix> host;
  std::vector<DeviceMatrix> device;
  for (const int64_t rows : c.n_rows) {
    host.push_back(make_matrix(*c.format, rows, c.n_cols, unsigned(rows)));
    device.emplace_back(host.back());
  }
  const std::vector<float> y = multiply(device, x, n, c.n_cols, bias);
  size_t at = 0;
  for (size_t m = 0; m < host.size(); ++m)
    for (int t = 0; t < n; ++t)
      for (int64_t r = 0; r < c.n_rows[m]; ++r) {
        double exact = m % 2 == 0 ? bias[size_t(r)] : 0.0, magnitudes = 0.0, peak = 0.0, products = 0.0;
        for (int64_t k = 0; k < c.n_cols; ++k) {
          const double w = host[m].values[size_t(r * c.n_cols + k)], v = x[size_t(t * c.n_cols + k)];
          exact += w * v;
          magnitudes += std::fabs(w);
          products += std::fabs(w * v);
          peak = std::max(peak, std::fabs(v));
        }
        // Half a step of 16256 for each activation where they are quantized, and float32 sums.
        const double allowed = (c.format->kind == formats::Kind::kAffine ? magnitudes * peak / 16256 / 2 : 0.0) +
                               products * 0x1p-22 + 1e-6;
        const double error = std::fabs(y[at++] - exact);
        CHECK(error <= allowed, "%s, product %zu, %d x %d, token %d of %d, row %d: error %g of %g", name.c_str(), m,
              int(c.n_rows[m]), int(c.n_cols), t, n, int(r), error, allowed);
      }
  if (c.n_rows.size() > 1) return;
  // Each token alone.
  for (int t = 0; t < n; ++t) {
    const std::vector<float> one(x.begin() + t * c.n_cols, x.begin() + (t + 1) * c.n_cols);
    const std::vector<float> alone = multiply(device, one, 1, c.n_cols, bias);
    for (size_t r = 0; r < alone.size(); ++r)
      CHECK(alone[r] == y[size_t(t) * alone.size() + r], "%s: token %d of %d, row %zu is %a alone, %a in company",
            name.c_str(), t, n, r, double(alone[r]), double(y[size_t(t) * alone.size() + r]));
  }
}

void check_not_finite(const formats::FormatInfo& format) {
  const HostMatrix host = make_matrix(format, 16, 512, 3);
  std::vector<DeviceMatrix> device;
  device.emplace_back(host);
  std::vector<float> x(2 * 512, 1.0f);
  x[512 + 77] = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> y = multiply(device, x, 2, 512, std::vector<float>(16));
  for (int r = 0; r < 16; ++r)
    CHECK(std::isfinite(y[size_t(r)]) && std::isnan(y[size_t(16 + r)]), "%s: NaN is lost or spreads",
          std::string(format.name).c_str());
}

void check_all(bool bulk, int multiprocessors) {
  emulation::device_traits().major = bulk ? 9 : 8;
  told_multiprocessors = multiprocessors;
  for (const formats::FormatInfo* f = formats::begin_formats(); f != formats::end_formats(); ++f) {
    const int64_t narrow = f->block_size == 256 ? 512 : f->block_size == 32 ? 320 : 301;
    check_case({f, {40}, 768}, bulk ? 3 : 8);
    check_case({f, {40}, narrow}, bulk ? 11 : 1);
    if (multiprocessors == 3) check_case({f, {24}, narrow}, 37);
    check_case({f, {16, 53, 32, 5, 16}, narrow}, bulk ? 5 : 2);
    check_not_finite(*f);
  }
}

// So many tiles that every warp fills its places in shared memory again and again.
void check_long_streams(bool bulk) {
  emulation::device_traits().major = bulk ? 9 : 8;
  told_multiprocessors = 1;
  int n_formats = 0;
  for (const formats::FormatInfo* f = formats::begin_formats(); f != formats::end_formats(); ++f) {
    using formats::TypeId;
    if (f->id != TypeId::F32 && f->id != TypeId::F16 && f->id != TypeId::Q4_0 && f->id != TypeId::Q6_K) continue;
    ++n_formats;
    check_case({f, {600}, 768}, 1);
    check_case({f, {300, 300}, 768}, 6);
    if (f->id == TypeId::Q4_0 || f->id == TypeId::Q6_K) check_case({f, {300}, 768}, 20);
    // Rows in seven blocks each.
    told_multiprocessors = 7;
    check_case({f, {40}, 2560}, 2);
    check_case({f, {40}, 2560}, 12);
    told_multiprocessors = 1;
  }
  CHECK(n_formats == 4, "%d formats", n_formats);
}

// The form with two blocks an SM: its own kernel for one token, for others as many shares.
void check_two_blocks() {
  emulation::device_traits().major = 9;
  told_multiprocessors = 2;
  resident = 2;
  for (const formats::FormatInfo* f = formats::begin_formats(); f != formats::end_formats(); ++f) {
    if (f->kind != formats::Kind::kAffine) continue;
    check_case({f, {200}, 768}, 1);
    check_case({f, {40}, 512}, 3);
    check_case({f, {40}, 512}, 9);
  }
  resident = kDecodeResident;
}

}  // namespace
}  // namespace gristmill::cuda::test

int main() {
  using namespace gristmill;
  int seed = 0;
  for (const int multiprocessors : {1, 3, 7}) {
    cuda::emulation::set_seed(uint64_t(++seed));
    cuda::test::check_all(seed % 2 == 0, multiprocessors);
  }
  for (const bool bulk : {false, true}) {
    cuda::emulation::set_seed(uint64_t(++seed));
    cuda::test::check_long_streams(bulk);
  }
  cuda::test::check_two_blocks();
  return test::failures("test_matmul_decode");
}

// The row operations against float64; quantized rows against the CPU's own scale, code for code.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "core/half.h"
#include "cpu/generic/activation_scale.h"
#include "cuda/elementwise.h"
#include "cuda/runtime.h"
#include "device_under_test.h"
#include "quantize.h"

namespace gristmill::cuda::test {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::mt19937 random_bits(7);

std::vector<float> normals(size_t n, float spread = 1.0f) {
  std::normal_distribution<float> normal(0.0f, spread);
  std::vector<float> v(n);
  for (float& x : v) x = normal(random_bits);
  return v;
}

// Device memory of the exact size, so that AddressSanitizer sees what lies beyond; read once, after the kernels.
template <class T>
struct Buffer {
  DevicePointer<T> memory;
  size_t n;
  mutable std::vector<T> read;

  explicit Buffer(size_t count) : memory(make_device<T>(count)), n(count) {}
  explicit Buffer(const std::vector<T>& v) : memory(to_device(v)), n(v.size()) {}
  T* get() const { return memory.get(); }
  const T* host() const {
    if (read.empty()) read = to_host(get(), n);
    return read.data();
  }
  const T& operator[](size_t i) const { return host()[i]; }
};

struct Outputs {
  int64_t padded;
  Buffer<float> floats, scales, half_scales;
  Buffer<int8_t> planes;
  Buffer<int32_t> sums;
  Buffer<uint16_t> halves;
  RowOutputs rows;

  Outputs(int n, int64_t n_cols, bool with_floats, bool with_planes, bool with_halves)
      : padded(padded_columns(n_cols)),
        floats(size_t(n * n_cols)),
        scales(size_t(n * padded / 16)),
        half_scales(static_cast<size_t>(n)),
        planes(size_t(2 * n * padded)),
        sums(size_t(n * padded / 16)),
        halves(size_t(n * padded)) {
    if (with_floats) rows.floats = floats.get();
    if (with_planes) rows.quantized = {planes.get(), scales.get(), sums.get(), padded};
    if (with_halves) rows.halves = {halves.get(), half_scales.get(), padded};
  }
};

bool same(float a, float b) { return a == b || (std::isnan(a) && std::isnan(b)); }

// Planes and halves of one row against its floats, bit for bit.
void check_forms(const Outputs& o, int t, const float* x, int64_t n_cols, const std::string& name) {
  const auto value = [&](int64_t i) { return i < n_cols ? x[i] : 0.0f; };
  if (o.rows.quantized.planes) {
    const int8_t *hi = o.planes.host() + 2 * t * o.padded, *lo = hi + o.padded;
    for (int64_t i = 0; i < o.padded; i += 32) {
      float peak = 0.0f;
      for (int j = 0; j < 32; ++j)
        if (!(std::fabs(value(i + j)) <= peak)) peak = std::isnan(peak) ? peak : std::fabs(value(i + j));
      const cpu::ActivationScale s = cpu::activation_scale(peak);
      const size_t at_scale = size_t(t * o.padded + i) / 16;
      CHECK(same(o.scales[at_scale], s.scale), "%s: row %d, scale of %d is %g, not %g", name.c_str(), t, int(i),
            double(o.scales[at_scale]), double(s.scale));
      int sums[2] = {};
      for (int j = 0; j < 32; ++j) {
        const int q = s.inverse == 0.0f ? 0 : int(std::nearbyint(value(i + j) * s.inverse));
        const int high = (q + 64) >> 7, at = j % 16 / 4 * 8 + j / 16 * 4 + j % 4;
        CHECK(hi[i + at] == high && lo[i + at] == q - 128 * high, "%s: row %d, column %d is (%d, %d), not %d",
              name.c_str(), t, int(i) + j, hi[i + at], lo[i + at], q);
        sums[j / 16] += q;
      }
      for (int j = 0; j < 2; ++j)
        CHECK(o.sums[size_t(t * o.padded + i) / 16 + size_t(j)] == sums[j], "%s: row %d, sum of %d", name.c_str(), t,
              int(i) + 16 * j);
      CHECK(same(o.scales[at_scale + 1], s.scale * float(sums[0] + sums[1])), "%s: row %d, scaled sum of %d",
            name.c_str(), t, int(i));
    }
  }
  if (o.rows.halves.values) {
    const float scale = o.half_scales[size_t(t)];
    float peak = 0.0f;
    bool finite = true;
    for (int64_t i = 0; i < n_cols; ++i) {
      peak = std::max(peak, std::fabs(x[i]));
      finite = finite && std::isfinite(x[i]);
    }
    if (!finite) {
      CHECK(std::isnan(scale), "%s: row %d, scale of halves is %g", name.c_str(), t, double(scale));
      return;
    }
    int exponent;
    CHECK(peak < 0x1p-100f ? scale == 0.0f
                           : std::frexp(scale, &exponent) == 0.5f && peak / scale >= 16384 && peak / scale < 32768,
          "%s: row %d, scale of halves is %g for %g", name.c_str(), t, double(scale), double(peak));
    for (int64_t i = 0; i < o.padded; ++i) {
      const uint16_t expected = scale == 0.0f ? uint16_t(0) : float_to_half(value(i) / scale);
      const uint16_t found = o.halves[size_t(t * o.padded + i)];
      CHECK(found == expected, "%s: row %d, half %d is %04x, not %04x", name.c_str(), t, int(i), found, expected);
    }
  }
}

void check_close(float found, double expected, double tolerance, const std::string& name, int64_t at) {
  CHECK(std::isnan(expected) ? std::isnan(found) : std::fabs(double(found) - expected) <= tolerance,
        "%s: element %d is %.9g, not %.9g", name.c_str(), int(at), double(found), expected);
}

// Rows with what is rare in them: zeros, next to nothing, large, infinite, NaN.
std::vector<float> rows_with_oddities(int n, int64_t n_cols) {
  std::vector<float> x = normals(size_t(n * n_cols));
  for (int64_t i = 0; i < n_cols; ++i) {
    if (n > 1) x[size_t(n_cols + i)] *= i < 32 ? 0.0f : i < 64 ? 0x1p-120f : 3e37f;
    if (n > 2) x[size_t(2 * n_cols + i)] = i % 2 == 0 ? 0.0f : 0x1p-110f;
  }
  if (n > 3) x[size_t(3 * n_cols + n_cols / 2)] = kNan;
  if (n > 4) x[size_t(4 * n_cols + n_cols - 1)] = -std::numeric_limits<float>::infinity();
  return x;
}

void check_convert(int n, int64_t n_cols, int forms) {
  const std::string name = "convert_rows " + std::to_string(n_cols) + ", forms " + std::to_string(forms);
  const std::vector<float> host = rows_with_oddities(n, n_cols);
  const Buffer<float> x(host);
  const Outputs o(n, n_cols, forms & 1, forms & 2, forms & 4);
  convert_rows(x.get(), n, n_cols, o.rows, nullptr);
  for (int t = 0; t < n; ++t) {
    check_forms(o, t, host.data() + t * n_cols, n_cols, name);
    for (int64_t i = 0; (forms & 1) && i < n_cols; ++i)
      CHECK(same(o.floats[size_t(t * n_cols + i)], host[size_t(t * n_cols + i)]), "%s: %d", name.c_str(), int(i));
  }
}

void check_swiglu(int n, int64_t n_cols, int forms, bool in_place) {
  const std::string name = "swiglu " + std::to_string(n_cols) + ", forms " + std::to_string(forms);
  const std::vector<float> gate = normals(size_t(n * n_cols), 8.0f), up = normals(size_t(n * n_cols), 3.0f);
  const Buffer<float> g(gate), u(up);
  Outputs o(n, n_cols, forms & 1, forms & 2, forms & 4);
  if (in_place) o.rows.floats = g.get();
  swiglu(g.get(), u.get(), n, n_cols, o.rows, nullptr);
  const float* found = in_place ? g.host() : (forms & 1) ? o.floats.host() : nullptr;
  for (int t = 0; t < n && found; ++t) {
    for (int64_t i = t * n_cols; i < (t + 1) * n_cols; ++i) {
      const double expected = double(gate[size_t(i)]) / (1.0 + std::exp(-double(gate[size_t(i)]))) * up[size_t(i)];
      check_close(found[i], expected, 1e-6 * std::fabs(expected), name, i);
    }
    check_forms(o, t, found + t * n_cols, n_cols, name);
  }
}

void check_norm(int n, int64_t n_cols, int forms, bool with_add, bool in_place) {
  const std::string name = "rms_norm " + std::to_string(n_cols) + ", forms " + std::to_string(forms) +
                           (with_add ? " with add" : "") + (in_place ? " in place" : "");
  const float eps = 1e-6f;
  std::vector<float> x = normals(size_t(n * n_cols), 3.0f), y = normals(size_t(n * n_cols)),
                     weight = normals(static_cast<size_t>(n_cols));
  if (n > 1) x[size_t(n_cols) + 1] = kNan;
  if (n > 2) x[size_t(2 * n_cols) + 2] = 1e30f;  // its square is infinite
  const Buffer<float> dx(x), dy(y), dw(weight);
  Outputs o(n, n_cols, forms & 1, forms & 2, forms & 4);
  if (in_place) o.rows.floats = dx.get();
  rms_norm(dx.get(), with_add ? dy.get() : nullptr, dw.get(), eps, n, n_cols, o.rows, nullptr);
  const float* found = in_place ? dx.host() : (forms & 1) ? o.floats.host() : nullptr;
  for (int t = 0; t < n; ++t) {
    double squares = 0.0;
    std::vector<double> v(static_cast<size_t>(n_cols));
    for (int64_t i = 0; i < n_cols; ++i) {
      const size_t at = size_t(t * n_cols + i);
      const float sum = with_add ? x[at] + y[at] : x[at];
      v[size_t(i)] = sum;
      squares += double(sum) * sum;
      if (!in_place) CHECK(same(dx[at], sum), "%s: x is not kept", name.c_str());
    }
    if (squares > double(std::numeric_limits<float>::max())) squares = kNan;
    for (int64_t i = 0; found && i < n_cols; ++i) {
      const double expected = v[size_t(i)] / std::sqrt(squares / double(n_cols) + double(eps)) * weight[size_t(i)];
      check_close(found[t * n_cols + i], expected, 2e-6 * std::fabs(expected), name, i);
    }
    if (found) check_forms(o, t, found + t * n_cols, n_cols, name);
  }
}

void check_add(int64_t n, int offset) {
  const std::vector<float> x = normals(size_t(n + offset)), y = normals(size_t(n + offset));
  const Buffer<float> dx(x), dy(y);
  add(dx.get() + offset, dy.get() + offset, n, nullptr);
  for (int64_t i = 0; i < n + offset; ++i)
    CHECK(dx[size_t(i)] == (i < offset ? x[size_t(i)] : x[size_t(i)] + y[size_t(i)]), "add %d: %d", int(n), int(i));
}

void check_gather(int64_t n_cols) {
  const std::vector<float> x = normals(size_t(5 * n_cols));
  const std::vector<int32_t> rows = {4, 0, 3, 3};
  const Buffer<float> dx(x), out(size_t(4 * n_cols));
  const Buffer<int32_t> dr(rows);
  gather_rows(dx.get(), nullptr, dr.get(), 4, n_cols, out.get(), nullptr);
  for (size_t i = 0; i < 4; ++i)
    for (int64_t j = 0; j < n_cols; ++j)
      CHECK(out[i * size_t(n_cols) + size_t(j)] == x[size_t(rows[i] * n_cols + j)], "gather %d: row %d", int(n_cols),
            int(i));
  // Rows 4, 0 and 3 with an addition, which stays in them alone.
  const std::vector<float> y = normals(x.size());
  const Buffer<float> dy(y), sums(size_t(3 * n_cols));
  gather_rows(dx.get(), dy.get(), dr.get(), 3, n_cols, sums.get(), nullptr);
  for (size_t i = 0; i < 5; ++i)
    for (int64_t j = 0; j < n_cols; ++j) {
      const size_t at = i * size_t(n_cols) + size_t(j);
      const bool added = i == 0 || i > 2;
      CHECK(dx[at] == (added ? x[at] + y[at] : x[at]), "gather %d with an addition: row %d", int(n_cols), int(i));
      if (i < 3) {
        const size_t from = size_t(rows[i] * n_cols + j);
        CHECK(sums[at] == x[from] + y[from], "gather %d with an addition: result %d", int(n_cols), int(i));
      }
    }
}

// A row gets the same bits alone and in company.
void check_company(int64_t n_cols) {
  const std::vector<float> x = normals(size_t(3 * n_cols)), weight = normals(static_cast<size_t>(n_cols));
  const Buffer<float> all(x), one(std::vector<float>(x.begin() + n_cols, x.begin() + 2 * n_cols)), w(weight);
  const Outputs a(3, n_cols, true, false, false), b(1, n_cols, true, false, false);
  rms_norm(all.get(), nullptr, w.get(), 1e-5f, 3, n_cols, a.rows, nullptr);
  rms_norm(one.get(), nullptr, w.get(), 1e-5f, 1, n_cols, b.rows, nullptr);
  for (int64_t i = 0; i < n_cols; ++i)
    CHECK(a.floats[size_t(n_cols + i)] == b.floats[size_t(i)], "row of %d: column %d", int(n_cols), int(i));
}

}  // namespace
}  // namespace gristmill::cuda::test

int main() {
  using namespace gristmill::cuda;
  for (const uint64_t seed : {1, 2, 3}) {
    emulation::set_seed(seed);
    for (const int64_t n_cols : {32, 37, 256, 896, 5120}) {
      for (int forms = 1; forms < 8; ++forms) {
        if ((n_cols > 1000 && forms % 3 != 1) || (seed > 1 && n_cols != 256)) continue;
        test::check_convert(6, n_cols, forms);
        test::check_swiglu(2, n_cols, forms, forms == 7);
        test::check_norm(3, n_cols, forms, forms % 2 == 1, forms == 3 || forms == 7);
      }
      test::check_company(n_cols);
      test::check_gather(n_cols);
    }
    if (seed > 1) continue;
    // Seven slots a thread, and rows that are read again.
    for (const int64_t n_cols : {9001, 27648, 33024}) {
      test::check_convert(1, n_cols, 7);
      test::check_swiglu(1, n_cols, 7, true);
      test::check_norm(1, n_cols, 7, true, false);
    }
    test::check_add(1, 0);
    test::check_add(1024, 0);
    test::check_add(4099, 0);
    test::check_add(4099, 1);
  }
  return gristmill::test::failures("test_elementwise");
}

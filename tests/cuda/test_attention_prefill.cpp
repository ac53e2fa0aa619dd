// Prefill attention against float64 on what the cache holds: tiles that end early, positions before the batch, several
// heads to a KV head, NaN.
#include <string>

#include "attention_data.h"
#include "check.h"
#include "cuda/attention.h"
#include "device_under_test.h"

namespace gristmill::cuda::test {
namespace {

std::mt19937 random_bits(9);
constexpr int kLayer = 1;

std::string describe(const KvLayout& layout, int n_head, int n, int n_past) {
  return "types " + std::to_string(int(layout.type_k)) + ", " + std::to_string(int(layout.type_v)) + ", heads " +
         std::to_string(n_head) + " of " + std::to_string(layout.head_dim_k) + ", rows " + std::to_string(n) +
         " after " + std::to_string(n_past);
}

std::vector<float> prefill(const Caches& caches, const std::vector<float>& q, int n_head, int n, int n_past,
                           float scale) {
  const KvLayout& layout = caches.layout;
  const auto dq = to_device(q);
  const size_t n_out = size_t(n * n_head * layout.head_dim_v);
  const auto out = make_device<float>(n_out);
  prefill_attention(caches.memory[0].get(), layout, kLayer, dq.get(), n_head, n, n_past, scale, out.get(), nullptr);
  return to_host(out.get(), n_out);
}

// Every `step`th row is compared.
void check(const KvLayout& layout, int n_head, int n, int n_past, float spread, int step, double bound) {
  const std::string name = describe(layout, n_head, n, n_past);
  const Caches caches(layout, {n_past + n}, kLayer, random_bits);
  const size_t row_q = size_t(n_head * layout.head_dim_k), row_out = size_t(n_head * layout.head_dim_v);
  const std::vector<float> q = normals(size_t(n) * row_q, random_bits, spread);
  const float scale = 1.0f / std::sqrt(float(layout.head_dim_k));
  const std::vector<float> out = prefill(caches, q, n_head, n, n_past, scale);
  for (int t = (n - 1) % step; t < n; t += step) {
    const double error = relative_error(out.data() + size_t(t) * row_out,
                                        exact_attention(caches, 0, kLayer, q.data() + size_t(t) * row_q, n_head,
                                                        n_past + t + 1, double(scale)))
                             .mean;
    CHECK(error <= bound, "%s: row %d, error %.2g", name.c_str(), t, error);
  }
  for (size_t i = 0; i < out.size(); ++i) CHECK(std::isfinite(out[i]), "%s: element %zu", name.c_str(), i);
}

// Rows that see a NaN have it, heads that do not are free of it.
void check_nan(const KvLayout& layout) {
  const int n_head = 2 * layout.n_head_kv, n = 70, dim = layout.head_dim_v, bad = 66;
  for (int where = 0; where < 2; ++where) {
    Caches caches(layout, {n}, kLayer, random_bits);
    std::vector<float> q = normals(size_t(n * n_head * layout.head_dim_k), random_bits);
    if (where == 0) {
      q[size_t(bad * n_head * layout.head_dim_k) + 5] = std::numeric_limits<float>::quiet_NaN();
    } else {
      const int64_t at = bad * int64_t(layout.head_dim_k) + 40;
      const bool f16 = layout.type_k == KvType::F16;
      const uint16_t half_nan = 0x7e00;
      caches.write(0, kLayer, 0, false, f16 ? 2 * at : layout.k_values() + at / 32 * 2, &half_nan, 2);
    }
    const std::vector<float> out = prefill(caches, q, n_head, n, 0, 0.1f);
    for (int t = 0; t < n; ++t)
      for (int h = 0; h < n_head; ++h)
        for (int i = 0; i < dim; ++i) {
          const bool expected = where == 0 ? t == bad && h == 0 : t >= bad && h < 2;
          CHECK(std::isnan(out[size_t((t * n_head + h) * dim + i)]) == expected, "%s: NaN in %c, row %d, head %d",
                describe(layout, n_head, n, 0).c_str(), "qk"[where], t, h);
        }
  }
}

}  // namespace
}  // namespace gristmill::cuda::test

int main() {
  using namespace gristmill;
  using cuda::KvLayout;
  for (const uint64_t seed : {1, 2}) {
    cuda::emulation::set_seed(seed);
    for (const KvType type : {KvType::F16, KvType::Q8_0}) {
      const auto layout = [&](int n_head_kv, int dim) { return KvLayout{type, type, 2, n_head_kv, dim, dim, 300}; };
      cuda::test::check(layout(1, 128), 2, 70, 100, 1.0f, 7, 1e-3);
      if (seed > 1) continue;
      cuda::test::check(layout(2, 64), 4, 140, 0, 1.0f, 13, 1e-3);
      cuda::test::check(layout(1, 64), 1, 1, 63, 1.0f, 1, 1e-3);
      cuda::test::check(layout(1, 64), 1, 33, 64, 300000.0f, 8, 1e-3);  // one weight is nearly everything
      cuda::test::check_nan(layout(2, 128));
    }
    if (seed > 1) continue;
    cuda::test::check({KvType::F32, KvType::F32, 2, 1, 128, 128, 300}, 2, 10, 20, 1.0f, 3, 4e-6);
    cuda::test::check({KvType::F16, KvType::F16, 2, 1, 80, 80, 300}, 2, 10, 20, 1.0f, 3, 4e-6);
  }
  return test::failures("test_attention_prefill");
}

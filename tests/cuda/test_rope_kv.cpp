// Rotation against float64; what is stored against the CPU's rules for halves and Q8_0 blocks, bit for bit, and nothing
// else of the caches touched.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "core/half.h"
#include "cuda/elementwise.h"
#include "cuda/runtime.h"
#include "device_under_test.h"
#include "formats/q8_0.h"
#include "quantize.h"

namespace gristmill::cuda::test {
namespace {

std::mt19937 random_bits(11);

std::vector<float> normals(size_t n) {
  std::normal_distribution<float> normal;
  std::vector<float> v(n);
  for (float& x : v) x = normal(random_bits);
  return v;
}

void check_rope(int n, int n_heads, int head_dim, int dims, RopeStyle style) {
  const std::string name = "rope of " + std::to_string(dims) + " of " + std::to_string(head_dim);
  const std::vector<float> x = normals(size_t(n * n_heads * head_dim));
  std::vector<float> table(size_t(n * dims));
  const int half = dims / 2;
  for (int t = 0; t < n; ++t)
    for (int i = 0; i < half; ++i) {
      table[size_t(t * dims + i)] = std::cos(0.3f * float(t * i + 1));
      table[size_t(t * dims + half + i)] = std::sin(0.3f * float(t * i + 1));
    }
  const auto d = to_device(x), c = to_device(table);
  rope(d.get(), n, n_heads, head_dim, dims, c.get(), style, nullptr);
  const std::vector<float> found = to_host(d.get(), x.size());
  for (int row = 0; row < n * n_heads; ++row) {
    const float *before = x.data() + row * head_dim, *after = found.data() + row * head_dim;
    for (int i = 0; i < half; ++i) {
      const int a = style == RopeStyle::kNeox ? i : 2 * i, b = style == RopeStyle::kNeox ? i + half : 2 * i + 1;
      const double cosine = table[size_t(row / n_heads * dims + i)];
      const double sine = table[size_t(row / n_heads * dims + half + i)];
      CHECK(std::fabs(after[a] - (before[a] * cosine - before[b] * sine)) < 1e-6 &&
                std::fabs(after[b] - (before[a] * sine + before[b] * cosine)) < 1e-6,
            "%s: row %d, pair %d", name.c_str(), row, i);
    }
    for (int i = dims; i < head_dim; ++i) CHECK(after[i] == before[i], "%s: row %d, %d", name.c_str(), row, i);
  }
}

uint16_t half_or_nan(float x) {
  const uint16_t h = float_to_half(x);
  return (h & 0x7c00) == 0x7c00 ? 0x7e00 : h;
}

// One head's values at a position, as they should lie in memory.
void check_plane(KvType type, int head_dim, const float* x, const std::byte* values, const std::byte* scales,
                 int64_t position, const std::string& name) {
  for (int i = 0; i < head_dim; ++i) {
    const int64_t at = position * head_dim + i;
    if (type == KvType::F32) {
      CHECK(std::memcmp(values + 4 * at, x + i, 4) == 0, "%s: %d", name.c_str(), i);
    } else if (type == KvType::F16) {
      CHECK(reinterpret_cast<const uint16_t*>(values)[at] == half_or_nan(x[i]), "%s: %d", name.c_str(), i);
    } else if (i % 32 == 0) {
      bool fits = true;
      for (int j = 0; j < 32; ++j) fits = fits && std::fabs(x[i + j]) <= 127 * 65504.0f;
      formats::Q8_0::Block block;
      if (fits) {
        formats::Q8_0::from_float(x + i, nullptr, block);
      } else {
        block.d = 0x7e00;
        std::fill(block.qs, block.qs + 32, int8_t(1));
      }
      CHECK(reinterpret_cast<const uint16_t*>(scales)[at / 32] == block.d, "%s: scale of %d", name.c_str(), i);
      CHECK(std::memcmp(values + at, block.qs, 32) == 0, "%s: codes of %d", name.c_str(), i);
    }
  }
}

void check_store(KvType type_k, KvType type_v, int head_dim_k, int head_dim_v) {
  const std::string name = "store_kv of " + std::to_string(int(type_k)) + ", " + std::to_string(int(type_v)) + ", " +
                           std::to_string(head_dim_k) + ", " + std::to_string(head_dim_v);
  const KvLayout layout{type_k, type_v, 2, 3, head_dim_k, head_dim_v, 7};
  const size_t bytes = size_t(layout.total_bytes());
  auto first = make_device<std::byte>(bytes), second = make_device<std::byte>(bytes);
  fill(first.get(), 0xff, bytes, nullptr);
  fill(second.get(), 0xff, bytes, nullptr);
  const auto caches = to_device(std::vector<std::byte*>{first.get(), second.get()});
  const std::vector<int32_t> positions_host = {6, 0, 3}, sequences_host = {1, 0, 1};
  const auto positions = to_device(positions_host), sequences = to_device(sequences_host);
  std::vector<float> k = normals(size_t(3 * 3 * head_dim_k)), v = normals(size_t(3 * 3 * head_dim_v));
  // What halves cannot hold, what a scale cannot, NaN, next to nothing.
  k[1] = 1e6f;
  v[2] = std::numeric_limits<float>::infinity();
  v[size_t(head_dim_v) + 1] = std::numeric_limits<float>::quiet_NaN();
  for (int i = 0; i < head_dim_k; ++i) k[size_t(head_dim_k + i)] *= i < 32 ? 0.0f : 1e-39f;
  const auto dk = to_device(k), dv = to_device(v);
  store_kv({3, positions.get(), sequences.get(), caches.get()}, layout, 1, dk.get(), dv.get(), nullptr);
  const std::vector<std::byte> found[2] = {to_host(first.get(), bytes), to_host(second.get(), bytes)};
  std::vector<bool> written[2] = {std::vector<bool>(bytes), std::vector<bool>(bytes)};
  for (int row = 0; row < 3; ++row) {
    const int sequence = sequences_host[size_t(row)];
    const int64_t position = positions_host[size_t(row)];
    for (int head = 0; head < 3; ++head) {
      const int64_t at = layout.head_offset(1, head), v_at = at + layout.k_values() + layout.k_scales();
      const std::byte* cache = found[sequence].data();
      check_plane(type_k, head_dim_k, k.data() + (row * 3 + head) * head_dim_k, cache + at,
                  cache + at + layout.k_values(), position, name + " keys");
      check_plane(type_v, head_dim_v, v.data() + (row * 3 + head) * head_dim_v, cache + v_at,
                  cache + v_at + layout.v_values(), position, name + " values");
      const auto mark = [&](int64_t from, int64_t n) {
        std::fill_n(written[sequence].begin() + from + position * n, n, true);
      };
      mark(at, layout.value_bytes(type_k, head_dim_k));
      mark(at + layout.k_values(), layout.scale_bytes(type_k, head_dim_k));
      mark(v_at, layout.value_bytes(type_v, head_dim_v));
      mark(v_at + layout.v_values(), layout.scale_bytes(type_v, head_dim_v));
    }
  }
  for (int s = 0; s < 2; ++s)
    for (size_t i = 0; i < bytes; ++i)
      CHECK(written[s][i] || found[s][i] == std::byte{0xff}, "%s: byte %zu of cache %d", name.c_str(), i, s);
}

}  // namespace
}  // namespace gristmill::cuda::test

int main() {
  using namespace gristmill;
  for (const uint64_t seed : {1, 2, 3}) {
    cuda::emulation::set_seed(seed);
    for (const RopeStyle style : {RopeStyle::kInterleaved, RopeStyle::kNeox}) {
      cuda::test::check_rope(3, 5, 128, 128, style);
      cuda::test::check_rope(2, 9, 64, 64, style);
      cuda::test::check_rope(2, 3, 80, 32, style);
      cuda::test::check_rope(2, 3, 18, 10, style);
    }
    for (const KvType type_k : {KvType::F32, KvType::F16, KvType::Q8_0})
      for (const KvType type_v : {KvType::F32, KvType::F16, KvType::Q8_0})
        cuda::test::check_store(type_k, type_v, 128, 64);
    cuda::test::check_store(KvType::F16, KvType::F32, 18, 6);
    cuda::test::check_store(KvType::Q8_0, KvType::F16, 96, 10);
  }
  return test::failures("test_rope_kv");
}

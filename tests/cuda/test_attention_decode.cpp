// Decoding attention against float64 on what the cache holds: every fast kernel and the plain one, rows of several
// lengths in one batch, splits, NaN, and the same bits alone and in company.
#include <cstdio>
#include <cstring>
#include <string>
#include <utility>

#include "attention_data.h"
#include "check.h"
#include "cuda/attention.h"
#include "device_under_test.h"
#include "told_device.h"

namespace gristmill::cuda::test {
namespace {

std::mt19937 random_bits(5);
constexpr int kLayer = 1;
int64_t most_shared_bytes = int64_t{1} << 20;  // what the kernels may take of a block's shared memory

int n_quantized = 0;

std::string describe(const KvLayout& layout, int n_head) {
  return "types " + std::to_string(int(layout.type_k)) + ", " + std::to_string(int(layout.type_v)) + ", heads " +
         std::to_string(n_head) + " / " + std::to_string(layout.n_head_kv) + " of " +
         std::to_string(layout.head_dim_k) + ", " + std::to_string(layout.head_dim_v);
}

// out of the rows of the given sequences, each at its last position.
std::vector<float> decode(const Caches& caches, const std::vector<int32_t>& sequences, const std::vector<float>& q,
                          int n_head, float scale) {
  const KvLayout& layout = caches.layout;
  const int n = int(sequences.size());
  DeviceInfo device = told_device();
  device.shared_bytes_per_block = std::min(device.shared_bytes_per_block, most_shared_bytes);
  std::vector<int32_t> positions;
  for (const int32_t s : sequences) positions.push_back(caches.lengths[size_t(s)] - 1);
  const auto dq = to_device(q);
  const auto dp = to_device(positions), ds = to_device(sequences);
  const auto out = make_device<float>(size_t(n * n_head * layout.head_dim_v));
  const auto workspace = make_device<std::byte>(size_t(decode_attention_workspace(layout, n_head, n, device)));
  const auto counters = to_device(std::vector<unsigned>(size_t(n * layout.n_head_kv)));
  const int64_t n_cols = int64_t(n_head) * layout.head_dim_v;
  const bool quantizes = decode_attention_quantizes(layout, n_head, device);
  const DeviceQuantized quantized(quantize(std::vector<float>(size_t(n * n_cols)), n, n_cols));
  decode_attention({n, dp.get(), ds.get(), caches.pointers.get()}, layout, kLayer, dq.get(), n_head, scale, out.get(),
                   quantizes ? quantized.rows : QuantizedRows{}, workspace.get(), counters.get(), device, nullptr);
  if (quantizes) {
    const HostQuantized expected = quantize(to_host(out.get(), size_t(n * n_cols)), n, n_cols);
    const size_t bytes = expected.planes.size();
    CHECK(to_host(quantized.planes.get(), bytes) == expected.planes, "planes of the result");
    CHECK(to_host(quantized.sums.get(), expected.sums.size()) == expected.sums, "sums of the result");
    const std::vector<float> scales = to_host(quantized.scales.get(), expected.scales.size());
    CHECK(std::memcmp(scales.data(), expected.scales.data(), scales.size() * 4) == 0, "scales of the result");
    ++n_quantized;
  }
  for (const unsigned c : to_host(counters.get(), size_t(n * layout.n_head_kv))) CHECK(c == 0, "a counter is %u", c);
  return to_host(out.get(), size_t(n * n_head * layout.head_dim_v));
}

void check(const KvLayout& layout, int n_head, const std::vector<int>& lengths, float spread, double bound) {
  const std::string name = describe(layout, n_head);
  const Caches caches(layout, lengths, kLayer, random_bits);
  const size_t row_q = size_t(n_head * layout.head_dim_k), row_out = size_t(n_head * layout.head_dim_v);
  const std::vector<float> q = normals(lengths.size() * row_q, random_bits, spread);
  const float scale = 1.0f / std::sqrt(float(layout.head_dim_k));
  std::vector<int32_t> sequences;
  for (size_t i = 0; i < lengths.size(); ++i) sequences.push_back(int32_t(lengths.size() - 1 - i));
  const std::vector<float> out = decode(caches, sequences, q, n_head, scale);
  for (size_t i = 0; i < lengths.size(); ++i) {
    const int length = lengths[size_t(sequences[i])];
    const double error =
        relative_error(out.data() + i * row_out, exact_attention(caches, sequences[i], kLayer, q.data() + i * row_q,
                                                                 n_head, length, double(scale)))
            .largest;
    CHECK(error <= bound, "%s: length %d, error %.2g", name.c_str(), length, error);
    if (i % 2 != 0) continue;
    // Alone: the same bits.
    const std::vector<float> alone =
        decode(caches, {sequences[i]}, {q.begin() + ptrdiff_t(i * row_q), q.begin() + ptrdiff_t((i + 1) * row_q)},
               n_head, scale);
    CHECK(std::memcmp(alone.data(), out.data() + i * row_out, row_out * 4) == 0, "%s: length %d alone", name.c_str(),
          length);
  }
}

// A NaN in q, K or V reaches what depends on it.
void check_nan(const KvLayout& layout) {
  const int n_head = 2 * layout.n_head_kv, dim = layout.head_dim_v, length = 300;
  const auto not_a_number = std::numeric_limits<float>::quiet_NaN();
  for (int where = 0; where < 3; ++where) {
    Caches caches(layout, {length}, kLayer, random_bits);
    std::vector<float> q = normals(size_t(n_head * layout.head_dim_k), random_bits);
    if (where == 0) {
      q[3] = not_a_number;
    } else {
      // Value 40 of position 290 of head 0: its scale, or itself.
      const int64_t at = 290 * int64_t(dim) + 40;
      const KvType type = where == 2 ? layout.type_v : layout.type_k;
      const int64_t scales = where == 2 ? layout.v_values() : layout.k_values();
      const uint16_t half_nan = 0x7e00;
      const int64_t byte = type == KvType::F32 ? 4 * at : type == KvType::F16 ? 2 * at : scales + at / 32 * 2;
      if (type == KvType::F32) {
        caches.write(0, kLayer, 0, where == 2, byte, &not_a_number, 4);
      } else {
        caches.write(0, kLayer, 0, where == 2, byte, &half_nan, 2);
      }
    }
    const std::vector<float> out = decode(caches, {0}, q, n_head, 0.1f);
    for (int h = 0; h < n_head; ++h)
      for (int i = 0; i < dim; ++i) {
        const bool block = layout.type_v == KvType::Q8_0 ? i / 32 == 1 : i == 40;
        const bool expected = where == 0 ? h == 0 : where == 1 ? h < 2 : h < 2 && block;
        CHECK(std::isnan(out[size_t(h * dim + i)]) == expected, "%s: NaN in %c, head %d, %d",
              describe(layout, n_head).c_str(), "qkv"[where], h, i);
      }
  }
}

}  // namespace
}  // namespace gristmill::cuda::test

int main() {
  using namespace gristmill;
  using cuda::KvLayout;
  cuda::test::told_multiprocessors = 12;
  const std::vector<int> lengths = {1, 16, 129, 520};
  for (const uint64_t seed : {1, 2, 3}) {
    cuda::emulation::set_seed(seed);
    for (const KvType type : {KvType::F16, KvType::Q8_0}) {
      const auto layout = [&](int n_head_kv, int dim) { return KvLayout{type, type, 2, n_head_kv, dim, dim, 530}; };
      cuda::test::check(layout(1, 128), 5, {5, 300}, 1.0f, 4e-6);
      if (seed > 1) continue;
      cuda::test::check(layout(2, 128), 10, lengths, 1.0f, 4e-6);
      cuda::test::check(layout(1, 128), 12, {5, 140}, 4.0f, 4e-6);  // two groups of heads
      cuda::test::check(layout(2, 64), 8, {5, 140}, 1.0f, 4e-6);
      cuda::test::check(layout(3, 64), 9, {17, 250}, 1.0f, 4e-6);
      cuda::test::check(layout(2, 64), 16, {130}, 1e6f, 4e-6);  // one weight is nearly everything
      cuda::test::check_nan(layout(2, 128));
      cuda::test::check_nan(layout(2, 64));
    }
    cuda::test::check({KvType::F16, KvType::Q8_0, 2, 1, 64, 64, 530}, 3, {140}, 1.0f, 4e-6);
    if (seed > 1) continue;
    cuda::test::most_shared_bytes = 99 << 10;  // four warps a block in place of eight
    cuda::test::check({KvType::F16, KvType::F16, 2, 1, 128, 128, 530}, 5, {70, 300}, 1.0f, 4e-6);
    cuda::test::most_shared_bytes = 20 << 10;  // none: the plain kernel
    cuda::test::check({KvType::F16, KvType::F16, 2, 1, 128, 128, 530}, 5, {70}, 1.0f, 4e-6);
    cuda::test::most_shared_bytes = int64_t{1} << 20;
    cuda::test::check({KvType::F32, KvType::F32, 2, 2, 128, 128, 530}, 4, {1, 260}, 1.0f, 4e-6);
    cuda::test::check({KvType::Q8_0, KvType::F16, 2, 1, 96, 6, 530}, 3, {140}, 1.0f, 4e-6);
    cuda::test::check({KvType::F16, KvType::F16, 2, 1, 320, 300, 530}, 2, {140}, 1.0f, 4e-6);
    cuda::test::check_nan({KvType::F32, KvType::F16, 2, 2, 128, 128, 530});
  }
  // Warps that take so many tiles that their places in shared memory come round again, and more splits than are added
  // at once.
  cuda::emulation::set_seed(4);
  for (const auto& [multiprocessors, lengths] :
       {std::pair<int, std::vector<int>>{2, {1301, 2250, 1536}}, {40, {4700, 33}}}) {
    cuda::test::told_multiprocessors = multiprocessors;
    for (const KvType type : {KvType::F16, KvType::Q8_0})
      cuda::test::check({type, type, 2, 1, 128, 128, 4710}, 5, lengths, 1.0f, 4e-6);
  }
  CHECK(cuda::test::n_quantized > 0, "no result was quantized");
  return test::failures("test_attention_decode");
}

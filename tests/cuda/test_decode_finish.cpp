// What a decode product does with its results in the same launch, against the kernels that do it in launches of their
// own, bit for bit: rotation and the way into the cache, the gate and its quantization; on devices of several sizes,
// matrices of different formats, one to 33 tokens.
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "attention_data.h"
#include "blocks.h"
#include "check.h"
#include "cuda/elementwise.h"
#include "cuda/matmul.h"
#include "device_under_test.h"
#include "quantize.h"
#include "told_device.h"

namespace gristmill::cuda::test {
namespace {

std::mt19937 random_bits(9);

// Products of one x, with and without what finishes them.
struct Setup {
  int n;
  int64_t n_cols;
  std::vector<DeviceMatrix> matrices;
  std::vector<float> bias;
  DevicePointer<float> device_bias, floats;
  DeviceQuantized quantized;
  DeviceInfo device = told_device();
  DevicePointer<float> partials = make_device<float>(size_t(decode_partials(device)));

  Setup(int tokens, int64_t cols, const std::vector<std::pair<const char*, int64_t>>& rows)
      : Setup(tokens, cols, rows, normals(size_t(tokens * cols), random_bits)) {}
  Setup(int tokens, int64_t cols, const std::vector<std::pair<const char*, int64_t>>& rows, const std::vector<float>& x)
      : n(tokens), n_cols(cols), floats(to_device(x)), quantized(quantize(x, n, n_cols)) {
    int64_t most = 0;
    for (const auto& [format, n_rows] : rows) {
      matrices.emplace_back(
          make_matrix(*formats::find_format(std::string_view(format)), n_rows, n_cols, unsigned(n_rows)));
      most = std::max(most, n_rows);
    }
    bias = normals(size_t(most), random_bits);
    device_bias = to_device(bias);
  }

  // The outputs of the products, which follow each other.
  DevicePointer<float> outputs() const {
    int64_t all = 0;
    for (const DeviceMatrix& m : matrices) all += n * m.matrix.n_rows;
    return make_device<float>(size_t(all));
  }
  std::vector<DeviceProduct> products(float* at) const {
    std::vector<DeviceProduct> all;
    for (const DeviceMatrix& m : matrices) {
      all.push_back({m.matrix, device_bias.get(), at});
      at += n * m.matrix.n_rows;
    }
    return all;
  }
  void run(const std::vector<DeviceProduct>& all, const Finish& finish) const {
    CHECK(can_finish(all, finish), "shapes that should be finished are not");
    const auto counters = to_device(std::vector<unsigned>(size_t(decode_counters(all)), 0u));
    decode_matmul(all, {floats.get(), quantized.rows}, n, {partials.get(), counters.get()}, finish, device, true,
                  nullptr);
    for (const unsigned c : to_host(counters.get(), size_t(decode_counters(all))))
      CHECK(c == 0, "a counter was left at %u", c);
  }
};

void check_heads(const char* format_v, int n, int dim, int dims, RopeStyle style, KvType type_k, KvType type_v) {
  constexpr int kHeads = 4, kHeadsKv = 2, kLayer = 1;
  const std::string name = std::string(format_v) + ", " + std::to_string(n) + " tokens, heads of " +
                           std::to_string(dim) + ", " + std::to_string(dims) + " rotated, cache " +
                           std::to_string(int(type_k)) + std::to_string(int(type_v));
  const Setup setup(n, 512, {{"Q4_K", kHeads * dim}, {"Q4_K", kHeadsKv * dim}, {format_v, kHeadsKv * dim}});
  const KvLayout layout{type_k, type_v, 2, kHeadsKv, dim, dim, 40};
  std::vector<float> table = normals(size_t(n * dims), random_bits);
  const auto cos_sin = to_device(table);
  std::vector<int32_t> positions, sequences;
  for (int i = 0; i < n; ++i) {
    positions.push_back(i * 7 % 40);
    sequences.push_back(i);
  }
  const auto dp = to_device(positions), ds = to_device(sequences);
  // Rows in caches of their own: memory, the batch, and q after it.
  struct Result {
    std::vector<std::vector<std::byte>> caches;
    std::vector<float> q;
  };
  const auto run = [&](bool finish) {
    std::vector<DevicePointer<std::byte>> memory;
    std::vector<std::byte*> list;
    for (int i = 0; i < n; ++i) {
      memory.push_back(make_device<std::byte>(size_t(layout.total_bytes())));
      list.push_back(memory.back().get());
      fill(list.back(), 0xff, size_t(layout.total_bytes()), nullptr);
    }
    const auto pointers = to_device(list);
    const DeviceBatch batch{n, dp.get(), ds.get(), pointers.get()};
    const auto y = setup.outputs();
    const std::vector<DeviceProduct> all = setup.products(y.get());
    if (finish) {
      setup.run(all, StoreHeads{batch, layout, kLayer, dims, cos_sin.get(), style});
    } else {
      setup.run(all, {});
      rope(all[0].y, n, kHeads, dim, dims, cos_sin.get(), style, nullptr);
      rope(all[1].y, n, kHeadsKv, dim, dims, cos_sin.get(), style, nullptr);
      store_kv(batch, layout, kLayer, all[1].y, all[2].y, nullptr);
    }
    Result r{{}, to_host(all[0].y, size_t(n * kHeads * dim))};
    for (const std::byte* p : list) r.caches.push_back(to_host(p, size_t(layout.total_bytes())));
    return r;
  };
  const Result apart = run(false), together = run(true);
  CHECK(std::memcmp(apart.q.data(), together.q.data(), apart.q.size() * 4) == 0, "%s: queries differ", name.c_str());
  for (int i = 0; i < n; ++i)
    CHECK(apart.caches[size_t(i)] == together.caches[size_t(i)], "%s: the cache of row %d differs", name.c_str(), i);
}

void check_gate(const char* format_gate, const char* format_up, int n, int64_t n_rows) {
  const std::string name = std::string(format_gate) + " and " + format_up + ", " + std::to_string(n) + " tokens";
  const Setup setup(n, 512, {{format_gate, n_rows}, {format_up, n_rows}});
  const HostQuantized room = quantize(std::vector<float>(size_t(n * n_rows)), n, n_rows);
  struct Result {
    std::vector<float> floats, scales;
    std::vector<int8_t> planes;
    std::vector<int32_t> sums;
  };
  const auto run = [&](bool finish) {
    const DeviceQuantized out(room);
    const auto y = setup.outputs();
    const std::vector<DeviceProduct> all = setup.products(y.get());
    const RowOutputs rows{all[0].y, out.rows, {}};
    if (finish) {
      setup.run(all, GateRows{rows});
    } else {
      setup.run(all, {});
      swiglu(all[0].y, all[1].y, n, n_rows, rows, nullptr);
    }
    return Result{to_host(all[0].y, size_t(n * n_rows)), to_host(out.scales.get(), room.scales.size()),
                  to_host(out.planes.get(), room.planes.size()), to_host(out.sums.get(), room.sums.size())};
  };
  const Result apart = run(false), together = run(true);
  CHECK(std::memcmp(apart.floats.data(), together.floats.data(), apart.floats.size() * 4) == 0, "%s: floats",
        name.c_str());
  CHECK(std::memcmp(apart.scales.data(), together.scales.data(), apart.scales.size() * 4) == 0, "%s: scales",
        name.c_str());
  CHECK(apart.planes == together.planes && apart.sums == together.sums, "%s: codes", name.c_str());
}

}  // namespace
}  // namespace gristmill::cuda::test

int main() {
  using namespace gristmill;
  uint64_t seed = 0;
  for (const int multiprocessors : {1, 3, 7}) {
    cuda::emulation::set_seed(++seed);
    cuda::emulation::device_traits().major = seed % 2 == 0 ? 8 : 9;
    cuda::test::told_multiprocessors = multiprocessors;
    const auto neox = RopeStyle::kNeox, interleaved = RopeStyle::kInterleaved;
    cuda::test::check_heads("Q4_K", 1, 128, 128, neox, KvType::F16, KvType::F16);
    cuda::test::check_heads("Q6_K", multiprocessors == 3 ? 33 : 3, 64, 48, neox, KvType::Q8_0, KvType::F32);
    cuda::test::check_heads("F16", 5, 96, 96, interleaved, KvType::F32, KvType::Q8_0);
    cuda::test::check_gate("Q4_0", "Q4_0", multiprocessors == 3 ? 33 : 1, 256);
    cuda::test::check_gate("Q4_K", "Q6_K", 6, 512);
    cuda::test::check_gate("Q4_0", "Q8_0", multiprocessors == 3 ? 70 : 33, 256);
  }
  return test::failures("test_decode_finish");
}

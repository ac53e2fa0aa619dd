// What the kernels work on, and how figures are written.
#include <cmath>
#include <cstring>
#include <random>

#include "bench.h"

namespace gristmill::cuda::bench {

Sizes tiny_sizes() {
  Sizes s;
  s.n_embd = 256;
  s.n_ff = 512;
  s.n_head = 4;
  s.n_head_kv = 2;
  s.head_dim = 64;
  s.n_vocab = 320;
  s.prefill = 40;
  s.contexts = {128};
  s.sequences = {2};
  s.shared_context = 32;
  s.formats = {"Q4_K", "F16"};
  s.repeats = 1;
  s.inner = s.limit_rounds = s.launches = 2;
  s.limit_bytes = size_t{1} << 20;
  s.cold = false;
  return s;
}

void report(const std::string& part, const std::string& name, double value, const char* unit, double share,
            const char* limit) {
  std::printf("{\"part\": \"%s\", \"name\": \"%s\", \"value\": %.6g, \"unit\": \"%s\"", part.c_str(), name.c_str(),
              value, unit);
  if (share > 0) std::printf(", \"share\": %.4f, \"limit\": \"%s\"", share, limit);
  std::printf("}\n");
  std::fflush(stdout);
}

void report_bytes(const std::string& part, const std::string& name, double bytes, double ms, double limit,
                  const char* limit_name) {
  const double rate = 1e3 * bytes / ms;
  report(part, name, rate / 1e9, "GB/s", rate / limit, limit_name);
}

std::vector<std::byte> random_rows(const formats::FormatInfo& format, int64_t count, int64_t n_cols) {
  const int64_t row_bytes = n_cols / format.block_size * format.type_size;
  std::vector<std::byte> bytes(static_cast<size_t>(count * row_bytes));
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0.0f, 1.0f / std::sqrt(float(n_cols)));
  std::vector<float> row(static_cast<size_t>(n_cols));
  for (int64_t r = 0; r < count; ++r) {
    std::byte* to = bytes.data() + r * row_bytes;
    if (r < kDistinctRows) {
      for (float& v : row) v = normal(random);
      format.from_float(row.data(), nullptr, to, n_cols);
    } else {
      std::memcpy(to, to - kDistinctRows * row_bytes, size_t(row_bytes));
    }
  }
  return bytes;
}

DeviceMatrix random_matrix(const Context& c, const formats::FormatInfo& format, int64_t n_rows, int64_t n_cols) {
  DeviceMatrix m{make_device<std::byte>(size_t(matrix_bytes(format.id, n_rows, n_cols))), {}};
  m.matrix = {format.id, m.memory.get(), n_rows, n_cols};
  const std::vector<std::byte> host = random_rows(format, n_rows, n_cols);
  const auto raw = make_device<std::byte>(host.size());
  copy_to_device(raw.get(), host.data(), host.size(), c.stream);
  repack(m.matrix, 0, raw.get(), n_rows, c.stream);
  synchronize(c.stream);
  const int64_t n_values = std::min(n_rows, kDistinctRows) * n_cols;
  std::vector<float> values(static_cast<size_t>(n_values));
  format.to_float(host.data(), values.data(), n_values);
  m.values = std::make_shared<const std::vector<float>>(std::move(values));
  return m;
}

DeviceMatrix copy_of(const Context& c, const DeviceMatrix& other) {
  const Matrix& from = other.matrix;
  const size_t bytes = size_t(matrix_bytes(from.format, from.n_rows, from.n_cols));
  DeviceMatrix m{make_device<std::byte>(bytes), from, other.values};
  m.matrix.tiles = m.memory.get();
  copy_on_device(m.memory.get(), from.tiles, bytes, c.stream);
  return m;
}

DevicePointer<float> random_floats(const Context& c, size_t n) {
  std::vector<float> host(n);
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  for (float& v : host) v = normal(random);
  auto p = make_device<float>(n);
  copy_to_device(p.get(), host.data(), n * sizeof(float), c.stream);
  synchronize(c.stream);  // the host's copy goes
  return p;
}

}  // namespace gristmill::cuda::bench

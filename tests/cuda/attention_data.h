// Caches with random keys and values, and attention over them in float64, for the tests of the attention kernels.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "core/half.h"
#include "cuda/elementwise.h"
#include "cuda/kv_layout.h"
#include "cuda/runtime.h"
#include "quantize.h"

namespace gristmill::cuda::test {

inline std::vector<float> normals(size_t n, std::mt19937& random, float spread = 1.0f) {
  std::normal_distribution<float> normal(0.0f, spread);
  std::vector<float> v(n);
  for (float& x : v) x = normal(random);
  return v;
}

// Caches of several sequences; memory that no position has reached holds 0xff, which is NaN.
struct Caches {
  KvLayout layout;
  std::vector<int> lengths;
  std::vector<DevicePointer<std::byte>> memory;
  std::vector<std::vector<std::byte>> host;  // the same
  DevicePointer<std::byte*> pointers;

  Caches(const KvLayout& kv, const std::vector<int>& n_positions, int layer, std::mt19937& random)
      : layout(kv), lengths(n_positions) {
    std::vector<std::byte*> list;
    for (size_t i = 0; i < lengths.size(); ++i) {
      memory.push_back(make_device<std::byte>(size_t(layout.total_bytes())));
      list.push_back(memory.back().get());
      fill(list.back(), 0xff, size_t(layout.total_bytes()), nullptr);
    }
    pointers = to_device(list);
    for (size_t i = 0; i < lengths.size(); ++i) {
      const int n = lengths[i];
      std::vector<int32_t> positions(static_cast<size_t>(n)), sequences(static_cast<size_t>(n), int32_t(i));
      for (int j = 0; j < n; ++j) positions[size_t(j)] = j;
      const auto p = to_device(positions), s = to_device(sequences);
      const auto k = to_device(normals(size_t(n * layout.n_head_kv * layout.head_dim_k), random));
      const auto v = to_device(normals(size_t(n * layout.n_head_kv * layout.head_dim_v), random));
      store_kv({n, p.get(), s.get(), pointers.get()}, layout, layer, k.get(), v.get(), nullptr);
      host.push_back(to_host(list[i], size_t(layout.total_bytes())));
    }
  }

  // Where value i of a position lies, and what it is.
  const std::byte* head(int sequence, int layer, int head_kv, bool values) const {
    return host[size_t(sequence)].data() + layout.head_offset(layer, head_kv) +
           (values ? layout.k_values() + layout.k_scales() : 0);
  }
  // Changes bytes at `at` of a head's keys or values.
  void write(int sequence, int layer, int head_kv, bool values, int64_t at, const void* bytes, size_t n) {
    const ptrdiff_t from = head(sequence, layer, head_kv, values) - host[size_t(sequence)].data() + at;
    std::memcpy(host[size_t(sequence)].data() + from, bytes, n);
    copy_to_device(memory[size_t(sequence)].get() + from, bytes, n, nullptr);
    synchronize(Stream{});
  }
  double value(int sequence, int layer, int head_kv, bool values, int position, int i) const {
    const KvType type = values ? layout.type_v : layout.type_k;
    const int64_t at = int64_t(position) * (values ? layout.head_dim_v : layout.head_dim_k) + i;
    const std::byte* p = head(sequence, layer, head_kv, values);
    if (type == KvType::F32) return double(reinterpret_cast<const float*>(p)[at]);
    if (type == KvType::F16) return double(half_to_float(reinterpret_cast<const uint16_t*>(p)[at]));
    const auto* scales = reinterpret_cast<const uint16_t*>(p + (values ? layout.v_values() : layout.k_values()));
    return double(reinterpret_cast<const int8_t*>(p)[at]) * double(half_to_float(scales[at / 32]));
  }
};

// out [n_head][head_dim_v] of one row that sees positions 0 to length - 1.
inline std::vector<double> exact_attention(const Caches& caches, int sequence, int layer, const float* q, int n_head,
                                           int length, double scale) {
  const KvLayout& layout = caches.layout;
  const size_t dim_v = size_t(layout.head_dim_v);
  std::vector<double> out(size_t(n_head) * dim_v), weights(static_cast<size_t>(length));
  for (int h = 0; h < n_head; ++h) {
    const int kv = h / (n_head / layout.n_head_kv);
    double most = -std::numeric_limits<double>::infinity(), total = 0.0;
    for (int p = 0; p < length; ++p) {
      double s = 0.0;
      for (int i = 0; i < layout.head_dim_k; ++i)
        s += double(q[h * layout.head_dim_k + i]) * caches.value(sequence, layer, kv, false, p, i);
      weights[size_t(p)] = s * scale;
      most = std::max(most, s * scale);
    }
    for (double& w : weights) total += w = std::exp(w - most);
    for (int p = 0; p < length; ++p)
      for (size_t i = 0; i < dim_v; ++i)
        out[size_t(h) * dim_v + i] += weights[size_t(p)] / total * caches.value(sequence, layer, kv, true, p, int(i));
  }
  return out;
}

// The largest difference and that of the whole, over the root mean square of the exact values; infinite where one is
// not a number.
struct Difference {
  double largest, mean;
};
inline Difference relative_error(const float* found, const std::vector<double>& exact) {
  double squares = 0.0, errors = 0.0, most = 0.0;
  for (size_t i = 0; i < exact.size(); ++i) {
    const double difference = std::fabs(double(found[i]) - exact[i]);
    squares += exact[i] * exact[i];
    errors += difference * difference;
    if (!(difference <= most)) most = std::isnan(difference) ? std::numeric_limits<double>::infinity() : difference;
  }
  return {most / std::sqrt(squares / double(exact.size())), std::sqrt(errors / squares)};
}

}  // namespace gristmill::cuda::test

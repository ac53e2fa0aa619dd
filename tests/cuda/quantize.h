// Activations in the forms of csrc/cuda/activations.h, made on the host for the tests: the plain definition.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "cpu/generic/activation_scale.h"
#include "cuda/activations.h"
#include "cuda/runtime.h"

namespace gristmill::cuda::test {

struct HostQuantized {
  std::vector<int8_t> planes;
  std::vector<float> scales;
  std::vector<int32_t> sums;
  int64_t padded;
};

inline HostQuantized quantize(const std::vector<float>& x, int n, int64_t n_cols) {
  const int64_t padded = padded_columns(n_cols);
  HostQuantized q{{}, {}, {}, padded};
  q.planes.resize(size_t(n * 2 * padded));
  q.scales.resize(size_t(n * padded / 16));
  q.sums.resize(size_t(n * padded / 16));
  for (int t = 0; t < n; ++t)
    for (int64_t group = 0; group < padded / 32; ++group) {
      float peak = 0.0f;
      const auto value = [&](int i) { return group * 32 + i < n_cols ? x[size_t(t * n_cols + group * 32 + i)] : 0.0f; };
      for (int i = 0; i < 32; ++i) peak = std::isnan(value(i)) ? value(i) : std::max(peak, std::fabs(value(i)));
      const cpu::ActivationScale s = cpu::activation_scale(peak);
      for (int i = 0; i < 32; ++i) {
        const int code = s.inverse == 0.0f ? 0 : int(std::nearbyint(value(i) * s.inverse));
        const int hi = (code + 64) >> 7, lo = code - (hi << 7);
        const int64_t at = group * 32 + i % 16 / 4 * 8 + i / 16 * 4 + i % 4;
        q.planes[size_t((t * 2) * padded + at)] = int8_t(hi);
        q.planes[size_t((t * 2 + 1) * padded + at)] = int8_t(lo);
        q.sums[size_t(t * padded / 16 + group * 2 + i / 16)] += code;
      }
      const int32_t* halves = q.sums.data() + t * padded / 16 + group * 2;
      q.scales[size_t(t * padded / 16 + group * 2)] = s.scale;
      q.scales[size_t(t * padded / 16 + group * 2 + 1)] = s.scale * float(halves[0] + halves[1]);
    }
  return q;
}

template <class T>
DevicePointer<T> to_device(const std::vector<T>& v) {
  auto p = make_device<T>(v.size());
  copy_to_device(p.get(), v.data(), v.size() * sizeof(T), nullptr);
  synchronize(Stream{});  // other streams do not wait for this one
  return p;
}

template <class T>
std::vector<T> to_host(const T* p, size_t n) {
  std::vector<T> v(n);
  copy_to_host(v.data(), p, n * sizeof(T), nullptr);
  synchronize(Stream{});
  return v;
}

struct DeviceQuantized {
  DevicePointer<int8_t> planes;
  DevicePointer<float> scales;
  DevicePointer<int32_t> sums;
  QuantizedRows rows;

  explicit DeviceQuantized(const HostQuantized& q)
      : planes(to_device(q.planes)),
        scales(to_device(q.scales)),
        sums(to_device(q.sums)),
        rows{planes.get(), scales.get(), sums.get(), q.padded} {}
};

}  // namespace gristmill::cuda::test

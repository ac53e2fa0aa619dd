#include "verify.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>

#include "core/half.h"

namespace gristmill::cuda::bench {
namespace {

int wrong = 0;

template <class T>
std::vector<T> to_host(const Context& c, const void* from, size_t n) {
  std::vector<T> host(n);
  copy_to_host(host.data(), from, n * sizeof(T), c.stream);
  synchronize(c.stream);
  return host;
}

// At most `count` of n, the first and the last among them.
std::set<int64_t> some_of(int64_t n, int64_t count) {
  std::set<int64_t> some;
  for (int64_t i = 0; i < count; ++i) some.insert(i * (n - 1) / (count - 1));
  return some;
}

std::string number(double x) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", x);
  return text;
}

// Keys or values of one head as floats, [length][head_dim].
std::vector<float> cached(const Context& c, KvType type, int head_dim, int64_t length, const std::byte* values,
                          const std::byte* scales) {
  const size_t n = size_t(length * head_dim);
  std::vector<float> floats(n);
  if (type == KvType::F16) {
    const std::vector<uint16_t> halves = to_host<uint16_t>(c, values, n);
    for (size_t i = 0; i < n; ++i) floats[i] = half_to_float(halves[i]);
  } else {
    const std::vector<int8_t> codes = to_host<int8_t>(c, values, n);
    const std::vector<uint16_t> halves = to_host<uint16_t>(c, scales, n / 32);
    for (size_t i = 0; i < n; ++i) floats[i] = float(codes[i]) * half_to_float(halves[i / 32]);
  }
  return floats;
}

}  // namespace

void complain(const std::string& name, const std::string& what) {
  ++wrong;
  std::fprintf(stderr, "WRONG %s: %s\n", name.c_str(), what.c_str());
  report("wrong", name + ": " + what, wrong, "so far");
}
int n_wrong() { return wrong; }

void verify_product(const Context& c, const std::string& name, const DeviceMatrix& m, const float* x, int n,
                    const float* y, Arithmetic arithmetic) {
  const int64_t n_rows = m.matrix.n_rows, n_cols = m.matrix.n_cols;
  for (const int64_t t : some_of(n, 3)) {
    const std::vector<float> in = to_host<float>(c, x + t * n_cols, size_t(n_cols));
    const std::vector<float> out = to_host<float>(c, y + t * n_rows, size_t(n_rows));
    float peak = 0.0f;
    for (const float v : in) peak = std::max(peak, std::fabs(v));
    // Rows come over and over (kDistinctRows), so that each may be compared.
    const int64_t distinct = std::min(n_rows, kDistinctRows);
    std::vector<double> exact(static_cast<size_t>(distinct)), allowed(static_cast<size_t>(distinct));
    for (int64_t r = 0; r < distinct; ++r) {
      const float* row = m.row(r);
      double products = 0.0, weights = 0.0, squares = 0.0;
      for (int64_t k = 0; k < n_cols; ++k) {
        const double w = row[k], p = w * in[size_t(k)];
        exact[size_t(r)] += p;
        weights += w * w;
        products += std::fabs(p);
        squares += p * p;
      }
      // Eight times what rounding makes of a sum on average: of planes that of activations in steps of peak / 16256,
      // of halves that of both factors. Float32 sums.
      double& most = allowed[size_t(r)];
      most = products * 0x1p-22 + 1e-6;
      if (arithmetic == Arithmetic::kPlanes) most += 8 * std::sqrt(weights / 12) * peak / 16256;
      if (arithmetic == Arithmetic::kHalves) most += 0x1p-8 * std::sqrt(squares);
    }
    for (int64_t r = 0; r < n_rows; ++r) {
      const double expected = exact[size_t(r % distinct)], most = allowed[size_t(r % distinct)];
      if (std::fabs(out[size_t(r)] - expected) <= most) continue;
      return complain(name, "row " + std::to_string(r) + " of token " + std::to_string(t) + " is " +
                                number(double(out[size_t(r)])) + ", expected " + number(expected) + " within " +
                                number(most));
    }
  }
}

void verify_attention(const Context& c, const std::string& name, const KvLayout& layout, const std::byte* cache,
                      int layer, int64_t length, const float* q, int n_head, float scale, const float* out,
                      double bound) {
  const int dim = layout.head_dim_k;
  const std::vector<float> queries = to_host<float>(c, q, size_t(n_head) * size_t(dim));
  const std::vector<float> found = to_host<float>(c, out, size_t(n_head) * size_t(dim));
  for (const int64_t head : some_of(n_head, 2)) {
    const std::byte* at = cache + layout.head_offset(layer, int(head) / (n_head / layout.n_head_kv));
    const std::byte* const values = at + layout.k_values() + layout.k_scales();
    const std::vector<float> k = cached(c, layout.type_k, dim, length, at, at + layout.k_values());
    const std::vector<float> v = cached(c, layout.type_v, dim, length, values, values + layout.v_values());
    std::vector<double> weights(static_cast<size_t>(length)), exact(static_cast<size_t>(dim));
    double most = -INFINITY, total = 0.0, squares = 0.0, error = 0.0;
    for (size_t p = 0; p < weights.size(); ++p) {
      for (size_t i = 0; i < exact.size(); ++i)
        weights[p] += double(queries[size_t(head) * exact.size() + i]) * k[p * exact.size() + i];
      weights[p] *= double(scale);
      most = std::max(most, weights[p]);
    }
    for (double& w : weights) total += w = std::exp(w - most);
    for (size_t p = 0; p < weights.size(); ++p)
      for (size_t i = 0; i < exact.size(); ++i) exact[i] += weights[p] / total * v[p * exact.size() + i];
    for (size_t i = 0; i < exact.size(); ++i) {
      const double difference = std::fabs(double(found[size_t(head) * exact.size() + i]) - exact[i]);
      if (!(difference <= error)) error = std::isnan(difference) ? INFINITY : difference;
      squares += exact[i] * exact[i];
    }
    error /= std::sqrt(squares / double(dim));
    if (error <= bound) continue;
    return complain(
        name, "head " + std::to_string(head) + " is off by " + number(error) + ", expected at most " + number(bound));
  }
}

}  // namespace gristmill::cuda::bench

// The largest logits against a sort on the host, ids of equal ones included; the sum of exponentials against float64.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "cuda/runtime.h"
#include "cuda/sampling.h"
#include "device_under_test.h"
#include "quantize.h"

namespace gristmill::cuda::test {
namespace {

std::mt19937 random_bits(3);

// ties: logits are multiples of 1 / ties, so that many are equal; 0 for none.
// beyond: logits of each row that lie beyond the vocabulary and are larger than all others.
void check(int n_rows, int n_vocab, int k, int ties, bool odd = false, int beyond = 0) {
  const std::string name = std::to_string(n_rows) + " x " + std::to_string(n_vocab) + ", " + std::to_string(k) +
                           " of them, ties " + std::to_string(ties);
  std::normal_distribution<float> normal(0.0f, 4.0f);
  const size_t row_length = size_t(n_vocab + beyond);
  std::vector<float> logits(size_t(n_rows) * row_length);
  for (float& v : logits)
    v = ties ? std::nearbyint(normal(random_bits) * float(ties)) / float(ties) : normal(random_bits);
  for (size_t i = 0; i < logits.size(); ++i)
    if (i % row_length >= size_t(n_vocab)) logits[i] = 1000.0f;
  if (odd) {
    logits[0] = std::numeric_limits<float>::quiet_NaN();
    logits[2 * row_length - 1] = -std::numeric_limits<float>::infinity();
  }
  const auto device = to_device(logits), values = make_device<float>(size_t(n_rows * k)),
             log_sum = make_device<float>(static_cast<size_t>(n_rows));
  const auto ids = make_device<int32_t>(size_t(n_rows * k)), finite = make_device<int32_t>(static_cast<size_t>(n_rows));
  const auto workspace = make_device<std::byte>(size_t(top_candidates_workspace(n_rows, int64_t(row_length), k)));
  top_candidates(device.get(), n_rows, int64_t(row_length), n_vocab, k, ids.get(), values.get(), log_sum.get(),
                 finite.get(), workspace.get(), nullptr);
  const auto ids_found = to_host(ids.get(), size_t(n_rows * k));
  const auto values_found = to_host(values.get(), size_t(n_rows * k));
  const auto log_sum_found = to_host(log_sum.get(), size_t(n_rows));
  const auto finite_found = to_host(finite.get(), size_t(n_rows));
  for (int row = 0; row < n_rows; ++row) {
    const float* from = logits.data() + size_t(row) * row_length;
    const bool all_finite = std::all_of(from, from + row_length, [](float v) { return std::isfinite(v); });
    CHECK(finite_found[size_t(row)] == int(all_finite), "%s: row %d, finite is %d", name.c_str(), row,
          finite_found[size_t(row)]);
    if (!all_finite) continue;
    std::vector<int> order(static_cast<size_t>(n_vocab));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return from[a] > from[b]; });
    for (int i = 0; i < k; ++i) {
      const int expected = i < n_vocab ? order[size_t(i)] : -1;
      const float value = i < n_vocab ? from[expected] : -std::numeric_limits<float>::infinity();
      CHECK(ids_found[size_t(row * k + i)] == expected && values_found[size_t(row * k + i)] == value,
            "%s: row %d, place %d is %d (%g), not %d", name.c_str(), row, i, ids_found[size_t(row * k + i)],
            double(values_found[size_t(row * k + i)]), expected);
    }
    double sum = 0.0;
    for (int i = 0; i < n_vocab; ++i) sum += std::exp(double(from[i]) - double(from[order[0]]));
    const double exact = double(from[order[0]]) + std::log(sum);
    CHECK(std::fabs(double(log_sum_found[size_t(row)]) - exact) < 4e-6 * std::max(1.0, std::fabs(exact)),
          "%s: row %d, %.8g, not %.8g", name.c_str(), row, double(log_sum_found[size_t(row)]), exact);
  }
}

}  // namespace
}  // namespace gristmill::cuda::test

int main() {
  using gristmill::cuda::test::check;
  for (const uint64_t seed : {1, 2, 3}) {
    gristmill::cuda::emulation::set_seed(seed);
    check(2, 5000, 40, 4);
    if (seed > 1) continue;
    check(1, 9000, 40, 0);
    check(2, 37, 40, 1);
    check(1, 4096, 1, 0);
    check(2, 4200, 7, 0, true);
    check(2, 4000, 40, 4, false, 300);  // the second slice has nothing that counts
    check(2, 4000, 9, 0, true, 300);
    check(1, 16400, 1024, 16);  // more candidates than registers hold
  }
  return gristmill::test::failures("test_sampling");
}

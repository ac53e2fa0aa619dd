#include "observing_backend.h"

namespace gristmill {

void ObservingBackend::matmul(std::span<const Product> products, const float* x, int n, Phase phase) {
  const size_t n_cols = size_t(products.front().weight->n_cols);
  const float* inputs = x;
  if (!inner_->writes_host()) {
    host_.resize(size_t(n) * n_cols);
    inner_->download(x, host_.size(), host_.data());
    inputs = host_.data();
  }
  sums_.assign(n_cols, 0.0);
  for (size_t t = 0; t < size_t(n); ++t)
    for (size_t i = 0; i < n_cols; ++i) sums_[i] += double(inputs[t * n_cols + i]) * inputs[t * n_cols + i];
  for (const Product& p : products) {
    InputSquares& seen = squares_[p.weight->data];
    seen.sums.resize(n_cols);
    seen.n_rows += n;
    for (size_t i = 0; i < n_cols; ++i) seen.sums[i] += sums_[i];
  }
  inner_->matmul(products, x, n, phase);
}

}  // namespace gristmill

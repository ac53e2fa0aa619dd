// The weights that prefill unpacks next, 256 of each row of a trio of panels. The rows lie far apart, so the hardware
// does not run ahead: they are asked for while the trio before them is multiplied, some with each of its steps.
#pragma once

#include <cstdint>

#include "cpu/generic/ask.h"

namespace gristmill::cpu {
namespace {

template <class Format, int kRows, int kColumns>
class NextWeights {
 public:
  // After rows [r, r + kRows) from column k on, in a block [r0, r1) of them that is gone through piece by piece of its
  // columns. n_steps: how often ask() will be called.
  NextWeights(const Weight& w, int64_t r0, int64_t r1, int64_t r, int64_t k, int64_t n_steps)
      : row_bytes_(weight_bytes<Format>(w.n_cols)), rows_a_step_(int((kRows + n_steps - 1) / n_steps)) {
    r += kRows;
    if (r >= r1) r = r0, k += kColumns;
    if (k >= w.n_cols) r = r1, k = 0;
    p_ = weight_address<Format>(w, r, k);
  }
  // Beyond the matrix in vain.
  GRISTMILL_INLINE void ask() {
    for (int i = 0; i < rows_a_step_ && row_ < kRows; ++i, ++row_, p_ += uintptr_t(row_bytes_))
      ask_for<Cache::kL1>(p_, weight_bytes<Format>(kColumns));
  }

 private:
  int64_t row_bytes_;
  uintptr_t p_;
  int rows_a_step_, row_ = 0;
};

}  // namespace
}  // namespace gristmill::cpu

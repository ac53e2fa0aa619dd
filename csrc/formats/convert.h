// Rows of one format into rows of another, the way a file is converted: through float32, a few rows at a time.
#pragma once

#include <cstdint>
#include <span>

#include "formats/registry.h"

namespace gristmill::formats {

struct Converted {
  int64_t refused = -1;    // the first value that `to` cannot hold (NaN; for blocks infinity too), or -1
  int64_t overflowed = 0;  // finite values that became infinite
};

// rows of n_cols weights each; importance [n_cols] or empty. Where a value is refused, what is written is unspecified.
Converted convert_rows(const FormatInfo& from, const void* source, const FormatInfo& to,
                       std::span<const float> importance, int64_t rows, int64_t n_cols, void* target);

}  // namespace gristmill::formats

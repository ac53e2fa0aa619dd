// The two forms of a product of one token.
#pragma once

#include "formats/format.h"

namespace gristmill::cuda {

// Blocks that an SM is to have room for in products of one token: 1, with sixteen warps, or 2, with twelve, where the
// format allows it. Which is faster no GPU has said yet; `gpu_bench kernels` measures both. A result's bits depend on
// it.
constexpr int kDecodeResident = 1;

// Formats whose sums of one token fit the 80 registers that two blocks of twelve warps leave each thread on sm_90; the
// others spill there (check_kernels.py), or are floats. Without bulk copies Q4_0 and Q4_K spill too.
constexpr bool fits_twice(formats::TypeId id) {
  using enum formats::TypeId;
  return id == Q4_0 || id == Q5_0 || id == Q8_0 || id == Q4_K || id == Q5_K || id == IQ4_NL || id == IQ4_XS;
}

}  // namespace gristmill::cuda

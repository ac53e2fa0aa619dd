// What a GPU can do at most, measured (cuda/limits.h), and how close launches follow each other.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/limits.h"

namespace gristmill::cuda::bench {

// Tensor products by wgmma of operands in shared memory; only where code for sm_90a runs. Returns the operations of the
// launch, multiply and add counted as 2.
double multiply_wgmma(float* sink, int rounds, const DeviceInfo& device, Stream stream);
// A kernel that does nothing, for the gap between launches.
void do_nothing(bool dependent, Stream stream);

}  // namespace gristmill::cuda::bench

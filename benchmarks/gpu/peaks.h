// What a GPU can do at most, measured (cuda/limits.h), and how close launches follow each other.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/limits.h"

namespace gristmill::cuda::bench {

// A kernel that does nothing, for the gap between launches.
void do_nothing(bool dependent, Stream stream);

}  // namespace gristmill::cuda::bench

#include "peaks.h"

#include "cuda/device/launch.h"
#include "cuda/device/memory.h"

namespace gristmill::cuda::bench {
namespace {

KERNEL(32, 1) nothing_kernel() {
  grid_dependency_launch();
  grid_dependency_wait();
}

}  // namespace

void do_nothing(bool dependent, Stream stream) { launch("nothing", nothing_kernel, {{1}, {32}, 0, stream, dependent}); }

}  // namespace gristmill::cuda::bench

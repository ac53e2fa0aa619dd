// The one symbol of the library that the extension module looks up.
#include "cuda/attention.h"
#include "cuda/cuda_backend.h"
#include "cuda/limits.h"
#include "cuda/matrix.h"
#include "cuda/pass_buffers.h"
#include "cuda_library.h"

extern "C" __attribute__((visibility("default"))) const gristmill::cuda::Entry* gristmill_cuda_entry() {
  using namespace gristmill::cuda;
  static constexpr Entry kEntry = {
      kEntryVersion,
      [](std::string* why) { return device_count(why); },
      [](int index) { return device_info(index); },
      [](int index) -> std::unique_ptr<gristmill::Backend> { return std::make_unique<CudaBackend>(index); },
      [](gristmill::formats::TypeId format, int64_t n_rows, int64_t n_cols) {
        return allocated_bytes(matrix_bytes(format, n_rows, n_cols));
      },
      [](const gristmill::KvShape& shape) { return allocated_bytes(layout_of(shape).total_bytes()); },
      [](const gristmill::KvShape& shape) { return has_fast_attention(layout_of(shape)); },
      [](const PassShape& shape, const DeviceInfo& device) { return pass_bytes(shape, device); },
      [](int index, double seconds) { return measure_limits(index, seconds); },
  };
  return &kEntry;
}

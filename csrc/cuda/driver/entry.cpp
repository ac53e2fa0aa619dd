// The one symbol of the library that the extension module looks up.
#include "cuda/cuda_backend.h"
#include "cuda/limits.h"
#include "cuda/matrix.h"
#include "cuda_library.h"

extern "C" __attribute__((visibility("default"))) const gristmill::cuda::Entry* gristmill_cuda_entry() {
  using namespace gristmill::cuda;
  static constexpr Entry kEntry = {
      kEntryVersion,
      [] { return device_count(); },
      [](int index) { return device_info(index); },
      [](int index) -> std::unique_ptr<gristmill::Backend> { return std::make_unique<CudaBackend>(index); },
      [](gristmill::formats::TypeId format, int64_t n_rows, int64_t n_cols) {
        return matrix_bytes(format, n_rows, n_cols);
      },
      [](const gristmill::KvShape& shape) { return layout_of(shape).total_bytes(); },
      [](int index, double seconds) { return measure_limits(index, seconds); },
  };
  return &kEntry;
}

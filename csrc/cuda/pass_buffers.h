// How large the buffers of a backend's passes are, in elements: asked by what makes them, and by what promises that
// they fit beside the model.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/runtime.h"
#include "cuda_library.h"

namespace gristmill::cuda {

struct QuantizedSizes {
  size_t planes, scales, sums;
};
QuantizedSizes quantized_sizes(int n, int64_t n_cols);

struct HalfSizes {
  size_t values, scales;
};
HalfSizes half_sizes(const DeviceInfo& device, int n, int64_t n_cols);

// Of the largest logits: ids, values, whether finite and sums, 32 bits each.
size_t top_words(int n, int k);

// Bytes of device memory that a backend's buffers take at most, of loading and of all passes up to these sizes.
int64_t pass_bytes(const PassShape& shape, const DeviceInfo& device);

}  // namespace gristmill::cuda

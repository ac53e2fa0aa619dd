// Products of matrices in tiles with rows of activations.
#pragma once

#include <cstdint>
#include <span>

#include "cuda/activations.h"
#include "cuda/matrix.h"
#include "cuda/runtime.h"

namespace gristmill::cuda {

// y[t] = matrix . x[t] + bias
struct DeviceProduct {
  Matrix matrix;
  const float* bias;  // [n_rows] or nullptr
  float* y;           // [n][n_rows]
};

// One set of activations in the forms that the products' formats read: floats for F32, F16 and BF16, else quantized.
struct DecodeInput {
  const float* floats = nullptr;  // [n][n_cols]
  QuantizedRows quantized;
};

// Work space that decode_matmul needs for products of up to `row_tiles` row tiles together.
struct DecodeWorkspace {
  float* partials = nullptr;     // decode_partials(device) floats
  unsigned* counters = nullptr;  // [row_tiles], 0 before and after
};
int64_t decode_partials(const DeviceInfo& device);

// For n rows that decode. A row's bits depend neither on n nor on the other rows. dependent: see LaunchConfig.
void decode_matmul(std::span<const DeviceProduct> products, const DecodeInput& x, int n,
                   const DecodeWorkspace& workspace, const DeviceInfo& device, bool dependent, Stream stream);

// For many rows at once: activations and dequantized weights are rounded to halves, sums are float32. A row's bits do
// not depend on the others. scratch: prefill_scratch() halves.
int64_t prefill_scratch(const DeviceInfo& device, int64_t n_cols);
void prefill_matmul(std::span<const DeviceProduct> products, const HalfRows& x, int n, uint16_t* scratch,
                    const DeviceInfo& device, Stream stream);

}  // namespace gristmill::cuda

// Products of matrices in tiles with rows of activations.
#pragma once

#include <cstdint>
#include <span>
#include <variant>

#include "cuda/activations.h"
#include "cuda/decode_forms.h"
#include "cuda/kv_layout.h"
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

// What decode_matmul does with its results besides leaving them in y, without a launch of its own:
// - products are q, k, v in this order: rotates q and k, writes k and v to the caches of the rows. y of q is rotated, y
//   of k need not be.
struct StoreHeads {
  DeviceBatch batch;
  KvLayout layout;
  int layer;
  int dims;              // of a head that are rotated
  const float* cos_sin;  // [n][dims]
  RopeStyle style;
};
// - products are gate and up: silu(gate) * up in the forms asked for. out.floats may be the gate's y; out.quantized
// must
//   not be what the product reads.
struct GateRows {
  RowOutputs out;
};
using Finish = std::variant<std::monostate, StoreHeads, GateRows>;
// Whether the shapes allow it.
bool can_finish(std::span<const DeviceProduct> products, const Finish& finish);

// Work space of decode_matmul.
struct DecodeWorkspace {
  float* partials = nullptr;     // decode_partials(device) floats
  unsigned* counters = nullptr;  // decode_counters(products), 0 before and after
  int resident = kDecodeResident;
};
int64_t decode_partials(const DeviceInfo& device);
int64_t decode_counters(std::span<const DeviceProduct> products);

// For n rows that decode. A row's bits depend neither on n nor on the other rows. dependent: see LaunchConfig.
void decode_matmul(std::span<const DeviceProduct> products, const DecodeInput& x, int n,
                   const DecodeWorkspace& workspace, const Finish& finish, const DeviceInfo& device, bool dependent,
                   Stream stream);

// For many rows at once: activations and dequantized weights are rounded to halves, sums are float32. A row's bits do
// not depend on the others. scratch: prefill_scratch() halves.
int64_t prefill_scratch(const DeviceInfo& device, int64_t n_cols);
// The order of x's halves, and the rows that there must be room for.
HalfOrder prefill_order(const DeviceInfo& device);
int64_t prefill_rows(const DeviceInfo& device, int64_t n);
void prefill_matmul(std::span<const DeviceProduct> products, const HalfRows& x, int n, uint16_t* scratch,
                    const DeviceInfo& device, Stream stream);

}  // namespace gristmill::cuda

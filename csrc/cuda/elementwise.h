// Operations on rows of float32 activations. All pointers are to device memory; x, y and out are row-major.
#pragma once

#include <cstdint>

#include "cuda/activations.h"
#include "cuda/kv_layout.h"
#include "cuda/runtime.h"

namespace gristmill::cuda {

// out[t] = x[t] in the forms asked for.
void convert_rows(const float* x, int n, int64_t n_cols, const RowOutputs& out, Stream stream);
// out[t] = x[t] / sqrt(mean(x[t]^2) + eps) * weight. With add ([n][n_cols], may be nullptr) x[t] += add[t] first, kept.
void rms_norm(float* x, const float* add, const float* weight, float eps, int n, int64_t n_cols, const RowOutputs& out,
              Stream stream);
// out[t] = silu(gate[t]) * up[t]; out.floats may be gate.
void swiglu(const float* gate, const float* up, int n, int64_t n_cols, const RowOutputs& out, Stream stream);
// x += y
void add(float* x, const float* y, int64_t n_elements, Stream stream);
// Rotates the first `dims` of every head in place, as Backend::rope.
void rope(float* x, int n, int n_heads, int head_dim, int dims, const float* cos_sin, RopeStyle style, Stream stream);
// Writes k [n][n_head_kv * head_dim_k] and v at each row's position of its cache; NaN stays NaN in every type.
void store_kv(const DeviceBatch& batch, const KvLayout& layout, int layer, const float* k, const float* v,
              Stream stream);
// out[i] = x[rows[i]]; rows is on the device. With add (shaped as x, may be nullptr) x[r] += add[r] first, kept, for
// the rows gathered; then none may be there twice.
void gather_rows(float* x, const float* add, const int32_t* rows, int n, int64_t n_cols, float* out, Stream stream);

}  // namespace gristmill::cuda

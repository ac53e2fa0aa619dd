// The products of prefill as the GEMM kernels see them.
#pragma once

#include <cstdint>

#include "cuda/runtime.h"

namespace gristmill::cuda {

struct GemmWork {
  const uint16_t* x;      // [n][padded], in the order that the kernel reads
  const float* x_scale;   // [n]
  const uint16_t* w;      // [w_rows][padded]
  const float* bias;      // [n_rows] or nullptr
  float* y;               // [n][stride]
  int n, w_rows, n_rows;  // n_rows: those of w_rows that are no padding
  int64_t padded, stride;
};

// By wgmma; halves in panels. A block of the grid makes kGemmTokens tokens x kGemmRows rows.
constexpr int kGemmTokens = 128, kGemmRows = 256;
void gemm_panels(const GemmWork& work, Stream stream);

// How many rows of the matrix, at most `most`, to give to gemm_panels() at once such that the fewest multiprocessors
// idle in the last wave of blocks; a multiple of kGemmRows.
int64_t whole_waves(int64_t most, int64_t n_rows, int n, int multiprocessors);

}  // namespace gristmill::cuda

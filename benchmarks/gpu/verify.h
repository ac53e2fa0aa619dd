// Whether what is timed is right too: some results of each kernel at full size, against float64 on the host. The tests
// have all of them in small sizes; these find what only large ones, many multiprocessors and full caches do.
#pragma once

#include <span>
#include <string>

#include "bench.h"
#include "cuda/kv_layout.h"
#include "cuda/matmul.h"

namespace gristmill::cuda::bench {

// A result that is wrong: a line of JSON in the part "wrong" and one on standard error. gpu_bench ends with 1, when all
// else has been measured.
void complain(const std::string& name, const std::string& what);
int n_wrong();

// What a product may differ by: int8 planes and float32 sums, or halves.
enum class Arithmetic { kPlanes, kFloats, kHalves };

// All rows of some tokens of y = matrix x, x [n][n_cols] and y [n][n_rows] on the device.
void verify_product(const Context& c, const std::string& name, const DeviceMatrix& matrix, const float* x, int n,
                    const float* y, Arithmetic arithmetic);

// Some heads of attention, float32 out and q [n_head][head_dim] of one token on the device, to the first `length`
// positions of layer `layer` of a cache; `bound`: the largest error, over the exact values' root mean square.
void verify_attention(const Context& c, const std::string& name, const KvLayout& layout, const std::byte* cache,
                      int layer, int64_t length, const float* q, int n_head, float scale, const float* out,
                      double bound);

}  // namespace gristmill::cuda::bench

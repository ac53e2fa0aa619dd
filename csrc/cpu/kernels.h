// What an instruction set provides: one table of plain functions, filled in by isa/<name>/kernels.cpp. Only pointers
// and numbers cross this line, so that code compiled with one set's flags is never linked into another's path.
#pragma once

#include <cstddef>
#include <cstdint>
#include <tuple>

#include "backend.h"
#include "formats/registry.h"

namespace gristmill::cpu {

constexpr int kFormats = int(std::tuple_size_v<formats::All>);
// Rows of activations that one pass over the weights serves when decoding.
constexpr int kDecodeRows = 8;

// What a product is for. Where it has to be precise, quantized weights are multiplied with activations of 15 bits or
// more, and an instruction set may take 8 and the outliers apart, or bfloat16, elsewhere. Weights that are floats are
// multiplied in float32; in prefill that need not be precise a set may take 14 bits of both, or the 16 that two
// bfloat16 have.
enum class Pass { kPrefill, kPrecisePrefill, kDecode, kPreciseDecode };
constexpr int kPasses = 4;
constexpr bool is_decode(Pass pass) { return pass == Pass::kDecode || pass == Pass::kPreciseDecode; }
// The head is always precise: with 8 bits it alone would add two thirds of the divergence that all layers have.
inline Pass pass_for(Phase phase, bool precise) {
  if (phase == Phase::kPrefill) return precise ? Pass::kPrecisePrefill : Pass::kPrefill;
  return precise || phase == Phase::kHead ? Pass::kPreciseDecode : Pass::kDecode;
}

// One piece of a product: rows [row_begin, row_end) of w for every row of x.
struct MatmulTask {
  const Weight* w;
  int64_t row_begin, row_end;
  const std::byte* x;  // as Kernels::activations says
  int64_t x_stride;    // bytes a row, where x has rows
  int n;               // rows of x
  const float* bias;   // [w->n_rows] or nullptr
  float* y;            // [n, w->n_rows]
  int64_t ahead = 0;   // Kernels::float_ahead
};
using MatmulFunction = void (*)(const MatmulTask&);

// K and V of one layer and KV head, as kv_layout.h has them: K so that scores of 16 positions come from broadcasting q,
// V so that a position's weight is broadcast.
struct AttentionTask {
  KvType type_k, type_v;
  const std::byte* k;  // of the first chunk
  const std::byte* v;
  int64_t chunk_bytes;  // from a chunk to the next
  int head_dim_k, head_dim_v;
  int n_queries;             // rows of q: the query heads of this KV head, for one or several tokens
  const float* const* q;     // [n_queries] -> [head_dim_k]
  const int64_t* n_visible;  // [n_queries] positions each query sees
  int64_t begin, end;        // positions of this piece; begin is a multiple of kTile
  int64_t ask_end;  // up to which memory is asked for what comes next: beyond `end` if that is attended to next
  float scale;
  bool is_decode;  // one token of each sequence: kernels are chosen by this, never by how many queries share a task
  float* max;      // [n_queries] out: largest score
  float* sum;      // [n_queries] out: sum of exp(score - max)
  float* acc;      // [n_queries, head_dim_v] out: sum of exp(score - max) v
};

// Activations of a batch, in the order that a pass of this set wants them: quantized, or where there is no quantize()
// float32 rows as they are.
struct Activations {
  int bits;                // that a value really has: 15 also where a set has no faster way, 32 as floats
  int group;               // values that share a scale, which bounds the error of a product; 1 if they are floats
  const char* arithmetic;  // what multiplies them, a kind of limit_kernels.h: "int8", "int16", "bfloat16", "float32"
  int tokens;              // of a tile, which is what one call quantizes
  int64_t (*bytes)(int64_t n_cols, int64_t n_tokens);
  // Tile `tile` of x [n_tokens, n_cols], into its place in out.
  void (*quantize)(const float* x, int64_t n_cols, int64_t n_tokens, int64_t tile, std::byte* out);
};

struct Kernels {
  const char* name;
  // Rows of weights that a prefill task should take together, and what they should be a multiple of.
  int prefill_rows, panel_rows;
  // How many bytes ahead of their use decoding asks memory for weights that are floats; 0 where the hardware alone runs
  // ahead as well.
  int64_t float_ahead;
  Activations activations[kPasses][kFormats];
  MatmulFunction matmul[kPasses][kFormats];  // in decoding n <= kDecodeRows
  void (*attention)(const AttentionTask&);
  void (*rms_norm)(const float* x, const float* weight, float eps, int64_t n, float* out);
  void (*rope)(float* head, int dims, const float* cos_sin, RopeStyle style);
  void (*swiglu)(float* gate, const float* up, int64_t n);
  void (*add)(float* x, const float* y, int64_t n);
};

// Bytes of scratch of the calling thread, aligned to 64; the same memory at each call, grown as needed.
std::byte* thread_scratch(size_t bytes);

// Index of a format in the registry's order, which the tables above follow.
inline int format_index(const formats::FormatInfo* f) { return int(f - formats::begin_formats()); }

}  // namespace gristmill::cpu

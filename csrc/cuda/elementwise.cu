// Operations on rows of activations, bound by memory: every value is read once, in 16 bytes a lane, and leaves in all
// the forms that the next matrix product wants. Two shapes:
//
//   make_pieces  a block makes kPiece slots of a row, each thread one    no thread needs another's row
//   make_rows    a block makes a row; thread i holds slots i, i + threads, ... in registers until the row's sum of
//                squares or largest magnitude is known     row: | 0 1 2 .. T-1 | 0 1 2 .. T-1 | ..       (T threads)
//
// Sums over a row depend on its length only. Norm weights are loaded before waiting for the kernel ahead.
#include "cuda/elementwise.h"

#include <algorithm>
#include <cmath>

#include "cuda/convert.h"
#include "cuda/device/memory.h"

namespace gristmill::cuda {
namespace {

constexpr int kPiece = 128, kMostThreads = 1024;

// A row's columns; vectors where every row of every operand begins at a multiple of 16 bytes.
struct Columns {
  int n;
  bool vectors;

  HOST_DEVICE int slots() const { return int(padded_columns_of(n) / 4); }
  static HOST_DEVICE int padded_columns_of(int n) { return (n + kTileColumns - 1) / kTileColumns * kTileColumns; }
};

// Zeros beyond the row.
DEVICE float4 load_slot(const float* row, int slot, Columns columns) {
  const int i = 4 * slot;
  if (columns.vectors) return i < columns.n ? *reinterpret_cast<const float4*>(row + i) : float4{0, 0, 0, 0};
  return {i < columns.n ? row[i] : 0.0f, i + 1 < columns.n ? row[i + 1] : 0.0f, i + 2 < columns.n ? row[i + 2] : 0.0f,
          i + 3 < columns.n ? row[i + 3] : 0.0f};
}

DEVICE void store_slot(float* row, int slot, Columns columns, float4 v) {
  const int i = 4 * slot;
  if (columns.vectors) {
    if (i < columns.n) *reinterpret_cast<float4*>(row + i) = v;
    return;
  }
  if (i < columns.n) row[i] = v.x;
  if (i + 1 < columns.n) row[i + 1] = v.y;
  if (i + 2 < columns.n) row[i + 2] = v.z;
  if (i + 3 < columns.n) row[i + 3] = v.w;
}

DEVICE float4 add4(float4 a, float4 b) { return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w}; }

// Where rows come from. load() is called once for each slot; again() where it was not kept.
struct Plain {
  static constexpr bool kNorm = false;
  const float* x;

  DEVICE float4 load(int64_t row, int slot, Columns c) const { return load_slot(x + row * c.n, slot, c); }
  DEVICE float4 again(int64_t row, int slot, Columns c) const { return load(row, slot, c); }
};

struct Gated {
  static constexpr bool kNorm = false;
  const float *gate, *up;

  DEVICE float4 load(int64_t row, int slot, Columns c) const {
    const float4 g = load_slot(gate + row * c.n, slot, c), u = load_slot(up + row * c.n, slot, c);
    return gated(g, u);
  }
  DEVICE float4 again(int64_t row, int slot, Columns c) const { return load(row, slot, c); }
};

struct Norm {
  static constexpr bool kNorm = true;
  float* x;
  const float *add, *weight;
  float eps;

  DEVICE float4 load(int64_t row, int slot, Columns c) const {
    float4 v = load_slot(x + row * c.n, slot, c);
    if (add) {
      v = add4(v, load_slot(add + row * c.n, slot, c));
      store_slot(x + row * c.n, slot, c, v);
    }
    return v;
  }
  DEVICE float4 again(int64_t row, int slot, Columns c) const { return load_slot(x + row * c.n, slot, c); }
  // Squares that overflow would make every output zero; as NaN they are seen at the logits.
  DEVICE float factor(float squares, int n) const {
    const float mean = squares - squares == 0.0f ? squares / float(n) : float_of_bits(kNanBits);
    return 1.0f / sqrtf(mean + eps);
  }
};

DEVICE float squares4(float4 v, float sum) {
  return fmaf(v.w, v.w, fmaf(v.z, v.z, fmaf(v.y, v.y, fmaf(v.x, v.x, sum))));
}

// The padding stays zero where the factor is NaN.
DEVICE float4 scaled(float4 v, float factor, float4 w, int slot, Columns c) {
  const int i = 4 * slot;
  return {i < c.n ? v.x * factor * w.x : 0.0f, i + 1 < c.n ? v.y * factor * w.y : 0.0f,
          i + 2 < c.n ? v.z * factor * w.z : 0.0f, i + 3 < c.n ? v.w * factor * w.w : 0.0f};
}

DEVICE void store_all(const RowOutputs& out, int64_t row, int slot, Columns columns, float4 v, float inverse) {
  if (out.floats) store_slot(out.floats + row * columns.n, slot, columns, v);
  if (out.quantized.planes) store_planes(out.quantized, row, slot, v);
  if (out.halves.values) store_halves(out.halves, row, slot, v, inverse);
}

// Every thread gets the largest over the block; scratch: one word a warp.
DEVICE uint32_t block_max(uint32_t v, uint32_t* scratch) {
  v = warp_max(v);
  if (lane_id() == 0) scratch[warp_id()] = v;
  sync_block();
  uint32_t most = 0;
  for (int i = 0; i < int(blockDim.x) / kWarp; ++i) most = scratch[i] > most ? scratch[i] : most;
  return most;
}

template <class Source>
KERNEL(kPiece, 8)
make_pieces(Source source, Columns columns, unsigned pieces, RowOutputs out) {
  grid_dependency_launch();
  grid_dependency_wait();
  const int64_t row = blockIdx.x / pieces;
  const int slot = int(blockIdx.x % pieces) * kPiece + int(threadIdx.x);
  if (slot >= columns.slots()) return;  // whole warps: slots are a multiple of 64
  store_all(out, row, slot, columns, source.load(row, slot, columns), 0.0f);
}

// kHeld: slots that a thread keeps; 0 for rows too long for that, which are read again instead. Four are for blocks so
// small that they start beside those of the product ahead.
template <int kHeld>
constexpr int kRowThreads = kHeld == 4 ? 384 : kMostThreads;
template <class Source, int kHeld>
KERNEL(kRowThreads<kHeld>, (kHeld == 4 ? 2 : 1))
make_rows(Source source, Columns columns, RowOutputs out) {
  SMEM(float, scratch);
  constexpr int kKept = kHeld > 0 ? kHeld : 1;
  // More would not leave registers for the row itself.
  constexpr bool kWeightsAhead = Source::kNorm && kHeld > 0 && kHeld <= 4;
  const int64_t row = blockIdx.x;
  const int slots = columns.slots(), threads = int(blockDim.x), first = int(threadIdx.x);
  float4 held[kKept], weights[kKept];
  grid_dependency_launch();
  if constexpr (kWeightsAhead) {
    UNROLL
    for (int j = 0; j < kKept; ++j) weights[j] = load_slot(source.weight, first + j * threads, columns);
  }
  grid_dependency_wait();

  // f(slot, j) for the slots of this thread, j being their place in `held`.
  const auto for_slots = [&](auto&& f) {
    if constexpr (kHeld > 0) {
      UNROLL
      for (int j = 0; j < kHeld; ++j)
        if (first + j * threads < slots) f(first + j * threads, j);
    } else {
      for (int slot = first; slot < slots; slot += threads) f(slot, 0);
    }
  };
  float squares = 0.0f, factor = 1.0f;
  for_slots([&](int slot, int j) {
    const float4 v = source.load(row, slot, columns);
    held[j] = v;
    squares = squares4(v, squares);
  });
  if constexpr (Source::kNorm) factor = source.factor(block_sum(squares, scratch), columns.n);
  const auto value = [&](int slot, int j) {
    const float4 v = kHeld > 0 ? held[j] : source.again(row, slot, columns);
    if constexpr (kWeightsAhead) return scaled(v, factor, weights[j], slot, columns);
    if constexpr (Source::kNorm) return scaled(v, factor, load_slot(source.weight, slot, columns), slot, columns);
    return v;
  };
  float inverse = 0.0f;
  if (out.halves.values) {
    uint32_t peak = 0;
    for_slots([&](int slot, int j) {
      const uint32_t bits = peak_bits(value(slot, j));
      peak = bits > peak ? bits : peak;
    });
    const CodeScale s = half_scale(block_max(peak, reinterpret_cast<uint32_t*>(scratch) + kMostThreads / kWarp));
    inverse = s.inverse;
    if (first == 0) out.halves.scales[row] = s.scale;
  }
  for_slots([&](int slot, int j) { store_all(out, row, slot, columns, value(slot, j), inverse); });
}

KERNEL(256, 4)
add_elements(float* x, const float* y, int64_t n, bool vectors) {
  grid_dependency_launch();
  grid_dependency_wait();
  const int64_t i = 4 * (int64_t(blockIdx.x) * blockDim.x + threadIdx.x);
  if (i >= n) return;
  if (vectors && i + 4 <= n) {
    auto* at = reinterpret_cast<float4*>(x + i);
    *at = add4(*at, *reinterpret_cast<const float4*>(y + i));
    return;
  }
  for (int64_t j = i; j < i + 4 && j < n; ++j) x[j] += y[j];
}

// Block (i, piece): a piece of row i.
KERNEL(kPiece, 8)
gather(float* x, const float* add, const int32_t* rows, Columns columns, unsigned pieces, float* out) {
  grid_dependency_launch();
  grid_dependency_wait();
  const int64_t i = blockIdx.x / pieces;
  const int slot = int(blockIdx.x % pieces) * kPiece + int(threadIdx.x);
  if (4 * slot >= columns.n) return;
  const int64_t from = int64_t(rows[i]) * columns.n;
  float4 v = load_slot(x + from, slot, columns);
  if (add) {
    v = add4(v, load_slot(add + from, slot, columns));
    store_slot(x + from, slot, columns, v);
  }
  store_slot(out + i * columns.n, slot, columns, v);
}

template <class... Pointers>
bool aligned16(const Pointers*... p) {
  return ((reinterpret_cast<uintptr_t>(p) % 16 == 0) && ...);
}

template <class... Pointers>
Columns make_columns(int64_t n_cols, const Pointers*... operands) {
  return {int(n_cols), n_cols % 4 == 0 && aligned16(operands...)};
}

unsigned pieces_of(Columns columns) { return unsigned((columns.slots() + kPiece - 1) / kPiece); }

template <class Source>
void make(const char* name, const Source& source, Columns columns, int n, const RowOutputs& out, Stream stream) {
  if (n == 0 || columns.n == 0) return;
  if constexpr (!Source::kNorm) {
    if (!out.halves.values) {
      const unsigned pieces = pieces_of(columns);
      launch(name, make_pieces<Source>, {{unsigned(n) * pieces}, {kPiece}, 0, stream, true}, source, columns, pieces,
             out);
      return;
    }
  }
  const auto rows = [&]<int kHeld>() {
    const int each = kHeld > 0 ? kHeld : 16;
    const int threads = std::min(kRowThreads<kHeld>, ((columns.slots() + each - 1) / each + kWarp - 1) / kWarp * kWarp);
    launch(name, make_rows<Source, kHeld>,
           {{unsigned(n)}, {unsigned(threads)}, 2 * kMostThreads / kWarp * sizeof(float), stream, true}, source,
           columns, out);
  };
  if (columns.slots() <= 4 * kRowThreads<4>) return rows.template operator()<4>();
  if (columns.slots() <= 2 * kMostThreads) return rows.template operator()<2>();
  if (columns.slots() <= 7 * kMostThreads) return rows.template operator()<7>();
  rows.template operator()<0>();
}

}  // namespace

void convert_rows(const float* x, int n, int64_t n_cols, const RowOutputs& out, Stream stream) {
  make("convert_rows", Plain{x}, make_columns(n_cols, x, out.floats), n, out, stream);
}

void rms_norm(float* x, const float* add, const float* weight, float eps, int n, int64_t n_cols, const RowOutputs& out,
              Stream stream) {
  make("rms_norm", Norm{x, add, weight, eps}, make_columns(n_cols, x, add, weight, out.floats), n, out, stream);
}

void swiglu(const float* gate, const float* up, int n, int64_t n_cols, const RowOutputs& out, Stream stream) {
  make("swiglu", Gated{gate, up}, make_columns(n_cols, gate, up, out.floats), n, out, stream);
}

void add(float* x, const float* y, int64_t n_elements, Stream stream) {
  if (n_elements == 0) return;
  const unsigned blocks = unsigned((n_elements + 1023) / 1024);
  launch("add", add_elements, {{blocks}, {256}, 0, stream, true}, x, y, n_elements, aligned16(x, y));
}

void gather_rows(float* x, const float* add, const int32_t* rows, int n, int64_t n_cols, float* out, Stream stream) {
  if (n == 0 || n_cols == 0) return;
  const Columns columns = make_columns(n_cols, x, add, out);
  const unsigned pieces = pieces_of(columns);
  launch("gather_rows", gather, {{unsigned(n) * pieces}, {kPiece}, 0, stream, true}, x, add, rows, columns, pieces,
         out);
}

}  // namespace gristmill::cuda

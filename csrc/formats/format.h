// The contract of a block format. A format is one header with one struct; registry.h names it in one line, and every
// kernel, test and Python call then knows it.
//
// A quantized format is a sequence of blocks; inside a block, groups of kGroup weights share a scale (and a minimum):
//     w[i] = scale[i / kGroup] * (q[i] - kZero) + min[i / kGroup]          q[i] in 0..255
// to_affine() takes a block apart into exactly that. The scalar kernels, and any instruction set without a fast path of
// its own for the format, work from it; so a new format runs everywhere as soon as this header exists.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/half.h"

// Marks to_float and to_affine. These headers are compiled several times with different instruction set flags; an
// out-of-line copy of a member would be one weak symbol, and the linker might keep the copy the machine cannot run.
#define GRISTMILL_FORMAT_FN __attribute__((always_inline)) inline

namespace gristmill::formats {

// ggml's tensor type numbers, as GGUF files carry them.
enum class TypeId : uint32_t {
  F32 = 0,
  F16 = 1,
  Q4_0 = 2,
  Q4_1 = 3,
  Q5_0 = 6,
  Q5_1 = 7,
  Q8_0 = 8,
  Q2_K = 10,
  Q3_K = 11,
  Q4_K = 12,
  Q5_K = 13,
  Q6_K = 14,
  IQ4_NL = 20,
  IQ4_XS = 23,
  BF16 = 30,
};

enum class Kind {
  kFloat,   // kBlockSize 1; kernels convert to float32 and multiply in float32, or to integers in prefill
  kAffine,  // to_affine() as above; kernels multiply integers
};

// What a format's struct provides (members are static):
//   kId, kName            TypeId and GGUF's spelling
//   kKind                 Kind
//   kBlockSize            weights in a block
//   Block                 the bytes of a block; static_assert on sizeof; packed, for a row may start at any byte
//   to_float(b, y)        float32 y[kBlockSize]; bit-equal to the gguf package's dequantization
//   from_float(x, w, b)   finite x[kBlockSize] -> block; w: importance of each weight, >= 0, or nullptr.
//                         Values beyond the format's range saturate
//   from_floats(x, w, b, n)   optional: the same for n blocks, where working on many at once is faster
//   kMaxRelativeError     bound on |from-to round trip error| / max |x| of a block, where w is nullptr and the halves
//                         that the block comes to hold are normal numbers
// and for Kind::kAffine:
//   kGroup                weights that share a scale: 16 or 32
//   kZero, kHasMin        the zero point (0 where kHasMin), whether min[] can be other than 0
//   to_affine(b, q, scale, min)   uint8 q[kBlockSize], float scale[kBlockSize / kGroup], min likewise (written always);
//                         exact: the formula above, in float32, gives to_float's bits (but -0 may become +0). A scale
//                         has at most 22 significant bits and is below 2^100 (isa/avx512_vnni/panel.h)

}  // namespace gristmill::formats

// Formats that no instruction set has a fast path for: what a new header in csrc/formats runs on everywhere.
#pragma once

#include <string_view>
#include <tuple>

#include "cpu/kernels.h"

namespace gristmill::test {

// A registered format under a type of its own, so that no specialization applies to it.
template <class Format>
struct Unknown : Format {};

// A layout that the registry does not have: groups of 16 in a block of 32, with minima.
struct SmallGroups {
  static constexpr formats::TypeId kId{1000};
  static constexpr const char* kName = "SmallGroups";
  static constexpr formats::Kind kKind = formats::Kind::kAffine;
  static constexpr int kBlockSize = 32;
  static constexpr int kGroup = 16;
  static constexpr int kZero = 0;
  static constexpr bool kHasMin = true;

  struct [[gnu::packed]] Block {
    uint16_t d[2], m[2];
    uint8_t qs[32];
  };

  static GRISTMILL_FORMAT_FN void to_affine(const Block& b, uint8_t* q, float* scale, float* min) {
    for (int g = 0; g < 2; ++g) {
      scale[g] = half_to_float(b.d[g]);
      min[g] = half_to_float(b.m[g]);
    }
    for (int i = 0; i < 32; ++i) q[i] = b.qs[i];
  }
  static GRISTMILL_FORMAT_FN void to_float(const Block& b, float* y) {
    for (int i = 0; i < 32; ++i) y[i] = half_to_float(b.d[i / 16]) * float(b.qs[i]) + half_to_float(b.m[i / 16]);
  }
  static void from_float(const float* x, const float*, Block& b) {
    for (int g = 0; g < 2; ++g) {
      b.d[g] = float_to_half(0.01f);
      b.m[g] = float_to_half(-1.28f);
    }
    for (int i = 0; i < 32; ++i) b.qs[i] = uint8_t(x[i] < -1.0f ? 28 : x[i] > 1.0f ? 228 : int(x[i] * 100.0f) + 128);
  }
};

// Every combination of block size, group size and minimum.
using UnknownFormats =
    std::tuple<Unknown<formats::Q5_0>, Unknown<formats::Q4_1>, Unknown<formats::Q8_0>, Unknown<formats::Q4_K>,
               Unknown<formats::IQ4_XS>, Unknown<formats::Q2_K>, Unknown<formats::Q6_K>, SmallGroups>;

struct FallbackKernels {
  cpu::MatmulFunction matmul[cpu::kPasses][std::tuple_size_v<UnknownFormats>];
};
const FallbackKernels& fallback_avx2();
const FallbackKernels& fallback_avx512_vnni();
const FallbackKernels& fallback_amx_bf16();

}  // namespace gristmill::test

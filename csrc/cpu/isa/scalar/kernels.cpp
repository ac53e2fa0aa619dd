// Scalar kernels. Quantized products work on the format's affine view (formats/format.h) and on activations of 15 bits
// a value with one scale per 32: integers are multiplied exactly, each group's sum is scaled once.
#include <bit>
#include <cmath>
#include <cstring>

#include "cpu/dispatch.h"
#include "cpu/generic/activation_scale.h"
#include "cpu/generic/kernel_table.h"
#include "cpu/isa/scalar/vec.h"

namespace gristmill::cpu {
namespace {

// 32 activations: x[i] = scale * q[i] (generic/activation_scale.h).
struct ActivationGroup {
  float scale;
  float sum[2];  // scale * (sum of q), of each 16: what minima multiply
  int16_t q[32];
};

int64_t activation_bytes(int64_t n_cols) { return (n_cols + 31) / 32 * int64_t(sizeof(ActivationGroup)); }

void quantize_activations(const float* x, int64_t n_cols, std::byte* out) {
  ActivationGroup* groups = reinterpret_cast<ActivationGroup*>(out);
  for (int64_t i = 0; i < n_cols; i += 32, x += 32, ++groups) {
    // Magnitudes compared as integers: a NaN is larger than any number, becomes the scale, and is seen in every sum.
    uint32_t peak = 0;
    for (int j = 0; j < 32; ++j) {
      const uint32_t magnitude = std::bit_cast<uint32_t>(x[j]) & 0x7fffffffu;
      peak = magnitude > peak ? magnitude : peak;
    }
    const ActivationScale s = activation_scale(std::bit_cast<float>(peak));
    groups->scale = s.scale;
    for (int half = 0; half < 2; ++half) {
      int sum = 0;
      for (int j = 16 * half; j < 16 * half + 16; ++j) {
        groups->q[j] = int16_t(std::lrint(x[j] * s.inverse));
        sum += groups->q[j];
      }
      groups->sum[half] = groups->scale * float(sum);
    }
  }
}

template <class Format>
void matmul_affine(const MatmulTask& task) {
  constexpr int kBlock = Format::kBlockSize, kGroup = Format::kGroup, kGroups = kBlock / kGroup;
  const int64_t m = task.w->n_rows, row_bytes = task.w->row_bytes();
  for (int64_t r = task.row_begin; r < task.row_end; ++r) {
    const auto* blocks = reinterpret_cast<const typename Format::Block*>(task.w->data + r * row_bytes);
    for (int t = 0; t < task.n; ++t) task.y[t * m + r] = task.bias ? task.bias[r] : 0.0f;
    for (int64_t b = 0; b < task.w->n_cols / kBlock; ++b) {
      uint8_t q[kBlock];
      float scale[kGroups], min[kGroups];
      Format::to_affine(blocks[b], q, scale, min);
      for (int t = 0; t < task.n; ++t) {
        const auto* x = reinterpret_cast<const ActivationGroup*>(task.x + t * task.x_stride) + b * kBlock / 32;
        float sum = 0.0f;
        for (int g = 0; g < kGroups; ++g) {
          const int at = g * kGroup;
          const ActivationGroup& a = x[at / 32];
          int dot = 0;
          for (int i = 0; i < kGroup; ++i) dot += (int(q[at + i]) - Format::kZero) * a.q[at % 32 + i];
          sum += scale[g] * a.scale * float(dot);
          if (Format::kHasMin) sum += min[g] * (kGroup == 32 ? a.sum[0] + a.sum[1] : a.sum[at % 32 / 16]);
        }
        task.y[t * m + r] += sum;
      }
    }
  }
}

struct Set {
  using Vec = ScalarVec;
  using ByteAttention = NoBytes;
  static constexpr const char* kName = "scalar";
  static constexpr int kPrefillRows = 16, kPanelRows = 16;
  static constexpr auto activation_bytes = cpu::activation_bytes;
  static constexpr auto quantize_activations = cpu::quantize_activations;
  template <class Format, Pass>
  static constexpr bool kIntegers = Format::kKind == formats::Kind::kAffine;
  // 15 bits in every pass.
  template <class, Pass>
  static constexpr Activations activations() {
    return row_activations<Set>();
  }
  template <class Format, Pass>
  static void matmul(const MatmulTask& task) {
    matmul_affine<Format>(task);
  }
};

constexpr Kernels kKernels = make_kernels<Set>();

}  // namespace

const Kernels& scalar_kernels() { return kKernels; }

}  // namespace gristmill::cpu

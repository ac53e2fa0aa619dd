#include "cpu/dispatch.h"
#include "cpu/generic/kernel_table.h"
#include "cpu/isa/avx2/decode.h"
#include "cpu/isa/avx2/prefill.h"
#include "cpu/isa/avx2/vec.h"

namespace gristmill::cpu {
namespace {

struct Set {
  using Vec = Avx2Vec;
  static constexpr const char* kName = "avx2";
  static constexpr int kPrefillRows = kPanels * cpu::kPanelRows, kPanelRows = kPrefillRows, kActivationGroup = 32;
  static constexpr auto activation_bytes = cpu::activation_bytes;
  static constexpr auto quantize_activations = cpu::quantize_activations;
  // 15 bits in every pass.
  template <Pass>
  static constexpr Activations activations() {
    return row_activations<Set>();
  }
  template <class Format, Pass kPass>
  static void matmul(const MatmulTask& task) {
    if constexpr (kPass == Pass::kDecode) {
      decode_affine<Format>(task);
    } else {
      prefill_affine<Format>(task);
    }
  }
};

constexpr Kernels kKernels = make_kernels<Set>();

}  // namespace

const Kernels& avx2_kernels() { return kKernels; }

}  // namespace gristmill::cpu

#include "cpu/dispatch.h"
#include "cpu/generic/kernel_table.h"
#include "cpu/isa/avx512_vnni/decode.h"
#include "cpu/isa/avx512_vnni/prefill.h"
#include "cpu/isa/avx512_vnni/vec.h"

namespace gristmill::cpu {
namespace {

struct Set {
  using Vec = Avx512Vec;
  static constexpr const char* kName = "avx512_vnni";
  static constexpr int kPrefillRows = int(kBlockRows), kPanelRows = kPanels * cpu::kPanelRows, kActivationGroup = 32;
  static constexpr auto activation_bytes = cpu::activation_bytes;
  static constexpr auto quantize_activations = cpu::quantize_activations;
  template <class Format>
  static void decode(const MatmulTask& task) {
    decode_affine<Format>(task);
  }
  template <ActivationBits kBits>
  static constexpr PrefillActivations prefill_activations() {
    constexpr int kPlanes = kBits == ActivationBits::k8 ? 1 : 2;
    return {kPlanes == 1 ? 8 : 15, kTileTokens, tile_bytes<kPlanes>, quantize_tile<kPlanes>};
  }
  template <class Format, ActivationBits kBits>
  static void prefill(const MatmulTask& task) {
    prefill_affine<Format, kBits == ActivationBits::k8 ? 1 : 2>(task);
  }
};

constexpr Kernels kKernels = make_kernels<Set>();

}  // namespace

const Kernels& avx512_vnni_kernels() { return kKernels; }

}  // namespace gristmill::cpu

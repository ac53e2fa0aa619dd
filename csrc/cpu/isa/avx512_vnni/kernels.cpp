#include "cpu/dispatch.h"
#include "cpu/generic/kernel_table.h"
#include "cpu/isa/avx512_vnni/attention.h"
#include "cpu/isa/avx512_vnni/decode.h"
#include "cpu/isa/avx512_vnni/prefill.h"
#include "cpu/isa/avx512_vnni/quantize.h"
#include "cpu/isa/avx512_vnni/vec.h"

namespace gristmill::cpu {
namespace {

constexpr int decode_planes(Pass pass) { return pass == Pass::kDecode ? 1 : 2; }

struct Set {
  using Vec = Avx512Vec;
  using ByteAttention = IntegerAttention;
  static constexpr const char* kName = "avx512_vnni";
  static constexpr int kPrefillRows = int(kBlockRows), kPanelRows = kPanels * cpu::kPanelRows;
  template <class Format, Pass kPass>
  static constexpr bool kIntegers =
      Format::kKind == formats::Kind::kAffine || (kIsHalf<Format> && kPass == Pass::kPrefill);
  template <class Format, Pass kPass>
  static constexpr Activations activations() {
    if constexpr (kIsHalf<Format>)
      return {kWordBits, 32, "int16", kTileTokens, tile_bytes<WordPiece>, quantize_word_tile};
    if constexpr (kPass == Pass::kPrefill)
      return {8, 32, "int8", kTileTokens, tile_bytes<TilePiece<1, kTileTokens>>, quantize_tile<1>};
    if constexpr (kPass == Pass::kPrecisePrefill)
      return {15, 32, "int8", kTileTokens, tile_bytes<TilePiece<2, kTileTokens>>, quantize_tile<2>};
    constexpr int kPlanes = decode_planes(kPass);
    return {kPlanes == 1 ? 8 : 15, 32, "int8", kTileTokens, decode_tile_bytes<kPlanes>, quantize_decode_tile<kPlanes>};
  }
  template <class Format, Pass kPass>
  static void matmul(const MatmulTask& task) {
    if constexpr (kIsHalf<Format>) {
      prefill<WordOperands<Format>>(task);
    } else if constexpr (is_decode(kPass)) {
      decode_affine<Format, decode_planes(kPass)>(task);
    } else {
      prefill<AffineOperands<Format, kPass == Pass::kPrefill ? 1 : 2>>(task);
    }
  }
};

constexpr Kernels kKernels = make_kernels<Set>();

}  // namespace

const Kernels& avx512_vnni_kernels() { return kKernels; }

}  // namespace gristmill::cpu

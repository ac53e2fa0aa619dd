#include "cpu/dispatch.h"
#include "cpu/generic/kernel_table.h"
#include "cpu/isa/avx2/decode.h"
#include "cpu/isa/avx2/prefill.h"
#include "cpu/isa/avx2/vec.h"
#include "cpu/isa/avx2/words.h"

namespace gristmill::cpu {
namespace {

struct Set {
  using Vec = Avx2Vec;
  using ByteAttention = NoBytes;
  static constexpr const char* kName = "avx2";
  static constexpr int kPrefillRows = int(kBlockRows), kPanelRows = int(kTrioRows);
  template <class Format, Pass kPass>
  static constexpr bool kIntegers =
      Format::kKind == formats::Kind::kAffine || (kIsHalf<Format> && kPass == Pass::kPrefill);
  template <class Format, Pass kPass>
  static constexpr Activations activations() {
    if constexpr (kIsHalf<Format>)
      return {kWordBits, 32, "int16", kTileTokens, tile_bytes<WordPiece>, quantize_tile<WordPiece, int(kWordMax)>};
    if constexpr (kPass == Pass::kPrefill)
      return {8, 32, "int8", kTileTokens, tile_bytes<BytePiece>, quantize_tile<BytePiece>};
    if constexpr (kPass == Pass::kPrecisePrefill)
      return {15, 32, "int8", kTileTokens, tile_bytes<WordPiece>, quantize_tile<WordPiece>};
    return {15, 32, "int8", kTileTokens, decode_bytes, quantize_decode_tile};
  }
  template <class Format, Pass kPass>
  static void matmul(const MatmulTask& task) {
    if constexpr (kIsHalf<Format>) {
      prefill_halves<Format>(task);
    } else if constexpr (is_decode(kPass)) {
      decode_affine<Format>(task);
    } else {
      prefill_affine<Format, kPass>(task);
    }
  }
};

constexpr Kernels kKernels = make_kernels<Set>();

}  // namespace

const Kernels& avx2_kernels() { return kKernels; }

}  // namespace gristmill::cpu

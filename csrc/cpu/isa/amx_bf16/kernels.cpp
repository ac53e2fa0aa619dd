#include "cpu/dispatch.h"
#include "cpu/generic/kernel_table.h"
#include "cpu/isa/amx_bf16/attention.h"
#include "cpu/isa/amx_bf16/byte_attention.h"
#include "cpu/isa/amx_bf16/prefill.h"

namespace gristmill::cpu {
namespace {

// Planes of bfloat16 that weights and activations get. Floats keep what they have: bfloat16 is one plane, halves two.
template <class Format>
constexpr int weight_planes(Pass pass) {
  if (Format::kKind == formats::Kind::kFloat) return Format::kId == formats::TypeId::BF16 ? 1 : 2;
  return pass == Pass::kPrefill ? 1 : 2;
}
template <class Format>
constexpr int activation_planes(Pass pass) {
  return Format::kKind == formats::Kind::kAffine && pass == Pass::kPrefill ? 1 : 2;
}

template <class Format, Pass kPass>
void set_pass(Kernels& k, int format) {
  if constexpr (Format::kKind == formats::Kind::kAffine || (kIsHalf<Format> && kPass == Pass::kPrefill)) {
    constexpr int kX = activation_planes<Format>(kPass);
    k.activations[int(kPass)][format] = {kX == 1 ? 8 : 16, 1, "bfloat16", kTokens, token_bytes<kX>, round_tokens<kX>};
    k.matmul[int(kPass)][format] = prefill<Format, weight_planes<Format>(kPass), kX>;
  }
}

void attention(const AttentionTask& task) {
  if (fits_tiles(task)) return attention_on_tiles(task);
  const bool bytes = task.type_k == KvType::Q8_0 || task.type_v == KvType::Q8_0;
  task.is_decode&& bytes ? cpu::attention<Avx512Vec, ByteTiles>(task) : avx512_vnni_kernels().attention(task);
}

// Products of decoding, and all that is neither product nor attention, are AVX-512's. Processors with tiles read
// weights faster when they are asked for.
template <class... Format>
Kernels make(std::tuple<Format...>*) {
  Kernels k = avx512_vnni_kernels();
  k.name = "amx_bf16";
  k.prefill_rows = int(kBlockRows);
  k.panel_rows = 2 * kPanelRows;
  k.attention = attention;
  k.float_ahead = 1024;
  int format = 0;
  ((set_pass<Format, Pass::kPrefill>(k, format), set_pass<Format, Pass::kPrecisePrefill>(k, format), ++format), ...);
  return k;
}

}  // namespace

const Kernels& amx_bf16_kernels() {
  static const Kernels kernels = make(static_cast<formats::All*>(nullptr));
  return kernels;
}

}  // namespace gristmill::cpu

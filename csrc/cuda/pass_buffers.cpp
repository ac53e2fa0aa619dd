#include "cuda/pass_buffers.h"

#include <algorithm>
#include <array>

#include "cuda/attention.h"
#include "cuda/cuda_kv_cache.h"
#include "cuda/matmul.h"
#include "cuda/pass_data.h"
#include "cuda/sampling.h"
#include "cuda/upload.h"

namespace gristmill::cuda {
namespace {

constexpr int kMostTop = 1024;  // of a row's logits

int64_t row_tiles(int64_t n_rows) { return (n_rows + kTileRows - 1) / kTileRows; }

}  // namespace

QuantizedSizes quantized_sizes(int n, int64_t n_cols) {
  const size_t values = size_t(n) * size_t(padded_columns(n_cols));
  return {2 * values, values / 16, values / 16};
}

HalfSizes half_sizes(const DeviceInfo& device, int n, int64_t n_cols) {
  return {size_t(prefill_rows(device, n) * padded_columns(n_cols)), size_t(n)};
}

size_t top_words(int n, int k) { return 2 * size_t(n) * size_t(k) + 2 * size_t(n); }

int64_t pass_bytes(const PassShape& s, const DeviceInfo& device) {
  const KvLayout layout = layout_of(s.cache);
  const int64_t q_rows = int64_t(s.n_head) * layout.head_dim_k, attended = int64_t(s.n_head) * layout.head_dim_v;
  const int64_t kv_rows = int64_t(layout.n_head_kv) * (layout.head_dim_k + layout.head_dim_v);
  const std::array inputs = {s.n_embd, attended, s.n_ff};
  const int64_t widest = *std::ranges::max_element(inputs);
  const int n_decode = std::max(s.n_together, s.n_output_rows);
  int64_t sum = 0;
  const auto count = [&](size_t n, size_t size) { sum += allocated_bytes(int64_t(n * size)); };

  const QuantizedSizes room = quantized_sizes(n_decode, widest);
  for (int i = 0; i < 2; ++i) {
    count(room.planes, 1);
    count(room.scales, sizeof(float));
    count(room.sums, sizeof(int32_t));
  }
  const HalfSizes halves = half_sizes(device, std::max(s.n_rows, s.n_output_rows), widest);
  count(halves.values, sizeof(uint16_t));
  count(halves.scales, sizeof(float));
  int64_t scratch = 0;
  for (const int64_t width : inputs) scratch = std::max(scratch, prefill_scratch(device, width));
  count(size_t(scratch), sizeof(uint16_t));
  count(size_t(decode_partials(device)), sizeof(float));
  // decode_counters(), of the launch with the most rows; the products of a layer's input are one launch.
  const int64_t tiles = std::max(
      {row_tiles(q_rows) + 2 * row_tiles(kv_rows), 2 * row_tiles(s.n_ff), row_tiles(s.n_embd), row_tiles(s.n_vocab)});
  count(std::max(2 * size_t(tiles), size_t(n_decode) * size_t(layout.n_head_kv)), sizeof(unsigned));
  count(size_t(decode_attention_workspace(layout, s.n_head, s.n_together, device)), 1);
  count(size_t(top_candidates_workspace(s.n_output_rows, s.n_vocab, kMostTop)), 1);
  count(top_words(s.n_output_rows, kMostTop), sizeof(int32_t));
  count(PassData::bytes(std::max(s.n_rows, s.n_together), layout.head_dim_k), 1);
  return std::max(sum, Uploader::device_bytes(widest));
}

}  // namespace gristmill::cuda

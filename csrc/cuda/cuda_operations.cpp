// The operations of a pass on one GPU: what each puts into the queue, and what it leaves for the one that follows.
#include <algorithm>
#include <cstring>
#include <utility>

#include "cuda/attention.h"
#include "cuda/cuda_backend.h"
#include "cuda/elementwise.h"
#include "cuda/matrix.h"
#include "cuda/pass_buffers.h"
#include "cuda/sampling.h"

namespace gristmill::cuda {
namespace {

Matrix matrix_of(const Weight& w) { return {w.format->id, w.data, w.n_rows, w.n_cols}; }

bool reads_floats(const Product& p) { return p.weight->format->kind == formats::Kind::kFloat; }

const KvLayout& layout_of_cache(const Batch& batch) {
  return static_cast<const CudaKvCache&>(*batch.spans.front().cache).layout();
}

}  // namespace

void CudaBackend::embed(const Weight& table, std::span<const int32_t> ids, float* out) {
  settle();
  const int32_t* own = data_->ids(ids);
  const int32_t* rows = own ? own : bring(ids);
  const Matrix m = matrix_of(table);
  const int n = int(ids.size());
  queue_->push("embed", [=, this] { dequantize_rows(m, rows, n, out, stream_); }, m.tiles, rows, n, out);
}

RowOutputs CudaBackend::product_rows(int n, int64_t n_cols, bool decode) {
  RowOutputs out;
  if (decode) {
    QuantizedRoom& room = rooms_[room_ ^= 1];
    const QuantizedSizes sizes = quantized_sizes(n, n_cols);
    out.quantized.planes = grow(room.planes, sizes.planes);
    out.quantized.scales = grow(room.scales, sizes.scales);
    out.quantized.sums = grow(room.sums, sizes.sums);
    out.quantized.padded = padded_columns(n_cols);
  } else {
    out.halves.order = prefill_order(device_);
    const HalfSizes sizes = half_sizes(device_, n, n_cols);
    out.halves.values = grow(halves_, sizes.values);
    out.halves.scales = grow(half_scales_, sizes.scales);
    out.halves.padded = padded_columns(n_cols);
  }
  return out;
}

RowOutputs CudaBackend::prepare(const float* x, int n, int64_t n_cols, bool decode) {
  const RowOutputs ready = prepared_.rows;
  if (std::exchange(prepared_.x, nullptr) == x && prepared_.n == n &&
      (decode ? ready.quantized.padded : ready.halves.padded) == padded_columns(n_cols)) {
    settle();
    return ready;
  }
  RowOutputs out = product_rows(n, n_cols, decode);
  const Swiglu* s = std::get_if<Swiglu>(&held_);
  if (s && s->gate == x && s->n_elements == size_t(n) * size_t(n_cols)) {
    out.floats = s->gate;
    push_swiglu(*s, n, out);
    held_ = {};
  } else {
    settle();
    queue_->push(
        "convert", [=, this] { convert_rows(x, n, n_cols, out, stream_); }, x, n, n_cols, out.quantized.planes,
        out.halves.values);
  }
  return out;
}

void CudaBackend::rms_norm(const float* x, const float* weight, float eps, int n, int64_t n_cols, float* out) {
  // Room first: growing it empties the queue, and with it what is held back.
  RowOutputs rows = product_rows(n, n_cols, decode_);
  rows.floats = out;
  const float* addend = nullptr;
  if (const Add* a = std::get_if<Add>(&held_); a && a->x == x && a->n_elements == size_t(n) * size_t(n_cols)) {
    addend = a->y;
    held_ = {};
  }
  settle();
  queue_->push(
      "rms_norm", [=, this] { cuda::rms_norm(const_cast<float*>(x), addend, weight, eps, n, n_cols, rows, stream_); },
      x, addend, weight, eps, n, n_cols, out, rows.quantized.planes, rows.halves.values);
  prepared_ = {out, n, rows};
}

void CudaBackend::matmul(std::span<const Product> products, const float* x, int n, Phase phase) {
  const int64_t n_cols = products.front().weight->n_cols;
  std::vector<DeviceProduct> work;
  for (const Product& p : products) work.push_back({matrix_of(*p.weight), p.bias, p.y});
  if (phase == Phase::kPrefill) {
    uint16_t* scratch = grow(scratch_, size_t(prefill_scratch(device_, n_cols)));
    const HalfRows rows = prepare(x, n, n_cols, false).halves;
    for (const DeviceProduct& p : work) {
      queue_->describe(p.matrix.tiles);
      queue_->describe(p.bias);
      queue_->describe(p.y);
    }
    queue_->push(
        "prefill_matmul", [=, this] { prefill_matmul(work, rows, n, scratch, device_, stream_); }, rows.values, n,
        scratch);
    return;
  }
  const DecodeWorkspace space{grow(partials_, size_t(decode_partials(device_))),
                              counters(size_t(decode_counters(work)))};
  DecodeInput input{x, {}};
  if (std::ranges::all_of(products, reads_floats)) {
    settle();
  } else {
    input.quantized = prepare(x, n, n_cols, true).quantized;
  }
  held_ = Products{std::move(work), input, n, space, {}};
}

void CudaBackend::rope(float* x, int n, int n_heads, int head_dim, int dims, const float* cos_sin, RopeStyle style) {
  const Rope rope{x, n, n_heads, head_dim, dims, data_->table(cos_sin), style};
  if (Products* p = std::get_if<Products>(&held_);
      p && p->products.size() == 3 && p->ropes.size() < 2 && p->products[p->ropes.size()].y == x) {
    p->ropes.push_back(rope);
    return;
  }
  settle();
  push_rope(rope);
}

void CudaBackend::store_kv(const Batch& batch, int layer, const float* k, const float* v) {
  const KvLayout layout = layout_of_cache(batch);
  if (const Products* p = std::get_if<Products>(&held_);
      p && p->ropes.size() == 2 && p->products[1].y == k && p->products[2].y == v && p->n == batch_.n) {
    const Rope& r = p->ropes[0];
    const Finish finish = StoreHeads{batch_, layout, layer, r.dims, r.cos_sin, r.style};
    if (can_finish(p->products, finish)) {
      push_products(*p, finish);
      held_ = {};
      return;
    }
  }
  settle();
  queue_->push(
      "store_kv", [=, this, rows = batch_] { cuda::store_kv(rows, layout, layer, k, v, stream_); }, layer, k, v,
      batch_.n, batch_.positions, batch_.sequences, batch_.caches, layout.n_ctx, int(layout.type_k),
      int(layout.type_v));
}

void CudaBackend::attention(const Batch& batch, int layer, const float* q, int n_head, float scale, float* out) {
  const KvLayout layout = layout_of_cache(batch);
  if (batch.is_decode()) {
    std::byte* space = grow(attention_space_, size_t(decode_attention_workspace(layout, n_head, batch_.n, device_)));
    unsigned* arrivals = counters(size_t(batch_.n) * size_t(layout.n_head_kv));
    RowOutputs rows_out;
    if (decode_attention_quantizes(layout, n_head, device_))
      rows_out = product_rows(batch_.n, int64_t(n_head) * layout.head_dim_v, true);
    settle();
    prepared_ = {rows_out.quantized.planes ? out : nullptr, batch_.n, rows_out};
    queue_->push(
        "decode_attention",
        [=, this, rows = batch_] {
          decode_attention(rows, layout, layer, q, n_head, scale, out, rows_out.quantized, space, arrivals, device_,
                           stream_);
        },
        layer, q, n_head, scale, out, rows_out.quantized.planes, space, arrivals, batch_.n, batch_.positions,
        batch_.sequences, batch_.caches, layout.n_ctx, int(layout.type_k), int(layout.type_v));
    return;
  }
  settle();
  for (const Span& span : batch.spans) {
    const std::byte* cache = static_cast<const CudaKvCache&>(*span.cache).data();
    const float* q_rows = q + int64_t(span.first_row) * n_head * layout.head_dim_k;
    float* out_rows = out + int64_t(span.first_row) * n_head * layout.head_dim_v;
    const int n = span.n_rows;
    const int64_t n_past = span.cache->n_past();
    queue_->push(
        "prefill_attention",
        [=, this] { prefill_attention(cache, layout, layer, q_rows, n_head, n, n_past, scale, out_rows, stream_); },
        cache, layer, q_rows, n_head, n, n_past, scale, out_rows);
  }
}

void CudaBackend::swiglu(float* gate, const float* up, size_t n_elements) {
  if (const Products* p = std::get_if<Products>(&held_); p && p->products.size() == 2 && p->products[0].y == gate &&
                                                         p->products[1].y == up &&
                                                         can_finish(p->products, GateRows{})) {
    const Products both = *p;
    held_ = {};  // before room is made, which may empty the queue
    RowOutputs rows = product_rows(both.n, both.products[0].matrix.n_rows, true);
    rows.floats = gate;
    push_products(both, GateRows{rows});
    prepared_ = {gate, both.n, rows};
    return;
  }
  settle();
  held_ = Swiglu{gate, up, n_elements};
}

void CudaBackend::add(float* x, const float* y, size_t n_elements) {
  settle();
  held_ = Add{x, y, n_elements};
}

void CudaBackend::gather_rows(const float* x, std::span<const int> rows, int64_t n_cols, float* out) {
  const int32_t* own = data_->rows(rows);
  const int32_t* indices = own ? own : bring(rows);
  const int n = int(rows.size());
  const float* addend = nullptr;
  // Of all rows, as in decoding: what is not gathered would not be added.
  const auto has_all = [&](const Add& a) {
    int next = 0;
    return a.n_elements == rows.size() * size_t(n_cols) &&
           std::ranges::all_of(rows, [&](int r) { return r == next++; });
  };
  if (const Add* a = std::get_if<Add>(&held_); a && a->x == x && has_all(*a)) {
    addend = a->y;
    held_ = {};
  }
  settle();
  queue_->push(
      "gather_rows", [=, this] { cuda::gather_rows(const_cast<float*>(x), addend, indices, n, n_cols, out, stream_); },
      x, addend, indices, n, n_cols, out);
}

void CudaBackend::top_logits(const float* logits, int n, int64_t row_length, const TopLogits& to) {
  const size_t places = size_t(n) * size_t(to.k), words = top_words(n, to.k);
  const int k = to.k;
  const int64_t n_vocab = to.n_vocab;
  std::byte* space = grow(top_space_, size_t(top_candidates_workspace(n, row_length, k)));
  // Ids, logits, whether finite, and sums, which nobody reads: one copy brings them all.
  int32_t* ids = grow(top_found_, words);
  float* values = reinterpret_cast<float*>(ids + places);
  int32_t* finite = ids + 2 * places;
  float* sums = reinterpret_cast<float*>(finite + n);
  settle();
  queue_->push(
      "top_candidates",
      [=, this] { top_candidates(logits, n, row_length, n_vocab, k, ids, values, sums, finite, space, stream_); },
      logits, n, row_length, n_vocab, k, ids, space);
  flush(decode_);
  if (words > top_host_size_) {
    top_host_ = make_pinned<int32_t>(words);
    top_host_size_ = words;
  }
  copy_to_host(top_host_.get(), ids, words * sizeof(int32_t), stream_);
  synchronize(stream_);
  std::memcpy(to.ids, top_host_.get(), places * sizeof(int32_t));
  std::memcpy(to.values, top_host_.get() + places, places * sizeof(float));
  std::memcpy(to.finite, top_host_.get() + 2 * places, size_t(n) * sizeof(int32_t));
}

}  // namespace gristmill::cuda

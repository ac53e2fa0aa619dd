#include "cuda/cuda_backend.h"

#include <algorithm>

#include "core/error.h"
#include "cuda/attention.h"
#include "cuda/elementwise.h"
#include "cuda/matrix.h"
#include "cuda/upload.h"

namespace gristmill::cuda {
namespace {

Matrix matrix_of(const Weight& w) { return {w.format->id, w.data, w.n_rows, w.n_cols}; }

bool reads_floats(const Weight& w) { return w.format->kind == formats::Kind::kFloat; }

}  // namespace

CudaBackend::CudaBackend(int device) : device_(device_info(device)) {
  if (device_.major < 8)
    throw DeviceError("[cuda] " + device_.name + " has compute capability " + std::to_string(device_.major) + "." +
                      std::to_string(device_.minor) + ", expected at least 8.0");
  use();
  stream_ = make_stream();
}

CudaBackend::~CudaBackend() { destroy_stream(stream_); }

std::shared_ptr<float[]> CudaBackend::allocate(size_t n) {
  use();
  return std::shared_ptr<float[]>(make_device<float>(n));
}

std::shared_ptr<const float[]> CudaBackend::upload_vector(const Weight& w) {
  if (!w) return nullptr;
  std::vector<float> host(size_t(w.n_cols));
  w.format->to_float(w.data, host.data(), w.n_cols);
  auto out = allocate(host.size());
  copy_to_device(out.get(), host.data(), host.size() * sizeof(float), stream_);
  synchronize(stream_);  // the host's copy goes
  return out;
}

Weight CudaBackend::upload_matrix(const Weight& w) {
  if (!w) return w;
  use();
  matrices_.push_back(upload_tiles(w, stream_));
  return {w.format, matrices_.back().get(), w.n_rows, w.n_cols};
}

std::unique_ptr<KvCache> CudaBackend::make_cache(const KvShape& shape) {
  use();
  return std::make_unique<CudaKvCache>(shape);
}

template <class T>
const T* CudaBackend::send(Buffer<T>& to, const std::vector<T>& values) {
  T* p = to.grow(values.size());
  copy_to_device(p, values.data(), values.size() * sizeof(T), stream_);
  return p;
}

void CudaBackend::begin(const Batch& batch) {
  use();
  std::vector<int32_t> positions(batch.positions.begin(), batch.positions.end()), sequences(batch.tokens.size());
  std::vector<std::byte*> caches;
  for (const Span& span : batch.spans) {
    std::fill_n(sequences.begin() + span.first_row, span.n_rows, int32_t(caches.size()));
    caches.push_back(static_cast<const CudaKvCache&>(*span.cache).data());
  }
  batch_ = {batch.n_rows(), send(positions_, positions), send(sequences_, sequences), send(caches_, caches)};
}

void CudaBackend::embed(const Weight& table, std::span<const int32_t> ids, float* out) {
  dequantize_rows(matrix_of(table), send(ids_, {ids.begin(), ids.end()}), int(ids.size()), out, stream_);
}

void CudaBackend::rms_norm(const float* x, const float* weight, float eps, int n, int64_t n_cols, float* out) {
  // Without an addend x is only read.
  cuda::rms_norm(const_cast<float*>(x), nullptr, weight, eps, n, n_cols, {out, {}, {}}, stream_);
}

QuantizedRows CudaBackend::quantized(const float* x, int n, int64_t n_cols) {
  const int64_t padded = padded_columns(n_cols), rows = n;
  const QuantizedRows q{planes_.grow(size_t(rows * 2 * padded)), scales_.grow(size_t(rows * padded / 32)),
                        sums_.grow(size_t(rows * padded / 16)), padded};
  convert_rows(x, n, n_cols, {nullptr, q, {}}, stream_);
  return q;
}

HalfRows CudaBackend::halves(const float* x, int n, int64_t n_cols) {
  const int64_t padded = padded_columns(n_cols);
  const HalfRows h{halves_.grow(size_t(n * padded)), half_scales_.grow(size_t(n)), padded};
  convert_rows(x, n, n_cols, {nullptr, {}, h}, stream_);
  return h;
}

unsigned* CudaBackend::counters(size_t n) {
  if (n > counters_.size()) {
    counters_.grow(n);
    fill(counters_.get(), 0, n * sizeof(unsigned), stream_);
  }
  return counters_.get();
}

void CudaBackend::matmul(std::span<const Product> products, const float* x, int n, bool decode) {
  const int64_t n_cols = products.front().weight->n_cols;
  std::vector<DeviceProduct> work;
  int64_t row_tiles = 0;
  for (const Product& p : products) {
    work.push_back({matrix_of(*p.weight), p.bias, p.y});
    row_tiles += work.back().matrix.row_tiles();
  }
  if (!decode) {
    uint16_t* scratch = scratch_.grow(size_t(prefill_scratch(device_, n_cols)));
    prefill_matmul(work, halves(x, n, n_cols), n, scratch, device_, stream_);
    return;
  }
  DecodeInput input{x, {}};
  if (!std::ranges::all_of(products, [](const Product& p) { return reads_floats(*p.weight); }))
    input.quantized = quantized(x, n, n_cols);
  const DecodeWorkspace space{partials_.grow(size_t(decode_partials(device_))), counters(size_t(row_tiles))};
  decode_matmul(work, input, n, space, device_, false, stream_);
}

void CudaBackend::rope(float* x, int n, int n_heads, int head_dim, int dims, const float* cos_sin, RopeStyle style) {
  cuda::rope(x, n, n_heads, head_dim, dims, cos_sin, style, stream_);
}

void CudaBackend::store_kv(const Batch& batch, int layer, const float* k, const float* v) {
  cuda::store_kv(batch_, static_cast<const CudaKvCache&>(*batch.spans.front().cache).layout(), layer, k, v, stream_);
}

void CudaBackend::attention(const Batch& batch, int layer, const float* q, int n_head, float scale, float* out) {
  const KvLayout& layout = static_cast<const CudaKvCache&>(*batch.spans.front().cache).layout();
  if (batch.is_decode()) {
    std::byte* space =
        attention_space_.grow(size_t(decode_attention_workspace(layout, n_head, batch.n_rows(), device_)));
    decode_attention(batch_, layout, layer, q, n_head, scale, out, space,
                     counters(size_t(batch.n_rows()) * size_t(layout.n_head_kv)), device_, stream_);
    return;
  }
  for (const Span& span : batch.spans) {
    const auto& cache = static_cast<const CudaKvCache&>(*span.cache);
    prefill_attention(cache.data(), layout, layer, q + int64_t(span.first_row) * n_head * layout.head_dim_k, n_head,
                      span.n_rows, cache.n_past(), scale, out + int64_t(span.first_row) * n_head * layout.head_dim_v,
                      stream_);
  }
}

void CudaBackend::swiglu(float* gate, const float* up, size_t n_elements) {
  cuda::swiglu(gate, up, 1, int64_t(n_elements), {gate, {}, {}}, stream_);
}

void CudaBackend::add(float* x, const float* y, size_t n_elements) { cuda::add(x, y, int64_t(n_elements), stream_); }

void CudaBackend::upload(const float* host, size_t n, float* to) {
  copy_to_device(to, host, n * sizeof(float), stream_);
}

void CudaBackend::download(const float* from, size_t n, float* host) {
  copy_to_host(host, from, n * sizeof(float), stream_);
  synchronize(stream_);
}

void CudaBackend::gather_rows(const float* x, std::span<const int> rows, int64_t n_cols, float* out) {
  cuda::gather_rows(x, send(rows_, {rows.begin(), rows.end()}), int(rows.size()), n_cols, out, stream_);
}

}  // namespace gristmill::cuda

#include "cuda/cuda_backend.h"

#include <algorithm>

#include "core/error.h"
#include "cuda/elementwise.h"

namespace gristmill::cuda {

CudaBackend::CudaBackend(int device) : device_(device_info(device)) {
  if (!device_.unusable.empty())
    throw DeviceError("[cuda:" + std::to_string(device) + "] " + device_.name + " cannot be used: " + device_.unusable);
  switches();  // a wrong one is an error of loading
  use();
  own_stream_.reset(make_stream());
  stream_ = own_stream_.get();
  queue_ = std::make_unique<CommandQueue>(stream_);
  data_ = std::make_unique<PassData>(stream_);
  for (EventPointer& event : behind_) event.reset(make_event());
}

CudaBackend::~CudaBackend() {
  try {
    use();
    synchronize(stream_);         // memory goes after the work that uses it
  } catch (const DeviceError&) {  // of a kernel that failed: reported when it was waited for
  }
  queue_.reset();
  data_.reset();
}

// --- Memory

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
  if (!uploader_) uploader_ = std::make_unique<Uploader>(stream_);
  matrices_.push_back(uploader_->upload(w));
  return {w.format, matrices_.back().get(), w.n_rows, w.n_cols};
}

void CudaBackend::end_upload() {
  if (!uploader_) return;
  synchronize(stream_);
  uploader_.reset();
}

std::unique_ptr<KvCache> CudaBackend::make_cache(const KvShape& shape) {
  use();
  return std::make_unique<CudaKvCache>(shape);
}

// Against free memory: taking and giving back gigabytes takes its time.
void CudaBackend::check_cache(const KvShape& shape) {
  use();
  end_upload();
  const int64_t bytes = allocated_bytes(layout_of(shape).total_bytes()), free_bytes = free_memory();
  if (bytes > free_bytes)
    throw DeviceError("[cuda:" + std::to_string(device_.index) + "] a cache for " + std::to_string(shape.n_ctx) +
                      " positions takes " + std::to_string(bytes) + " bytes, and " + std::to_string(free_bytes) +
                      " are free");
}

unsigned* CudaBackend::counters(size_t n) {
  if (n > counters_.size) {
    grow(counters_, n);
    counters_stale_ = true;  // until they are filled
    fill(counters_.memory.get(), 0, n * sizeof(unsigned), stream_);
    counters_stale_ = false;
  }
  return counters_.memory.get();
}

void CudaBackend::upload(const float* host, size_t n, float* to) {
  flush(false);
  copy_to_device(to, host, n * sizeof(float), stream_);
  synchronize(stream_);  // a copy from pageable memory may still read it
}

void CudaBackend::upload_table(const float* host, size_t n, float* to) {
  flush(false);  // nothing, but where a pass uploads twice
  data_->set_table(host, n, to);
  batch_ = data_->batch();
}

const int32_t* CudaBackend::bring(std::span<const int32_t> indices) {
  flush(false);  // commands in the queue may read what was brought before
  int32_t* p = grow(indices_, indices.size());
  copy_to_device(p, indices.data(), indices.size_bytes(), stream_);
  synchronize(stream_);
  return p;
}

void CudaBackend::download(const float* from, size_t n, float* host) {
  flush(decode_);
  copy_to_host(host, from, n * sizeof(float), stream_);
  synchronize(stream_);
}

// --- The order of a pass

void CudaBackend::begin(const Batch& batch) {
  use();
  end_upload();
  // What a pass that was given up left.
  held_ = {};
  prepared_ = {};
  n_caught_up_ = 0;
  queue_->clear();
  if (counters_stale_ && counters_.memory) {
    fill(counters_.memory.get(), 0, counters_.size * sizeof(unsigned), stream_);
    counters_stale_ = false;
  }
  room_ = 0;  // the same rooms in every pass, or equal steps would be different lists
  decode_ = batch.is_decode();
  data_->begin(batch);
  batch_ = data_->batch();
}

void CudaBackend::settle() {
  if (const Add* a = std::get_if<Add>(&held_)) {
    queue_->push(
        "add", [this, a = *a] { cuda::add(a.x, a.y, int64_t(a.n_elements), stream_); }, a->x, a->y, a->n_elements);
  } else if (const Swiglu* s = std::get_if<Swiglu>(&held_)) {
    push_swiglu(*s, 1, {s->gate, {}, {}});
  } else if (const Products* p = std::get_if<Products>(&held_)) {
    push_products(*p, {});
    for (const Rope& r : p->ropes) push_rope(r);
  }
  held_ = {};
}

void CudaBackend::flush(bool may_repeat) {
  use();
  settle();
  start(may_repeat);
}

void CudaBackend::start(bool may_repeat) {
  if (queue_->empty()) return;
  data_->send();
  try {
    queue_->flush(may_repeat);
  } catch (...) {
    counters_stale_ = true;  // who was to come last, and to set them to 0, may not have been started
    throw;
  }
}

// Every few layers, and then for those that were started the time before: the GPU always has some ahead. What is held
// back stays so, to be fused. A decoding step is over before anyone waits, and is one graph.
void CudaBackend::catch_up() {
  constexpr int kLayers = 4;
  if (decode_ || n_caught_up_++ % kLayers != 0) return;
  use();
  start(false);
  const int turn = n_caught_up_ / kLayers % 2;
  record(behind_[turn].get(), stream_);
  if (n_caught_up_ > kLayers) synchronize(behind_[turn ^ 1].get());
}

void CudaBackend::push_swiglu(const Swiglu& s, int n, const RowOutputs& out) {
  queue_->push(
      "swiglu", [=, this] { cuda::swiglu(s.gate, s.up, n, int64_t(s.n_elements) / n, out, stream_); }, s.gate, s.up,
      s.n_elements, n, out.floats, out.quantized.planes, out.halves.values);
}

void CudaBackend::push_rope(const Rope& r) {
  queue_->push(
      "rope", [=, this] { cuda::rope(r.x, r.n, r.n_heads, r.head_dim, r.dims, r.cos_sin, r.style, stream_); }, r.x, r.n,
      r.n_heads, r.head_dim, r.dims, r.cos_sin, int(r.style));
}

void CudaBackend::push_products(const Products& p, const Finish& finish) {
  for (const DeviceProduct& one : p.products) {
    queue_->describe(one.matrix.tiles);
    queue_->describe(one.bias);
    queue_->describe(one.y);
  }
  if (const StoreHeads* f = std::get_if<StoreHeads>(&finish)) {
    queue_->describe(f->layer);
    queue_->describe(f->batch.positions);
    queue_->describe(f->batch.sequences);
    queue_->describe(f->batch.caches);
    queue_->describe(f->layout.n_ctx);
    queue_->describe(int(f->layout.type_k));
    queue_->describe(int(f->layout.type_v));
    queue_->describe(f->cos_sin);
    queue_->describe(f->dims);
  } else if (const GateRows* g = std::get_if<GateRows>(&finish)) {
    queue_->describe(g->out.floats);
    queue_->describe(g->out.quantized.planes);
  }
  // Dependent launches: the weights' first tiles are on their way before the kernel ahead has ended.
  if (!queue_->repeats("decode_matmul", p.input.floats, p.input.quantized.planes, p.n, p.space.partials,
                       p.space.counters, finish.index()))
    queue_->store([=, this] { decode_matmul(p.products, p.input, p.n, p.space, finish, device_, true, stream_); });
}

}  // namespace gristmill::cuda

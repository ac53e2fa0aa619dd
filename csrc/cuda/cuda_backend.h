// The seam on one GPU: every operation is a kernel or a few on one stream, in order, collected in a queue until
// something is downloaded. Weights are turned into tiles as they are uploaded.
//
// Neighbours are fused where the seam's order lets them: an addition with the norm or the gathering of all rows that
// follows, a norm or gated activation with the quantization of its result for the product that follows.
#pragma once

#include <memory>
#include <span>
#include <variant>
#include <vector>

#include "backend.h"
#include "cuda/command_queue.h"
#include "cuda/cuda_kv_cache.h"
#include "cuda/matmul.h"
#include "cuda/pass_data.h"
#include "cuda/runtime.h"
#include "cuda/upload.h"

namespace gristmill::cuda {

class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(int device);
  ~CudaBackend() override;

  int n_threads() const override { return 1; }
  const DeviceInfo& device() const { return device_; }
  int n_graphs() const { return queue_->n_graphs(); }
  size_t n_commands() const { return queue_->n_commands(); }

  std::shared_ptr<float[]> allocate(size_t n) override;
  std::shared_ptr<const float[]> upload_vector(const Weight& w) override;
  Weight upload_matrix(const Weight& w) override;
  std::unique_ptr<KvCache> make_cache(const KvShape& shape) override;
  void check_cache(const KvShape& shape) override;
  void begin(const Batch& batch) override;
  // A pass without logits goes on behind this, so that the next one is prepared meanwhile: a kernel's fault is reported
  // by what waits next, and nothing can be had from the GPU after one.
  void end() override { flush(decode_); }
  void catch_up() override;
  void embed(const Weight& table, std::span<const int32_t> ids, float* out) override;
  void rms_norm(const float* x, const float* weight, float eps, int n, int64_t n_cols, float* out) override;
  void matmul(std::span<const Product> products, const float* x, int n, Phase phase) override;
  void rope(float* x, int n, int n_heads, int head_dim, int dims, const float* cos_sin, RopeStyle style) override;
  void store_kv(const Batch& batch, int layer, const float* k, const float* v) override;
  void attention(const Batch& batch, int layer, const float* q, int n_head, float scale, float* out) override;
  void swiglu(float* gate, const float* up, size_t n_elements) override;
  void add(float* x, const float* y, size_t n_elements) override;
  void upload(const float* host, size_t n, float* to) override;
  void upload_table(const float* host, size_t n, float* to) override;
  void download(const float* from, size_t n, float* host) override;
  bool writes_host() const override { return false; }
  bool finds_top_logits() const override { return true; }
  void top_logits(const float* logits, int n, int64_t row_length, const TopLogits& to) override;
  void gather_rows(const float* x, std::span<const int> rows, int64_t n_cols, float* out) override;

 private:
  template <class T>
  struct Buffer {
    DevicePointer<T> memory;
    size_t size = 0;
  };
  // Held back in the hope that what follows can be fused with it.
  struct Add {
    float* x;
    const float* y;
    size_t n_elements;
  };
  struct Swiglu {
    float* gate;
    const float* up;
    size_t n_elements;
  };
  struct Rope {
    float* x;
    int n, n_heads, head_dim, dims;
    const float* cos_sin;
    RopeStyle style;
  };
  struct Products {
    std::vector<DeviceProduct> products;
    DecodeInput input;
    int n;
    DecodeWorkspace space;
    std::vector<Rope> ropes;  // that came after it
  };
  // Activations in a form that products read, made with x by the kernel that made x.
  struct Prepared {
    const float* x = nullptr;
    int n = 0;
    RowOutputs rows;
  };

  // A buffer's memory, at least n of T; growing it loses what it held.
  template <class T>
  T* grow(Buffer<T>& buffer, size_t n);
  // Indices that are not the batch's own, to the device.
  const int32_t* bring(std::span<const int32_t> indices);
  unsigned* counters(size_t n);
  void end_upload();  // its buffers go
  void use() const { set_device(device_.index); }
  void settle();  // queues what is held back
  void flush(bool may_repeat);
  void start(bool may_repeat);  // the same without what is held back

  // Room for x in the form that products of decoding, or of prefill, read: for decoding there are two rooms in turn, so
  // that a product may make the other's.
  RowOutputs product_rows(int n, int64_t n_cols, bool decode);
  // Fills it, unless the kernel that made x has done so.
  RowOutputs prepare(const float* x, int n, int64_t n_cols, bool decode);
  void push_swiglu(const Swiglu& s, int n, const RowOutputs& out);
  void push_rope(const Rope& r);
  void push_products(const Products& p, const Finish& finish);

  DeviceInfo device_;
  StreamPointer own_stream_;  // goes last, also where the constructor fails
  Stream stream_ = nullptr;   // own_stream_'s
  std::unique_ptr<CommandQueue> queue_;
  std::vector<DevicePointer<std::byte>> matrices_;
  std::unique_ptr<Uploader> uploader_;  // while weights are loaded

  // The pass.
  bool decode_ = false;
  std::unique_ptr<PassData> data_;
  DeviceBatch batch_;  // data_'s
  std::variant<std::monostate, Add, Swiglu, Products> held_;
  Prepared prepared_;
  Buffer<int32_t> indices_;
  int n_caught_up_ = 0;     // calls of catch_up()
  EventPointer behind_[2];  // recorded in turn by those that started something

  struct QuantizedRoom {
    Buffer<int8_t> planes;
    Buffer<float> scales;
    Buffer<int32_t> sums;
  };
  QuantizedRoom rooms_[2];
  int room_ = 0;
  Buffer<float> half_scales_, partials_;
  Buffer<uint16_t> halves_, scratch_;
  Buffer<unsigned> counters_;    // 0 between launches,
  bool counters_stale_ = false;  // unless a list of them failed half-way
  Buffer<std::byte> attention_space_;

  Buffer<std::byte> top_space_;
  Buffer<int32_t> top_found_;
  PinnedPointer<int32_t> top_host_;
  size_t top_host_size_ = 0;
};

template <class T>
T* CudaBackend::grow(Buffer<T>& buffer, size_t n) {
  if (n > buffer.size) {
    use();
    // Commands in the queue may point to the old memory.
    flush(false);
    synchronize(stream_);
    queue_->forget();
    buffer.memory.reset();
    buffer.size = 0;
    buffer.memory = make_device<T>(n);
    buffer.size = n;
  }
  return buffer.memory.get();
}

}  // namespace gristmill::cuda

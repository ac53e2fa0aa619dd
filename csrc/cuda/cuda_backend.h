// The seam on one GPU: every operation is a kernel or a few on one stream, in order; only downloads wait. Weights are
// turned into tiles as they are uploaded.
#pragma once

#include <memory>
#include <vector>

#include "backend.h"
#include "cuda/cuda_kv_cache.h"
#include "cuda/matmul.h"
#include "cuda/runtime.h"

namespace gristmill::cuda {

class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(int device);
  ~CudaBackend() override;

  int n_threads() const override { return 1; }
  const DeviceInfo& device() const { return device_; }

  std::shared_ptr<float[]> allocate(size_t n) override;
  std::shared_ptr<const float[]> upload_vector(const Weight& w) override;
  Weight upload_matrix(const Weight& w) override;
  std::unique_ptr<KvCache> make_cache(const KvShape& shape) override;
  void begin(const Batch& batch) override;
  void embed(const Weight& table, std::span<const int32_t> ids, float* out) override;
  void rms_norm(const float* x, const float* weight, float eps, int n, int64_t n_cols, float* out) override;
  void matmul(std::span<const Product> products, const float* x, int n, bool decode) override;
  void rope(float* x, int n, int n_heads, int head_dim, int dims, const float* cos_sin, RopeStyle style) override;
  void store_kv(const Batch& batch, int layer, const float* k, const float* v) override;
  void attention(const Batch& batch, int layer, const float* q, int n_head, float scale, float* out) override;
  void swiglu(float* gate, const float* up, size_t n_elements) override;
  void add(float* x, const float* y, size_t n_elements) override;
  void upload(const float* host, size_t n, float* to) override;
  void download(const float* from, size_t n, float* host) override;
  bool writes_host() const override { return false; }
  void gather_rows(const float* x, std::span<const int> rows, int64_t n_cols, float* out) override;

 private:
  // Device memory that grows to what is asked for; what it held is lost.
  template <class T>
  class Buffer {
   public:
    T* grow(size_t n) {
      if (n > size_) {
        memory_.reset();
        size_ = 0;
        memory_ = make_device<T>(n);
        size_ = n;
      }
      return memory_.get();
    }
    T* get() const { return memory_.get(); }
    size_t size() const { return size_; }

   private:
    DevicePointer<T> memory_;
    size_t size_ = 0;
  };

  // Small arrays of a pass, copied in one piece.
  template <class T>
  const T* send(Buffer<T>& to, const std::vector<T>& values);
  // x in the forms that the products of decoding and of prefill read.
  QuantizedRows quantized(const float* x, int n, int64_t n_cols);
  HalfRows halves(const float* x, int n, int64_t n_cols);
  unsigned* counters(size_t n);
  void use() const { set_device(device_.index); }

  DeviceInfo device_;
  Stream stream_ = nullptr;
  std::vector<DevicePointer<std::byte>> matrices_;

  // The pass.
  Buffer<int32_t> ids_, positions_, sequences_, rows_;
  Buffer<std::byte*> caches_;
  DeviceBatch batch_;

  Buffer<int8_t> planes_;
  Buffer<float> scales_, partials_;
  Buffer<int32_t> sums_;
  Buffer<unsigned> counters_;
  Buffer<std::byte> attention_space_;
  Buffer<uint16_t> halves_, scratch_;
  Buffer<float> half_scales_;
};

}  // namespace gristmill::cuda

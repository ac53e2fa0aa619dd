// The seam between devices, cut at transformer operations. Models are written once against this; a device implements
// it. Pointers are to memory of the backend's own (Backend::allocate); only embed's ids and the final logits touch the
// host. All activations are float32, row-major; n is the number of token rows in the batch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "formats/registry.h"

namespace gristmill {

// A matrix as the file holds it: n_rows rows of n_cols weights, each row a whole number of blocks.
struct Weight {
  const formats::FormatInfo* format = nullptr;
  const std::byte* data = nullptr;
  int64_t n_rows = 0, n_cols = 0;

  explicit operator bool() const { return data != nullptr; }
  int64_t row_bytes() const { return n_cols / format->block_size * format->type_size; }
};

enum class KvType { F32, F16, Q8_0 };

struct KvShape {
  int n_layer, n_head_kv, head_dim_k, head_dim_v;
  int64_t n_ctx;  // positions
  KvType type_k, type_v;
};

// Keys and values of one sequence. Address space for the whole context is reserved; memory is taken as positions fill.
class KvCache {
 public:
  explicit KvCache(const KvShape& shape) : shape_(shape) {}
  virtual ~KvCache() = default;
  const KvShape& shape() const { return shape_; }
  int64_t n_past() const { return n_past_; }
  void advance(int64_t n) { n_past_ += n; }
  // Keeps the first n positions; the memory of the rest may go back to the system.
  virtual void truncate(int64_t n) { n_past_ = n; }

 private:
  KvShape shape_;
  int64_t n_past_ = 0;
};

// The rows that one sequence adds to a batch: rows [first_row, first_row + n_rows), positions n_past, n_past + 1, ...
struct Span {
  KvCache* cache;
  int first_row;
  int n_rows;
};

// Where the largest logits of some rows go, in host memory: what a sampler chain mostly needs of a vocabulary.
struct TopLogits {
  int k = 0;                  // of each row, below n_vocab
  int64_t n_vocab = 0;        // tokens that take part; a model may have rows beyond its vocabulary
  int32_t* ids = nullptr;     // [n, k], largest logit first, equal ones by id
  float* values = nullptr;    // [n, k]
  int32_t* finite = nullptr;  // [n], 0 where a logit of the row is NaN or infinite

  TopLogits from_row(int64_t row) const { return {k, n_vocab, ids + row * k, values + row * k, finite + row}; }
};

// What the rows of a product's input are.
enum class Phase {
  kPrefill,  // tokens of a prompt
  kDecode,   // one token of each sequence
  kHead,     // what the output head makes logits of
};

// Tokens of one or several sequences, sequence after sequence.
struct Batch {
  std::vector<int32_t> tokens;
  std::vector<int64_t> positions;
  std::vector<Span> spans;
  std::vector<int> output_rows;  // rows whose logits are wanted
  // Host memory [n_layer + 1, n_rows, n_embd] for the residual stream before each layer and after the last, or nullptr.
  float* residuals = nullptr;
  const TopLogits* top = nullptr;  // what is wanted of output_rows instead of their logits, or nullptr
  int n_rows() const { return int(tokens.size()); }
  // Decoding (one row a sequence) and prefill choose kernels by this, never by how many sequences share the batch, so
  // that a sequence gets the same bits alone and in company.
  bool is_decode() const { return spans.size() == tokens.size(); }
  Phase phase() const { return is_decode() ? Phase::kDecode : Phase::kPrefill; }
};

enum class RopeStyle {
  kInterleaved,  // pairs (2i, 2i + 1): `llama`
  kNeox,         // pairs (i, i + dims / 2): `qwen2`
};

// One product of several that share their input x: y[t] = weight . x[t] + bias.
struct Product {
  const Weight* weight;
  const float* bias;  // [n_rows] or nullptr
  float* y;           // [n, n_rows]
};

class Backend {
 public:
  virtual ~Backend() = default;
  // Threads that compute, where the device has such.
  virtual int n_threads() const = 0;

  // n floats of work space, aligned to 64 bytes. Throws DeviceError.
  virtual std::shared_ptr<float[]> allocate(size_t n) = 0;
  // A vector of weights (norm, bias) as float32 in the backend's memory; nullptr for an absent one.
  virtual std::shared_ptr<const float[]> upload_vector(const Weight& w) = 0;
  // A matrix where the backend's kernels want it; one that works on the file's own bytes gives back what it got. The
  // memory is the backend's and lives as long as it does. Throws DeviceError.
  virtual Weight upload_matrix(const Weight& w) { return w; }
  virtual std::unique_ptr<KvCache> make_cache(const KvShape& shape) = 0;
  // Throws what make_cache() would throw now.
  virtual void check_cache(const KvShape& shape) { make_cache(shape); }

  // What follows, uploads and operations, belongs to this layer; n_layer stands for the output head, and the embedding
  // goes with layer 0. For a backend that keeps layers in several places.
  virtual void at_layer(int /*layer*/) {}
  // Whether two layers lie in one place, so that a matrix uploaded for one serves the other.
  virtual bool share_memory(int /*layer*/, int /*other*/) const { return true; }

  // Called before the first and after the last operation of a pass. A pass that is given up has no end, and what it was
  // to write need not be written.
  virtual void begin(const Batch& /*batch*/) {}
  virtual void end() {}
  // Called between layers of a pass that may be given up there. A device that only collects what it is told starts it,
  // and waits until it is not far behind, so that what is left when the pass is given up is soon over.
  virtual void catch_up() {}
  // out[t] = row ids[t] of table, [n, n_cols]
  virtual void embed(const Weight& table, std::span<const int32_t> ids, float* out) = 0;
  // out[t] = x[t] / sqrt(mean(x[t]^2) + eps) * weight
  virtual void rms_norm(const float* x, const float* weight, float eps, int n, int64_t n_cols, float* out) = 0;
  // Every product of the same x [n, n_cols].
  virtual void matmul(std::span<const Product> products, const float* x, int n, Phase phase) = 0;
  // Rotates the first `dims` of every head in place; cos_sin [n, dims] holds dims / 2 cosines, then as many sines.
  virtual void rope(float* x, int n, int n_heads, int head_dim, int dims, const float* cos_sin, RopeStyle style) = 0;
  // Writes k [n, n_head_kv * head_dim_k] and v to each span's cache, from position n_past on.
  virtual void store_kv(const Batch& batch, int layer, const float* k, const float* v) = 0;
  // Causal attention of q [n, n_head * head_dim_k] over each span's cache; out [n, n_head * head_dim_v].
  virtual void attention(const Batch& batch, int layer, const float* q, int n_head, float scale, float* out) = 0;
  // gate = silu(gate) * up
  virtual void swiglu(float* gate, const float* up, size_t n_elements) = 0;
  // x += y
  virtual void add(float* x, const float* y, size_t n_elements) = 0;
  // Copies n floats of host data in. The host's memory may change afterwards.
  virtual void upload(const float* host, size_t n, float* to) = 0;
  // The same for the table that rope() of this pass reads, before any other operation; to nobody else is it there.
  virtual void upload_table(const float* host, size_t n, float* to) { upload(host, n, to); }
  // Copies n floats to the host, after everything before is done. `from` may be the host's own memory where
  // writes_host() holds, and then there is nothing to copy.
  virtual void download(const float* from, size_t n, float* host) = 0;
  // Whether operations can write to ordinary host memory.
  virtual bool writes_host() const = 0;
  // Whether top_logits() is there.
  virtual bool finds_top_logits() const { return false; }
  // The largest of each row of logits [n, row_length], after everything before is done.
  virtual void top_logits(const float* /*logits*/, int /*n*/, int64_t /*row_length*/, const TopLogits& /*to*/) {}
  // Rows of x [*, n_cols] by index -> out [rows.size(), n_cols]
  virtual void gather_rows(const float* x, std::span<const int> rows, int64_t n_cols, float* out) = 0;
};

}  // namespace gristmill

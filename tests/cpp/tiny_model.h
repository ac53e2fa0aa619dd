// A model of a few kilobytes, as the Python side hands it over: a file of weights, a tensor table, metadata. Tests
// break it in every way and see what the engine says.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "core/error.h"
#include "formats/registry.h"
#include "models/model_source.h"

namespace gristmill::test {

struct TinyShape {
  std::string architecture = "qwen2";
  int64_t n_vocab = 40, n_embd = 256, n_head = 4, n_head_kv = 2, n_ff = 256, n_layer = 1, n_ctx = 64;
  std::optional<formats::TypeId> ffn_up = {};  // another format than all matrices'
};

// A file without a name, which goes with the object.
class MemoryFile {
 public:
  MemoryFile() : fd_(memfd_create("tiny", MFD_CLOEXEC)) {}
  ~MemoryFile() { close(fd_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  std::string path() const { return "/proc/self/fd/" + std::to_string(fd_); }
  bool write(const std::vector<std::byte>& bytes) const {
    return ftruncate(fd_, off_t(bytes.size())) == 0 &&
           pwrite(fd_, bytes.data(), bytes.size(), 0) == ssize_t(bytes.size());
  }

 private:
  int fd_;
};

struct TinyModel {
  std::vector<std::byte> bytes;
  std::vector<models::TensorEntry> tensors;
  std::map<std::string, models::Value> metadata;

  models::TensorEntry& tensor(const std::string& name) {
    for (models::TensorEntry& t : tensors)
      if (t.name == name) return t;
    throw Error("the tiny model has no tensor " + name);
  }
};

// Rows of a matrix repeat after this many: quantizing takes its time under a sanitizer.
constexpr uint64_t kDistinctRows = 8;

// Matrices in the given format, norms and biases in F32. Weights are normal, of spread n_cols^-1/2.
inline TinyModel make_tiny(const TinyShape& s, formats::TypeId matrices) {
  TinyModel model;
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  const auto add = [&](const std::string& name, formats::TypeId type, std::vector<uint64_t> shape, float mean) {
    const formats::FormatInfo& format = *formats::find_format(uint32_t(type));
    const uint64_t n_cols = shape.back(), n_rows = shape.size() == 1 ? 1 : shape.front();
    const size_t row_bytes = n_cols / uint64_t(format.block_size) * uint64_t(format.type_size);
    const uint64_t offset = (model.bytes.size() + 31) / 32 * 32;
    model.bytes.resize(offset + n_rows * row_bytes);
    std::vector<float> row(n_cols);
    std::byte* rows = model.bytes.data() + offset;
    for (uint64_t r = 0; r < n_rows; ++r) {
      if (r >= kDistinctRows) {
        std::copy_n(rows + (r - kDistinctRows) * row_bytes, row_bytes, rows + r * row_bytes);
        continue;
      }
      for (float& w : row) w = mean + normal(random) / std::sqrt(float(n_cols));
      format.from_float(row.data(), nullptr, rows + r * row_bytes, int64_t(n_cols));
    }
    model.tensors.push_back({name, uint32_t(type), std::move(shape), 0, offset});
  };
  const auto size = [](int64_t n) { return uint64_t(n); };
  const auto matrix = [&](const std::string& name, int64_t rows, int64_t cols) {
    const formats::TypeId type = name.ends_with("ffn_up") ? s.ffn_up.value_or(matrices) : matrices;
    add(name + ".weight", type, {size(rows), size(cols)}, 0.0f);
  };
  const auto vector = [&](const std::string& name, int64_t n, float mean) {
    add(name, formats::TypeId::F32, {size(n)}, mean);
  };
  const int64_t n_kv = s.n_embd / s.n_head * s.n_head_kv;
  matrix("token_embd", s.n_vocab, s.n_embd);
  for (int64_t i = 0; i < s.n_layer; ++i) {
    const std::string blk = "blk." + std::to_string(i) + ".";
    vector(blk + "attn_norm.weight", s.n_embd, 1.0f);
    matrix(blk + "attn_q", s.n_embd, s.n_embd);
    matrix(blk + "attn_k", n_kv, s.n_embd);
    matrix(blk + "attn_v", n_kv, s.n_embd);
    if (s.architecture == "qwen2") {
      vector(blk + "attn_q.bias", s.n_embd, 0.0f);
      vector(blk + "attn_k.bias", n_kv, 0.0f);
      vector(blk + "attn_v.bias", n_kv, 0.0f);
    }
    matrix(blk + "attn_output", s.n_embd, s.n_embd);
    vector(blk + "ffn_norm.weight", s.n_embd, 1.0f);
    matrix(blk + "ffn_gate", s.n_ff, s.n_embd);
    matrix(blk + "ffn_up", s.n_ff, s.n_embd);
    matrix(blk + "ffn_down", s.n_embd, s.n_ff);
  }
  vector("output_norm.weight", s.n_embd, 1.0f);
  matrix("output", s.n_vocab, s.n_embd);

  const std::string a = s.architecture + ".";
  model.metadata = {{"general.architecture", s.architecture},
                    {a + "context_length", s.n_ctx},
                    {a + "embedding_length", s.n_embd},
                    {a + "feed_forward_length", s.n_ff},
                    {a + "block_count", s.n_layer},
                    {a + "attention.head_count", s.n_head},
                    {a + "attention.head_count_kv", s.n_head_kv},
                    {a + "attention.layer_norm_rms_epsilon", 1e-6},
                    {a + "rope.freq_base", 10000.0}};
  return model;
}

}  // namespace gristmill::test

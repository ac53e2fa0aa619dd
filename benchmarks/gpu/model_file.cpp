#include "model_file.h"

#include <sys/mman.h>
#include <unistd.h>

#include <fstream>
#include <functional>

#include "core/error.h"

namespace gristmill::cuda::bench {
namespace {

struct Tensor {
  std::string prefix, name, suffix;
  const formats::FormatInfo& format;
  int64_t n_rows, n_cols;

  int64_t bytes() const { return n_rows * n_cols / format.block_size * format.type_size; }
};

const formats::FormatInfo& find(std::string_view name) { return *formats::find_format(name); }

// llama.cpp's mixes, as far as they concern whole matrices: Q4_K_M has half of attn_v and ffn_down in Q6_K.
const formats::FormatInfo& format_of(const std::string& mix, const std::string& tensor, int layer, int n_layer) {
  if (mix == "Q4_0" || mix == "Q4_K_M")
    if (tensor == "output") return find("Q6_K");
  if (mix == "Q4_K_M") {
    const bool more = layer < n_layer / 8 || layer >= 7 * n_layer / 8 || (layer - n_layer / 8) % 3 == 2;
    return find(more && (tensor == "attn_v" || tensor == "ffn_down") ? "Q6_K" : "Q4_K");
  }
  return find(mix);
}

void for_each_tensor(const Sizes& s, const std::string& mix, int n_layer, const std::function<void(const Tensor&)>& f) {
  const auto matrix = [&](const std::string& prefix, const char* name, int layer, int64_t rows, int64_t cols) {
    f({prefix, name, ".weight", format_of(mix, name, layer, n_layer), rows, cols});
  };
  const auto vector = [&](const std::string& prefix, const char* name, const char* suffix, int64_t n) {
    f({prefix, name, suffix, find("F32"), 1, n});
  };
  const int64_t q = s.n_head * s.head_dim, kv = s.n_head_kv * s.head_dim;
  matrix("", "token_embd", 0, s.n_vocab, s.n_embd);
  matrix("", "output", 0, s.n_vocab, s.n_embd);
  vector("", "output_norm", ".weight", s.n_embd);
  for (int i = 0; i < n_layer; ++i) {
    const std::string prefix = "blk." + std::to_string(i) + ".";
    vector(prefix, "attn_norm", ".weight", s.n_embd);
    vector(prefix, "ffn_norm", ".weight", s.n_embd);
    matrix(prefix, "attn_q", i, q, s.n_embd);
    matrix(prefix, "attn_k", i, kv, s.n_embd);
    matrix(prefix, "attn_v", i, kv, s.n_embd);
    vector(prefix, "attn_q", ".bias", q);
    vector(prefix, "attn_k", ".bias", kv);
    vector(prefix, "attn_v", ".bias", kv);
    matrix(prefix, "attn_output", i, s.n_embd, q);
    matrix(prefix, "ffn_gate", i, s.n_ff, s.n_embd);
    matrix(prefix, "ffn_up", i, s.n_ff, s.n_embd);
    matrix(prefix, "ffn_down", i, s.n_embd, s.n_ff);
  }
}

std::vector<std::byte> make_bytes(const Tensor& t) {
  if (t.n_rows > 1) return random_rows(t.format, t.n_rows, t.n_cols);
  const std::vector<float> values(size_t(t.n_cols), t.suffix == ".bias" ? 0.01f : 1.0f);
  std::vector<std::byte> bytes(values.size() * sizeof(float));
  t.format.from_float(values.data(), nullptr, bytes.data(), t.n_cols);
  return bytes;
}

}  // namespace

ModelFile::ModelFile(const Sizes& s, const std::string& mix, int n_layer, bool distinct)
    : metadata{{"general.architecture", std::string("qwen2")},
               {"qwen2.context_length", int64_t{131072}},
               {"qwen2.embedding_length", s.n_embd},
               {"qwen2.feed_forward_length", s.n_ff},
               {"qwen2.block_count", int64_t{n_layer}},
               {"qwen2.attention.head_count", s.n_head},
               {"qwen2.attention.head_count_kv", s.n_head_kv},
               {"qwen2.attention.layer_norm_rms_epsilon", 1e-5},
               {"qwen2.rope.freq_base", 1e6}},
      fd_(memfd_create("model", MFD_CLOEXEC)) {
  struct Kind {
    std::vector<std::byte> bytes;  // kept where they are written again
    uint64_t at;
  };
  std::map<std::string, Kind> kinds;  // tensors of one name, format and size
  for_each_tensor(s, mix, n_layer, [&](const Tensor& t) {
    const auto [kind, is_new] = kinds.try_emplace(t.name + t.suffix + std::string(t.format.name));
    if (is_new) {
      kind->second.bytes = make_bytes(t);
      kind->second.at = append(kind->second.bytes);
      if (!distinct) kind->second.bytes = {};
    } else if (distinct) {
      kind->second.at = append(kind->second.bytes);
    }
    std::vector<uint64_t> shape = {uint64_t(t.n_cols)};
    if (t.n_rows != 1) shape.insert(shape.begin(), uint64_t(t.n_rows));
    tensors.push_back({t.prefix + t.name + t.suffix, uint32_t(t.format.id), std::move(shape), 0, kind->second.at});
    all_bytes += t.bytes();
    if (!t.prefix.empty()) layer_bytes += t.bytes();
    if (t.name == "output") output_bytes += t.bytes();
  });
}

ModelFile::~ModelFile() { close(fd_); }

uint64_t ModelFile::append(const std::vector<std::byte>& bytes) {
  const uint64_t at = size_;
  for (size_t done = 0; done < bytes.size();) {
    const ssize_t n = pwrite(fd_, bytes.data() + done, bytes.size() - done, off_t(at + done));
    if (n <= 0) throw Error("the model does not fit into memory");
    done += size_t(n);
  }
  size_ = (at + bytes.size() + 63) / 64 * 64;
  return at;
}

int64_t file_bytes(const Sizes& sizes, const std::string& mix, int n_layer) {
  int64_t bytes = 0;
  for_each_tensor(sizes, mix, n_layer, [&](const Tensor& t) { bytes += t.bytes(); });
  return bytes;
}

int64_t available_memory() {
  std::ifstream file("/proc/meminfo");
  std::string name, unit;
  int64_t kib = 0;
  while (file >> name >> kib && std::getline(file, unit))
    if (name == "MemAvailable:") return kib << 10;
  return 0;
}

}  // namespace gristmill::cuda::bench

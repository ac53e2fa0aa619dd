// A model of QwQ-32B's shape from random blocks: loading, prefill, decoding. In the file all layers are the same bytes,
// so that making it takes seconds; on the device each has its own.
#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <map>
#include <memory>

#include "bench.h"
#include "core/error.h"
#include "cuda/cuda_backend.h"
#include "models/model.h"

namespace gristmill::cuda::bench {
namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point t) { return std::chrono::duration<double>(Clock::now() - t).count(); }

constexpr int64_t kEmbd = 5120, kFf = 27648, kHeads = 40, kHeadsKv = 8, kDim = 128, kVocab = 152064;

struct File {
  int fd = memfd_create("model", MFD_CLOEXEC);
  uint64_t size = 0;
  std::vector<models::TensorEntry> tensors;
  uint64_t layer_bytes = 0, other_bytes = 0;

  ~File() { close(fd); }

  uint64_t append(const std::vector<std::byte>& bytes) {
    const uint64_t at = size;
    for (size_t done = 0; done < bytes.size();) {
      const ssize_t n = pwrite(fd, bytes.data() + done, bytes.size() - done, off_t(at + done));
      if (n <= 0) throw Error("the model does not fit into memory");
      done += size_t(n);
    }
    size = (at + bytes.size() + 63) / 64 * 64;
    return at;
  }
};

// llama.cpp's mixes, as far as they concern whole matrices: Q4_K_M has half of attn_v and ffn_down in Q6_K.
const formats::FormatInfo& format_of(const std::string& mix, const std::string& tensor, int layer, int n_layer) {
  const auto find = [](std::string_view name) -> const formats::FormatInfo& { return *formats::find_format(name); };
  if (mix == "Q4_0" || mix == "Q4_K_M")
    if (tensor == "output") return find("Q6_K");
  if (mix == "Q4_K_M") {
    const bool more = layer < n_layer / 8 || layer >= 7 * n_layer / 8 || (layer - n_layer / 8) % 3 == 2;
    return find(more && (tensor == "attn_v" || tensor == "ffn_down") ? "Q6_K" : "Q4_K");
  }
  return find(mix);
}

void make_file(File& file, const std::string& mix, int n_layer) {
  std::map<std::string, uint64_t> written;  // tensor and format
  const auto add = [&](const std::string& prefix, const std::string& tensor, const formats::FormatInfo& format,
                       int64_t rows, int64_t cols, const char* suffix = ".weight") {
    const std::string key = tensor + suffix + std::string(format.name);
    if (!written.count(key)) {
      if (rows == 1) {
        std::vector<float> ones(size_t(cols), std::string(suffix) == ".bias" ? 0.01f : 1.0f);
        std::vector<std::byte> bytes(ones.size() * sizeof(float));
        formats::find_format("F32")->from_float(ones.data(), nullptr, bytes.data(), cols);
        written[key] = file.append(bytes);
      } else {
        written[key] = file.append(random_rows(format, rows, cols));
      }
    }
    std::vector<uint64_t> shape = {uint64_t(cols)};
    if (rows != 1) shape.insert(shape.begin(), uint64_t(rows));
    file.tensors.push_back({prefix + tensor + suffix, uint32_t(format.id), std::move(shape), 0, written[key]});
    (prefix.empty() ? file.other_bytes : file.layer_bytes) +=
        uint64_t(rows * cols / format.block_size * format.type_size);
  };
  const formats::FormatInfo& f32 = *formats::find_format("F32");
  const auto matrix = [&](const std::string& prefix, const char* tensor, int layer, int64_t rows, int64_t cols) {
    add(prefix, tensor, format_of(mix, tensor, layer, n_layer), rows, cols);
  };
  matrix("", "token_embd", 0, kVocab, kEmbd);
  matrix("", "output", 0, kVocab, kEmbd);
  add("", "output_norm", f32, 1, kEmbd);
  for (int i = 0; i < n_layer; ++i) {
    const std::string prefix = "blk." + std::to_string(i) + ".";
    add(prefix, "attn_norm", f32, 1, kEmbd);
    add(prefix, "ffn_norm", f32, 1, kEmbd);
    matrix(prefix, "attn_q", i, kHeads * kDim, kEmbd);
    matrix(prefix, "attn_k", i, kHeadsKv * kDim, kEmbd);
    matrix(prefix, "attn_v", i, kHeadsKv * kDim, kEmbd);
    add(prefix, "attn_q", f32, 1, kHeads * kDim, ".bias");
    add(prefix, "attn_k", f32, 1, kHeadsKv * kDim, ".bias");
    add(prefix, "attn_v", f32, 1, kHeadsKv * kDim, ".bias");
    matrix(prefix, "attn_output", i, kEmbd, kHeads * kDim);
    matrix(prefix, "ffn_gate", i, kFf, kEmbd);
    matrix(prefix, "ffn_up", i, kFf, kEmbd);
    matrix(prefix, "ffn_down", i, kEmbd, kFf);
  }
}

struct Bench {
  const Context& context;
  std::string mix;
  CudaBackend backend;
  models::ModelSource source;
  std::unique_ptr<models::Model> model;
  std::vector<float> logits;

  Bench(const Context& c, std::string name, File& file, int n_layer)
      : context(c),
        mix(std::move(name)),
        backend(c.device.index),
        source({"/proc/self/fd/" + std::to_string(file.fd)}, file.tensors, metadata(n_layer)) {
    const auto began = Clock::now();
    model = models::make_model(source, backend);
    std::unique_ptr<float[]> one(new float[1]);
    backend.download(backend.allocate(1).get(), 1, one.get());  // until all is there
    const double seconds = seconds_since(began);
    report("load", mix, double(file.layer_bytes + file.other_bytes) / 1e9 / seconds, "GB/s");
    logits.resize(size_t(kVocab) * 32);
  }

  static std::map<std::string, models::Value> metadata(int n_layer) {
    return {{"general.architecture", std::string("qwen2")},
            {"qwen2.context_length", int64_t{131072}},
            {"qwen2.embedding_length", kEmbd},
            {"qwen2.feed_forward_length", kFf},
            {"qwen2.block_count", int64_t{n_layer}},
            {"qwen2.attention.head_count", kHeads},
            {"qwen2.attention.head_count_kv", kHeadsKv},
            {"qwen2.attention.layer_norm_rms_epsilon", 1e-5},
            {"qwen2.rope.freq_base", 1e6}};
  }

  // Seconds of one pass of n tokens for each cache.
  double pass(const std::vector<std::unique_ptr<KvCache>>& caches, int n) {
    Batch batch;
    for (const auto& cache : caches) {
      batch.spans.push_back({cache.get(), batch.n_rows(), n});
      for (int i = 0; i < n; ++i) {
        batch.positions.push_back(cache->n_past() + i);
        batch.tokens.push_back(int32_t((batch.n_rows() * 7919) % kVocab));
      }
      batch.output_rows.push_back(batch.n_rows() - 1);
    }
    const auto began = Clock::now();
    model->forward(batch, logits.data(), {});
    const double seconds = seconds_since(began);
    for (const auto& cache : caches) cache->advance(n);
    return seconds;
  }

  std::vector<std::unique_ptr<KvCache>> caches(int count, int64_t n_ctx) {
    const models::Hyperparameters& h = model->hyperparameters();
    std::vector<std::unique_ptr<KvCache>> all;
    for (int i = 0; i < count; ++i)
      all.push_back(
          backend.make_cache({h.n_layer, h.n_head_kv, h.head_dim_k, h.head_dim_v, n_ctx, KvType::F16, KvType::F16}));
    return all;
  }

  double median_pass(const std::vector<std::unique_ptr<KvCache>>& all, int n, int repeats) {
    std::vector<double> times;
    for (int i = 0; i < repeats + 2; ++i) {
      const double seconds = pass(all, n);
      if (i >= 2) times.push_back(seconds);
    }
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
  }

  void run(const File& file) {
    const double token_bytes = double(file.layer_bytes) + double(file.other_bytes) / 2;  // one row of the embedding
    const auto decode = [&](int count, int64_t past) {
      const auto all = caches(count, past + 64);
      for (const auto& cache : all) cache->advance(past);  // what the positions hold does not matter for speed
      const double seconds = median_pass(all, 1, 12);
      const double kv = double(past) * 256 * 1024 * count * double(model->hyperparameters().n_layer) / 64;
      report("model", mix + " decode, " + std::to_string(count) + " sequences, context " + std::to_string(past),
             count / seconds, "tok/s", (token_bytes + kv) / seconds / context.limits.read_bytes, "read");
    };
    decode(1, 16);
    if (mix == "Q4_K_M") {
      decode(8, 512);
      decode(32, 512);
      decode(1, 32768);
    }
    const auto one = caches(1, 4 * 2048);
    pass(one, 512);
    const double seconds = median_pass(one, 2048, 1);
    const double flops = 2.0 * 2048 * double(model->hyperparameters().n_layer) * double(kEmbd) *
                         (2.0 * kHeads * kDim + 2.0 * kHeadsKv * kDim + 3.0 * kFf);
    report("model", mix + " prefill 2048", 2048 / seconds, "tok/s");
    report("model", mix + " prefill 2048, matrices", flops / seconds / 1e12, "TFLOP/s",
           flops / seconds / context.limits.gemm_flops, context.limits.gemm);
  }
};

}  // namespace

void bench_model(const Context& c, const std::string& mix, int n_layer) {
  File file;
  make_file(file, mix, n_layer);
  Bench bench(c, mix, file, n_layer);
  bench.run(file);
}

}  // namespace gristmill::cuda::bench

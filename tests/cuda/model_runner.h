// A model on a backend, driven as the engine drives it.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "check.h"
#include "models/model.h"
#include "tiny_model.h"

namespace gristmill::cuda::test {

using gristmill::test::make_tiny;
using gristmill::test::MemoryFile;
using gristmill::test::TinyModel;
using gristmill::test::TinyShape;

// A tiny model in a file that lives as long as this.
struct TinyFile {
  TinyModel tiny;
  MemoryFile file;

  TinyFile(const TinyShape& shape, formats::TypeId format) : tiny(make_tiny(shape, format)) {
    CHECK(file.write(tiny.bytes));
  }
};

class Runner {
 public:
  Runner(const TinyFile& model, Backend& backend) : Runner(model.tiny, model.file.path(), backend) {}
  Runner(const TinyModel& tiny, const std::string& path, Backend& backend)
      : source_({path}, tiny.tensors, tiny.metadata), backend_(backend), model_(models::make_model(source_, backend)) {}

  const models::Hyperparameters& hyperparameters() const { return model_->hyperparameters(); }

  std::unique_ptr<KvCache> make_cache(KvType type_k, KvType type_v) {
    const models::Hyperparameters& h = model_->hyperparameters();
    return backend_.make_cache({h.n_layer, h.n_head_kv, h.head_dim_k, h.head_dim_v, 40, type_k, type_v});
  }

  static constexpr size_t kAllRows = size_t(-1);

  // tokens[i] go to caches[i]; logits of the last rows of each, as many as are wanted, are appended.
  void forward(const std::vector<KvCache*>& caches, const std::vector<std::vector<int32_t>>& tokens,
               std::vector<float>& logits, size_t wanted = kAllRows) {
    Batch batch;
    for (size_t i = 0; i < caches.size(); ++i) {
      batch.spans.push_back({caches[i], batch.n_rows(), int(tokens[i].size())});
      for (size_t j = 0; j < tokens[i].size(); ++j) {
        if (tokens[i].size() - j <= wanted) batch.output_rows.push_back(batch.n_rows());
        batch.positions.push_back(caches[i]->n_past() + int64_t(j));
        batch.tokens.push_back(tokens[i][j]);
      }
    }
    const size_t before = logits.size();
    logits.resize(before + batch.output_rows.size() * size_t(model_->hyperparameters().n_vocab));
    model_->forward(batch, logits.data() + before, {});
    for (const Span& span : batch.spans) span.cache->advance(span.n_rows);
  }

  // Two prompts, at once or token by token, four steps together, one step back and another token.
  std::vector<float> story(KvType type_k, KvType type_v, bool prefill) {
    std::vector<float> logits;
    const auto a = make_cache(type_k, type_v), b = make_cache(type_k, type_v);
    const auto prompt = [&](KvCache* cache, const std::vector<int32_t>& tokens, size_t wanted = kAllRows) {
      if (prefill) return forward({cache}, {tokens}, logits, wanted);
      for (const int32_t token : tokens) forward({cache}, {{token}}, logits, wanted);
    };
    prompt(a.get(), {1, 7, 39, 0, 7, 22, 13});
    prompt(b.get(), {5, 6});
    for (const int32_t token : {3, 30, 31, 2}) forward({a.get(), b.get()}, {{token}, {token + 1}}, logits);
    a->truncate(a->n_past() - 1);
    forward({a.get()}, {{12}}, logits);
    prompt(a.get(), {11, 12, 13});
    // Passes whose logits nobody wants must fill the cache all the same.
    prompt(b.get(), {20, 21, 22, 23}, 0);
    forward({b.get()}, {{24}}, logits);
    return logits;
  }

 private:
  models::ModelSource source_;
  Backend& backend_;
  std::unique_ptr<models::Model> model_;
};

// The largest difference of two models' logits, in units of the expected ones' RMS; NaN where there is one.
inline double worst_difference(const std::vector<float>& got, const std::vector<float>& expected) {
  double squares = 0.0, worst = 0.0;
  for (size_t i = 0; i < expected.size(); ++i) {
    squares += double(expected[i]) * expected[i];
    const double error = std::fabs(double(got[i]) - expected[i]);
    worst = std::isnan(error) ? error : std::max(worst, error);
  }
  return worst / std::sqrt(squares / double(expected.size()));
}

}  // namespace gristmill::cuda::test

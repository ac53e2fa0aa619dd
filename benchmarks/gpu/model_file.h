// A model file of random blocks in memory.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "bench.h"
#include "models/model_source.h"

namespace gristmill::cuda::bench {

struct ModelFile {
  // distinct: every layer has bytes of its own, as a real file, so that loading it reads as much; else all layers are
  // the same bytes, and making the file takes seconds.
  ModelFile(const Sizes& sizes, const std::string& mix, int n_layer, bool distinct);
  ~ModelFile();
  ModelFile(const ModelFile&) = delete;
  ModelFile& operator=(const ModelFile&) = delete;

  std::string path() const { return "/proc/self/fd/" + std::to_string(fd_); }

  std::vector<models::TensorEntry> tensors;
  std::map<std::string, models::Value> metadata;
  // Of weights; the output's are those of the matrix that makes logits, and the embedding's are in none of the others.
  int64_t layer_bytes = 0, output_bytes = 0, all_bytes = 0;

 private:
  uint64_t append(const std::vector<std::byte>& bytes);

  int fd_;
  uint64_t size_ = 0;
};

// Bytes that a file of this mix would have with every layer's own.
int64_t file_bytes(const Sizes& sizes, const std::string& mix, int n_layer);
// Bytes of the machine's memory that are free for such a file.
int64_t available_memory();

}  // namespace gristmill::cuda::bench

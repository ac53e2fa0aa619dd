// What the Python side hands over: metadata after overrides, and the tensor table over mapped files. Reading goes
// through typed getters that name the file and the key when something is wrong, and remember what was read.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "backend.h"
#include "core/mapped_file.h"

namespace gristmill::models {

// An array that a scalar key holds: it cannot be read, but is not absent either.
struct ArrayValue {};
using Value = std::variant<bool, int64_t, double, std::string, ArrayValue>;

struct TensorEntry {
  std::string name;
  uint32_t type_id;
  std::vector<uint64_t> shape;  // rows first: numpy's order, GGUF's reversed
  int file_index;
  uint64_t offset;  // bytes from the start of its file
};

class ModelSource {
 public:
  // Checks every tensor against its file: known type, whole blocks, inside the mapping, aligned to its type's unit.
  ModelSource(std::vector<std::string> paths, const std::vector<TensorEntry>& tensors,
              std::map<std::string, Value> metadata);

  const std::string& path() const { return files_.front()->path(); }
  const std::string& architecture() const { return architecture_; }

  // Keys without their "<architecture>." prefix. The optional ones return nullopt where the key is absent.
  int64_t integer(const std::string& key, int64_t low, int64_t high);
  std::optional<int64_t> optional_integer(const std::string& key, int64_t low, int64_t high);
  std::optional<double> optional_number(const std::string& key);
  std::optional<std::string> optional_text(const std::string& key);
  const std::set<std::string>& keys_read() const { return keys_read_; }

  // A matrix of exactly this shape, or GGUFError. A vector has one row.
  Weight matrix(const std::string& name, int64_t n_rows, int64_t n_cols);
  Weight vector(const std::string& name, int64_t n) { return matrix(name, 1, n); }
  Weight optional_vector(const std::string& name, int64_t n);
  bool has(const std::string& name) const { return tensors_.count(name) != 0; }
  // Rows of a matrix whose number the metadata does not say (the vocabulary).
  int64_t rows_of(const std::string& name) const;
  std::vector<std::string> unused_tensors() const;
  // The tensor whose weights begin there; empty where none does.
  std::string name_at(const std::byte* data) const;
  // f(name, format, n_rows, n_cols) for every tensor.
  template <class F>
  void for_each_tensor(F&& f) const {
    for (const auto& [name, t] : tensors_) {
      int64_t n_rows = 1;  // the product was checked to fit
      for (size_t i = 0; i + 1 < t.entry.shape.size(); ++i) n_rows *= int64_t(t.entry.shape[i]);
      f(name, *t.format, n_rows, int64_t(t.entry.shape.back()));
    }
  }

  // From now on f is told, before each tensor is handed out, how many bytes of weights were, of how many; it may throw.
  // The one before is told that all were.
  void tell_progress(std::function<void(int64_t, int64_t)> f);

  // The bytes of the largest file, where the kernels read them.
  std::span<const std::byte> mapped() const;
  // Throws once a mapped file was cut.
  void check_files() const;
  [[noreturn]] void fail(const std::string& what) const;

 private:
  const Value* find(const std::string& key);

  std::vector<std::unique_ptr<MappedFile>> files_;
  struct Tensor {
    TensorEntry entry;
    const formats::FormatInfo* format;
    bool used = false;
  };
  std::map<std::string, Tensor> tensors_;
  std::map<std::string, Value> metadata_;
  std::set<std::string> keys_read_;
  std::string architecture_;
  std::function<void(int64_t, int64_t)> progress_;
  int64_t bytes_read_ = 0, bytes_ = 0;
};

}  // namespace gristmill::models

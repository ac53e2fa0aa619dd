#include "models/model_source.h"

#include <algorithm>
#include <cmath>

#include "core/checked.h"
#include "core/error.h"

namespace gristmill::models {
namespace {

const char* type_name(const Value& v) {
  static constexpr const char* kNames[] = {"bool", "int", "float", "str",
                                           "array (values that differ by layer are not supported)"};
  return kNames[v.index()];
}

std::string shape_text(const std::vector<uint64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

uint64_t product(const std::vector<uint64_t>& shape, size_t from, size_t to) {
  uint64_t n = 1;
  for (size_t i = from; i < to; ++i) n = checked_mul(n, shape[i]);
  return n;
}

}  // namespace

ModelSource::ModelSource(std::vector<std::string> paths, const std::vector<TensorEntry>& tensors,
                         std::map<std::string, Value> metadata)
    : metadata_(std::move(metadata)) {
  if (paths.empty()) throw ArgumentError("[load] files, expected at least one, got none");
  for (const std::string& path : paths) files_.push_back(std::make_unique<MappedFile>(path));
  for (const TensorEntry& t : tensors) {
    const formats::FormatInfo* format = formats::find_format(t.type_id);
    if (!format)
      throw UnsupportedModelError(path() + ": tensor " + t.name + " has type " + std::to_string(t.type_id) +
                                  ", which this build does not run");
    if (t.shape.empty() || t.file_index < 0 || size_t(t.file_index) >= files_.size())
      fail("tensor " + t.name + " has no shape or names a file that is not open");
    const uint64_t n_cols = t.shape.back();
    if (n_cols == 0 || n_cols % uint64_t(format->block_size) != 0)
      fail("tensor " + t.name + " has rows of " + std::to_string(n_cols) + " weights, expected a multiple of " +
           std::to_string(format->block_size) + " for " + std::string(format->name));
    const uint64_t n_rows = product(t.shape, 0, t.shape.size() - 1);
    const uint64_t bytes =
        checked_mul(checked_mul(n_rows, n_cols / uint64_t(format->block_size)), uint64_t(format->type_size));
    const MappedFile& file = *files_[size_t(t.file_index)];
    if (bytes == 0 || checked_add(t.offset, bytes) > file.size())
      throw GGUFError(file.path() + ": tensor " + t.name + " ends at byte " + std::to_string(t.offset + bytes) +
                      ", but the file has " + std::to_string(file.size()));
    if (format->kind == formats::Kind::kFloat && t.offset % uint64_t(format->type_size) != 0)
      fail("tensor " + t.name + " starts at byte " + std::to_string(t.offset) + ", expected a multiple of " +
           std::to_string(format->type_size));
    if (!tensors_.emplace(t.name, Tensor{t, format}).second) fail("tensor " + t.name + " appears twice");
  }
  const auto it = metadata_.find("general.architecture");
  if (it == metadata_.end() || !std::holds_alternative<std::string>(it->second))
    fail("metadata general.architecture, expected a str, got none");
  keys_read_.insert("general.architecture");
  architecture_ = std::get<std::string>(it->second);
}

void ModelSource::fail(const std::string& what) const { throw GGUFError(path() + ": " + what); }

const Value* ModelSource::find(const std::string& key) {
  const std::string full = architecture_ + "." + key;
  keys_read_.insert(full);
  const auto it = metadata_.find(full);
  return it == metadata_.end() ? nullptr : &it->second;
}

std::optional<int64_t> ModelSource::optional_integer(const std::string& key, int64_t low, int64_t high) {
  const Value* v = find(key);
  if (!v) return std::nullopt;
  const std::string name = "metadata " + architecture_ + "." + key;
  if (!std::holds_alternative<int64_t>(*v)) fail(name + ", expected an int, got a " + type_name(*v));
  const int64_t n = std::get<int64_t>(*v);
  if (n < low || n > high)
    fail(name + ", expected " + std::to_string(low) + " to " + std::to_string(high) + ", got " + std::to_string(n));
  return n;
}

int64_t ModelSource::integer(const std::string& key, int64_t low, int64_t high) {
  const auto n = optional_integer(key, low, high);
  if (!n) fail("metadata " + architecture_ + "." + key + " is missing");
  return *n;
}

std::optional<double> ModelSource::optional_number(const std::string& key) {
  const Value* v = find(key);
  if (!v) return std::nullopt;
  const std::string name = "metadata " + architecture_ + "." + key;
  if (!std::holds_alternative<double>(*v)) fail(name + ", expected a float, got a " + type_name(*v));
  const double x = std::get<double>(*v);
  if (!std::isfinite(x)) fail(name + " is not a finite number");
  return x;
}

std::optional<std::string> ModelSource::optional_text(const std::string& key) {
  const Value* v = find(key);
  if (!v) return std::nullopt;
  if (!std::holds_alternative<std::string>(*v))
    fail("metadata " + architecture_ + "." + key + ", expected a str, got a " + type_name(*v));
  return std::get<std::string>(*v);
}

int64_t ModelSource::rows_of(const std::string& name) const {
  const auto it = tensors_.find(name);
  if (it == tensors_.end()) fail("tensor " + name + " is missing");
  const auto& shape = it->second.entry.shape;
  return int64_t(product(shape, 0, shape.size() - 1));
}

Weight ModelSource::matrix(const std::string& name, int64_t n_rows, int64_t n_cols) {
  const auto it = tensors_.find(name);
  if (it == tensors_.end()) fail("tensor " + name + " is missing");
  Tensor& t = it->second;
  const auto& shape = t.entry.shape;
  if (int64_t(shape.back()) != n_cols || int64_t(product(shape, 0, shape.size() - 1)) != n_rows)
    fail("tensor " + name + ", expected shape [" + (n_rows == 1 ? "" : std::to_string(n_rows) + ", ") +
         std::to_string(n_cols) + "], got " + shape_text(shape));
  t.used = true;
  const Weight w{t.format, files_[size_t(t.entry.file_index)]->data() + t.entry.offset, n_rows, n_cols};
  if (progress_) {
    progress_(std::min(bytes_read_, bytes_), bytes_);
    bytes_read_ += n_rows * w.row_bytes();
  }
  return w;
}

Weight ModelSource::optional_vector(const std::string& name, int64_t n) {
  return has(name) ? matrix(name, 1, n) : Weight{};
}

std::vector<std::string> ModelSource::unused_tensors() const {
  std::vector<std::string> names;
  for (const auto& [name, t] : tensors_)
    if (!t.used) names.push_back(name);
  return names;
}

std::string ModelSource::name_at(const std::byte* data) const {
  for (const auto& [name, t] : tensors_)
    if (files_[size_t(t.entry.file_index)]->data() + t.entry.offset == data) return name;
  return {};
}

void ModelSource::tell_progress(std::function<void(int64_t, int64_t)> f) {
  if (progress_) progress_(bytes_, bytes_);
  progress_ = std::move(f);
  bytes_read_ = bytes_ = 0;
  for_each_tensor([&](const std::string&, const formats::FormatInfo& format, int64_t n_rows, int64_t n_cols) {
    bytes_ += n_rows * n_cols / format.block_size * format.type_size;
  });
}

std::span<const std::byte> ModelSource::mapped() const {
  const auto& file = *std::ranges::max_element(files_, {}, [](const auto& f) { return f->size(); });
  return {file->data(), size_t(file->size())};
}

void ModelSource::check_files() const {
  for (const auto& file : files_) file->check();
}

}  // namespace gristmill::models

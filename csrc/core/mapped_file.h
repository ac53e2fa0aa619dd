// A file mapped read-only that survives being cut while it is mapped. Reading a page that the file no longer has raises
// SIGBUS; our handler puts zero pages in its place and marks the mapping, and check() turns the mark into an error.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace gristmill {

class MappedFile {
 public:
  // Throws GGUFError where the file cannot be opened, DeviceError where it cannot be mapped.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::byte* data() const { return data_; }
  uint64_t size() const { return size_; }
  const std::string& path() const { return path_; }

  // Throws GGUFError once a page could not be read, or when the file is shorter than it was: results since then may
  // have been made from zeros in place of weights. Called after every pass.
  void check() const;

 private:
  std::string path_;
  const std::byte* data_ = nullptr;
  uint64_t size_ = 0;
  int slot_ = -1, fd_ = -1;
};

}  // namespace gristmill

// Memory between two pages that may not be touched: a kernel that reads or writes past an end dies there.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdlib>

namespace gristmill::test {

template <class T>
class Guarded {
 public:
  enum Side { kEnd, kBegin };  // the end of the buffer that lies against a guard to the byte

  explicit Guarded(size_t n, Side side = kEnd) : n_(n) {
    const size_t page = size_t(sysconf(_SC_PAGESIZE)), bytes = n * sizeof(T);
    const size_t body = (bytes + page - 1) / page * page;
    length_ = body + 2 * page;
    base_ = static_cast<std::byte*>(mmap(nullptr, length_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED || mprotect(base_ + page, body, PROT_READ | PROT_WRITE) != 0) std::abort();
    data_ = reinterpret_cast<T*>(base_ + page + (side == kEnd ? body - bytes : 0));
  }
  ~Guarded() { munmap(base_, length_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  T* data() const { return data_; }
  size_t size() const { return n_; }
  T* begin() const { return data_; }
  T* end() const { return data_ + n_; }
  T& operator[](size_t i) const { return data_[i]; }

 private:
  size_t n_, length_;
  std::byte* base_;
  T* data_;
};

}  // namespace gristmill::test

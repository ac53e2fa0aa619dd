// Zero-filled memory straight from the system, on large pages where wanted and granted: what speed is measured on, so
// that the page tables cost the same in every run.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <string>

#include "core/error.h"

namespace gristmill {

class PageBuffer {
 public:
  explicit PageBuffer(size_t bytes, bool large_pages = true) : bytes_(bytes) {
    // Room to start on a boundary of a large page.
    mapped_ = mmap(nullptr, bytes_ + kLargePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped_ == MAP_FAILED)
      throw DeviceError("[memory] " + std::to_string(bytes) + " bytes to measure with could not be allocated");
#ifdef MADV_HUGEPAGE
    // Advice that the system may not take.
    madvise(mapped_, bytes_ + kLargePage, large_pages ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
#else
    static_cast<void>(large_pages);
#endif
  }
  ~PageBuffer() { munmap(mapped_, bytes_ + kLargePage); }
  PageBuffer(const PageBuffer&) = delete;
  PageBuffer& operator=(const PageBuffer&) = delete;

  std::byte* get() const {
    const size_t address = reinterpret_cast<size_t>(mapped_);
    return static_cast<std::byte*>(mapped_) + (kLargePage - address % kLargePage) % kLargePage;
  }
  size_t size() const { return bytes_; }

 private:
  static constexpr size_t kLargePage = size_t(2) << 20;
  void* mapped_;
  size_t bytes_;
};

}  // namespace gristmill

// Uninitialized memory on a 64-byte boundary that only ever grows; a failed allocation is a DeviceError.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <string>

#include "core/error.h"

namespace gristmill {

template <class T>
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(size_t n) { grow(n); }

  // At least n elements; what was there is lost when the buffer moves.
  T* grow(size_t n) {
    if (n > size_) {
      memory_.reset();
      size_ = 0;
      const size_t bytes = (n * sizeof(T) + 63) / 64 * 64;
      memory_.reset(static_cast<T*>(std::aligned_alloc(64, bytes)));
      if (!memory_)
        throw DeviceError("[memory] work space, " + std::to_string(bytes) + " bytes could not be allocated");
      size_ = n;
    }
    return memory_.get();
  }
  T* get() const { return memory_.get(); }
  size_t size() const { return size_; }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> memory_;
  size_t size_ = 0;
};

}  // namespace gristmill

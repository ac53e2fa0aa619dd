// A fuzzer's bytes as numbers. When they run out, zeros follow, so every input means something.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace gristmill::fuzz {

class Input {
 public:
  Input(const uint8_t* data, size_t size) : data_(data), left_(size) {}

  size_t left() const { return left_; }

  template <class T>
  T take() {
    T value{};
    const size_t n = sizeof(T) < left_ ? sizeof(T) : left_;
    std::memcpy(&value, data_, n);
    data_ += n;
    left_ -= n;
    return value;
  }

  // 0 .. n - 1
  uint32_t below(uint32_t n) { return n <= 256 ? take<uint8_t>() % n : take<uint32_t>() % n; }
  bool flip() { return take<uint8_t>() & 1; }

  template <class T, size_t N>
  const T& pick(const T (&choices)[N]) {
    return choices[below(N)];
  }

  std::vector<uint8_t> bytes(size_t n) {
    if (n > left_) n = left_;
    std::vector<uint8_t> out(data_, data_ + n);
    data_ += n;
    left_ -= n;
    return out;
  }

  std::string text(size_t n) {
    const std::vector<uint8_t> b = bytes(n);
    return {b.begin(), b.end()};
  }

 private:
  const uint8_t* data_;
  size_t left_;
};

// A broken promise: libFuzzer keeps the input that led here.
inline void require(bool held, const char* promise) {
  if (held) return;
  std::fprintf(stderr, "broken: %s\n", promise);
  std::abort();
}

}  // namespace gristmill::fuzz

// What must be known to the compiler: loops over constants, by which the kernels name registers, and sizes of blocks.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

// Everything that handles registers by number is inlined, or its arrays would lie in memory. Not under a sanitizer,
// whose checks make such functions so long that they take half an hour to compile.
#if defined(__SANITIZE_ADDRESS__)
#define GRISTMILL_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define GRISTMILL_SANITIZED 1
#endif
#endif
#if defined(GRISTMILL_SANITIZED)
#define GRISTMILL_INLINE inline
#define GRISTMILL_LAMBDA
#else
#define GRISTMILL_INLINE [[gnu::always_inline]] inline
#define GRISTMILL_LAMBDA __attribute__((always_inline))
#endif

namespace gristmill::cpu {
namespace {  // each instruction set has its own, compiled with its flags

template <int i>
constexpr std::integral_constant<int, i> constant{};
// f(constant<0>), ..., f(constant<N - 1>).
template <int N, class F>
GRISTMILL_INLINE void for_constants(const F& f) {
  [&]<int... i>(std::integer_sequence<int, i...>)
      GRISTMILL_LAMBDA { (f(constant<i>), ...); }(std::make_integer_sequence<int, N>{});
}

// Bytes of n weights, a whole number of blocks. Weight::row_bytes() divides by a number read from memory: a tenth of
// the samples when eight tokens were decoded, before kernels had this.
template <class Format>
GRISTMILL_INLINE constexpr int64_t weight_bytes(int64_t n) {
  return int64_t(uint64_t(n) / Format::kBlockSize * sizeof(typename Format::Block));
}

}  // namespace
}  // namespace gristmill::cpu

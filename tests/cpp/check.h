// CHECK for the C++ tests: prints what failed and goes on; failures() is main's exit status.
#pragma once

#include <cstdio>

namespace gristmill::test {

inline int& failure_count() {
  static int count = 0;
  return count;
}

// 0 if every check held. Prints a line either way.
inline int failures(const char* name) {
  const int count = failure_count();
  std::printf("%s: %s (%d failed)\n", name, count == 0 ? "ok" : "FAILED", count);
  return count == 0 ? 0 : 1;
}

}  // namespace gristmill::test

// Further arguments are a printf format and its values, to say which case failed.
#define CHECK(condition, ...)                                                           \
  do {                                                                                  \
    if (!(condition) && ++::gristmill::test::failure_count() <= 50) {                   \
      std::fprintf(stderr, "%s:%d: CHECK(%s) failed ", __FILE__, __LINE__, #condition); \
      __VA_OPT__(std::fprintf(stderr, __VA_ARGS__);)                                    \
      std::fputc('\n', stderr);                                                         \
    }                                                                                   \
  } while (0)

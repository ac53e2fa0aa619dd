// Where a call stands in the sources, as a default argument; clang 14 has no std::source_location.
#pragma once

#include <string>

namespace gristmill::cuda {

struct Place {
  const char* file;
  int line;

  static constexpr Place current(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
  // The file without its folders.
  const char* name() const {
    const char* start = file;
    for (const char* p = file; *p; ++p)
      if (*p == '/') start = p + 1;
    return start;
  }
  std::string text() const { return std::string(name()) + ":" + std::to_string(line); }
};

}  // namespace gristmill::cuda

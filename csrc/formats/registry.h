// Every block format, one line each. Kernels, tests and the Python side enumerate this list; nothing else names formats.
#pragma once

#include <string_view>
#include <tuple>

#include "formats/f32.h"
#include "formats/format.h"
#include "formats/q4_1.h"

namespace gristmill::formats {

using All = std::tuple<  //
    F32,                 //
    Q4_1                 //
    >;

// What the runtime needs to know of a format without knowing which it is.
struct FormatInfo {
  TypeId id;
  std::string_view name;
  Kind kind;
  int block_size;  // weights
  int type_size;   // bytes
  float max_relative_error;
  void (*to_float)(const void* blocks, float* y, int64_t n);  // n: weights, a multiple of block_size
  void (*from_float)(const float* x, const float* importance, void* blocks, int64_t n);
};

// nullptr where the number or name is not in the registry. Names are case-sensitive, as GGUF spells them.
const FormatInfo* find_format(uint32_t type_id);
const FormatInfo* find_format(std::string_view name);
// All formats, in registry order.
const FormatInfo* begin_formats();
const FormatInfo* end_formats();

// Calls f.template operator()<Format>() for each format.
template <class F>
void for_each_format(F&& f) {
  [&]<class... Format>(std::tuple<Format...>*) {
    (f.template operator()<Format>(), ...);
  }(static_cast<All*>(nullptr));
}

}  // namespace gristmill::formats

// Every block format, one line each. Kernels, tests and the Python side enumerate this list; nothing else names
// formats.
#pragma once

#include <string_view>
#include <tuple>

#include "formats/bf16.h"
#include "formats/f16.h"
#include "formats/f32.h"
#include "formats/format.h"
#include "formats/iq4_nl.h"
#include "formats/iq4_xs.h"
#include "formats/q2_k.h"
#include "formats/q3_k.h"
#include "formats/q4_0.h"
#include "formats/q4_1.h"
#include "formats/q4_k.h"
#include "formats/q5_0.h"
#include "formats/q5_1.h"
#include "formats/q5_k.h"
#include "formats/q6_k.h"
#include "formats/q8_0.h"

namespace gristmill::formats {

using All = std::tuple<  //
    F32,                 //
    F16,                 //
    BF16,                //
    Q4_0,                //
    Q4_1,                //
    Q5_0,                //
    Q5_1,                //
    Q8_0,                //
    Q2_K,                //
    Q3_K,                //
    Q4_K,                //
    Q5_K,                //
    Q6_K,                //
    IQ4_NL,              //
    IQ4_XS               //
    >;

// What the runtime needs to know of a format without knowing which it is.
struct FormatInfo {
  TypeId id;
  std::string_view name;
  Kind kind;
  int block_size;  // weights
  int type_size;   // bytes
  int group;       // weights that share a scale; 0 for Kind::kFloat
  float max_relative_error;
  void (*to_float)(const void* blocks, float* y, int64_t n);  // n: weights, a multiple of block_size
  void (*from_float)(const float* x, const float* importance, void* blocks, int64_t n);
  // Taken apart as format.h says, with the zero point folded in: w = scale * q + min. nullptr for Kind::kFloat.
  void (*to_affine)(const void* blocks, uint8_t* q, float* scale, float* min, int64_t n);
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
  [&]<class... Format>(std::tuple<Format...>*) { (f.template operator()<Format>(), ...); }(static_cast<All*>(nullptr));
}

}  // namespace gristmill::formats

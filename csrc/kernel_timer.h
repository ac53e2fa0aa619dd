// One matrix product again and again, as the engine calls it, for measuring kernels alone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "backend.h"

namespace gristmill {

struct MatmulTiming {
  Weight weight;
  int n = 1;           // rows of x
  bool decode = true;  // which of the two kernels
  int n_threads = 1;
  size_t weight_bytes = 0;  // copies of the weight are cycled that take at least this much
  bool large_pages = true;  // for the copies; a mapped file has small ones
  double seconds = 1.0;
  std::string isa;
};

// Seconds of each call, at least three, after one cycle over the copies that is not counted. Throws ArgumentError,
// DeviceError.
std::vector<double> time_matmul(const MatmulTiming& timing);

}  // namespace gristmill

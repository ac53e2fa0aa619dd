// Switches of the environment for finding out what goes wrong on a GPU (docs/cuda.md). Read once, at the first use.
#pragma once

#include <cstdlib>
#include <string>

#include "core/error.h"

namespace gristmill::cuda {

struct Switches {
  bool graphs;            // GRISTMILL_CUDA_GRAPHS: lists of launches that repeat become graphs
  bool dependent_launch;  // GRISTMILL_CUDA_DEPENDENT_LAUNCH: kernels may start before the one ahead has ended
  bool sync;              // GRISTMILL_CUDA_SYNC: wait after each launch, so that a fault names its kernel; no graphs
};

// Throws ArgumentError where one is neither 0 nor 1.
inline const Switches& switches() {
  static const Switches read = [] {
    const auto value = [](const char* name, bool usual) {
      const char* text = std::getenv(name);
      if (!text || !*text) return usual;
      const std::string given = text;
      if (given != "0" && given != "1")
        throw ArgumentError(std::string("[cuda] ") + name + ", expected 0 or 1, got " + given);
      return given == "1";
    };
    Switches s{value("GRISTMILL_CUDA_GRAPHS", true), value("GRISTMILL_CUDA_DEPENDENT_LAUNCH", true),
               value("GRISTMILL_CUDA_SYNC", false)};
    if (s.sync) s.graphs = false;  // what a graph runs is one launch
    return s;
  }();
  return read;
}

}  // namespace gristmill::cuda

// What this machine can do at most, measured: bytes read from memory a second and multiply-adds a second. Speeds are
// given as shares of these.
#pragma once

#include <cstddef>
#include <string>

namespace gristmill {

// Threads read a buffer of `bytes`, which should be larger than all caches together, for about `seconds`.
// Gigabytes (1e9) a second, the best pass. isa: as for cpu::choose_kernels. Throws ArgumentError, DeviceError.
double measure_read_bandwidth(int n_threads, size_t bytes, double seconds, const std::string& isa = "");

// kind: "int8" (the instruction that quantized products are made of), "float32", or "bfloat16" (0 where the
// processor multiplies none). 1e9 operations a second, the best pass; a multiply-add is two operations.
double measure_peak_ops(int n_threads, const std::string& kind, double seconds, const std::string& isa = "");

}  // namespace gristmill

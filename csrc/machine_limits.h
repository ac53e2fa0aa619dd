// What this machine can do at most, measured: bytes read from memory a second and multiply-adds a second. Speeds are
// given as shares of these.
#pragma once

#include <cstddef>
#include <span>
#include <string>

namespace gristmill {

// Threads read a buffer of `bytes`, which should be larger than all caches together, for about `seconds`.
// Gigabytes (1e9) a second, the best pass. isa: as for cpu::choose_kernels. Throws ArgumentError, DeviceError.
double measure_read_bandwidth(int n_threads, size_t bytes, double seconds, const std::string& isa = "");

// The same of bytes that are already somewhere: a mapped file's are slower where its pages are small, far away, or, in
// a virtual machine, small or far away for the host.
double measure_reading(std::span<const std::byte> bytes, int n_threads, double seconds, const std::string& isa = "");

// kind: "int8" (the instruction that quantized products are made of), "float32", or "bfloat16" (0 where the
// processor multiplies none). 1e9 operations a second, the best pass; a multiply-add is two operations.
double measure_peak_ops(int n_threads, const std::string& kind, double seconds, const std::string& isa = "");

}  // namespace gristmill

// What a GPU can do at most, measured: the yardstick of every speed on it.
#pragma once

#include <cstddef>

#include "cuda/runtime.h"

namespace gristmill::cuda {

// 1e9 bytes and 1e9 operations a second; a multiply-add is two operations.
struct DeviceLimits {
  double read_gb_s = 0.0;   // from memory
  double copy_gb_s = 0.0;   // within it, bytes read and bytes written both counted
  double half_gop_s = 0.0;  // tensor products of halves with sums in float32, by mma.sync
};

// About `seconds` for memory and half of that for arithmetic; the best of all repetitions. Memory for 1 GiB is taken,
// or an eighth of what is free where that is less.
DeviceLimits measure_limits(int device, double seconds);

// Reads `bytes` (a multiple of 16 KiB) once; sink keeps the loads alive.
void read_memory(const std::byte* p, size_t bytes, unsigned* sink, const DeviceInfo& device, Stream stream);
// Tensor products of register operands that depend on nothing in memory; sink [512 multiprocessors] floats. Returns the
// operations of the launch.
double multiply_halves(float* sink, int rounds, const DeviceInfo& device, Stream stream);
double multiply_bytes(float* sink, int rounds, const DeviceInfo& device, Stream stream);

}  // namespace gristmill::cuda

// What a GPU can do at most, measured: every other figure stands beside these.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/runtime.h"

namespace gristmill::cuda::bench {

// Reads `bytes` (a multiple of 16 KiB) once; sink keeps the loads alive.
void read_memory(const std::byte* p, size_t bytes, unsigned* sink, const DeviceInfo& device, Stream stream);
// Tensor products of register operands that depend on nothing in memory; returns the operations of one launch,
// multiply and add counted as 2.
double multiply_halves(float* sink, const DeviceInfo& device, Stream stream);
double multiply_bytes(float* sink, const DeviceInfo& device, Stream stream);
// By wgmma; only where code for sm_90a runs.
double multiply_wgmma(float* sink, const DeviceInfo& device, Stream stream);
// A kernel that does nothing, for the gap between launches.
void do_nothing(bool dependent, Stream stream);

}  // namespace gristmill::cuda::bench

// What an instruction set can do at most, as loops with nothing in them but the work: one table a set, filled in by
// isa/<name>/limits.cpp. Each loop returns what it did, so that none can be faster by doing less.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace gristmill::cpu {

// Iterations that one call may be asked for: float32 accumulators count exactly up to 2^24.
constexpr int64_t kMaxLimitIterations = int64_t(1) << 22;
// Reading in one stream, and in four.
constexpr int kReadWays = 2;

struct LimitKernels {
  // Ways to read every byte once; the exclusive or of all 64-bit words (the last one filled up with zeros).
  uint64_t (*read_bytes[kReadWays])(const std::byte* p, size_t n);
  // Independent multiply-adds with all factors one; the sum of the accumulators, which is the number of them.
  int64_t (*multiply_add_int8)(int64_t iterations);
  int64_t (*multiply_add_float)(int64_t iterations);
  // nullptr where the processor has no such instruction
  int64_t (*multiply_add_bf16)(int64_t iterations);
  int64_t (*multiply_add_int16)(int64_t iterations);
};

// One declaration a set; limit_kernels.cpp lists them.
LimitKernels scalar_limits();
LimitKernels avx2_limits();
LimitKernels avx512_vnni_limits();
LimitKernels amx_bf16_limits();

using PeakLoop = int64_t (*)(int64_t iterations);
// kind: "int8", "float32", "bfloat16" or "int16"; ArgumentError for another, nullptr where the processor has no such
// instruction.
PeakLoop peak_loop(const LimitKernels& kernels, const std::string& kind);

// isa: as for choose_kernels, whose choice this follows, errors included.
LimitKernels choose_limits(const std::string& isa = "");

}  // namespace gristmill::cpu

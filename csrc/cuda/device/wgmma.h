// Matrix products of a warpgroup (sm_90a), d += a b with both operands in shared memory: a 64 rows, b 256 rows, both of
// halves, 16 of k at a time. They run on while the threads go on: d may be touched after wait_products() only, shared
// memory may be written after it.
//
// An operand lies in rows of 64 halves (128 bytes), eight rows 1024 bytes, aligned to that, 16-byte chunk c of row r at
// c ^ (r % 8) (the "128-byte swizzle", K-major). Lane 4 g + t of warp w of the group holds, of rows 16 w + g and
// 16 w + g + 8: d[4 j], d[4 j + 1] and d[4 j + 2], d[4 j + 3] at columns 8 j + 2 t, 8 j + 2 t + 1.
#pragma once

#include <cstdint>

#include "cuda/device/memory.h"

namespace gristmill::cuda {

constexpr int kWarpgroup = 128;

// Whether the library holds code for sm_90a, which no other GPU runs.
inline bool has_wgmma_code() {
#if defined(GRISTMILL_CUDA_SM90A)
  return true;
#else
  return false;
#endif
}

// Of the operand that begins at p (a multiple of 1024 bytes); k a multiple of 16 below 64.
DEVICE uint64_t operand_at(const void* p, int k) {
  constexpr uint64_t kEightRows = 1024 >> 4, kSwizzle128 = 1;
  return uint64_t((shared_address(p) + unsigned(k) * 2) >> 4 & 0x3fffu) | uint64_t(1) << 16 | kEightRows << 32 |
         kSwizzle128 << 62;
}

// Before the first product, and after d was written by ordinary instructions.
DEVICE void fence_products() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
DEVICE void commit_products() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
// Until all but the last kLeft groups of products are done.
template <int kLeft>
DEVICE void wait_products() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory");
#endif
}

#define GRISTMILL_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define GRISTMILL_D16(i) GRISTMILL_D4(i), GRISTMILL_D4(i + 4), GRISTMILL_D4(i + 8), GRISTMILL_D4(i + 12)

// With add, d += a b, else d = a b.
DEVICE void multiply_64x256(float (&d)[128], uint64_t a, uint64_t b, bool add) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %130, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "
      "%128, %129, p, 1, 1, 0, 0;\n"
      "}"
      : GRISTMILL_D16(0), GRISTMILL_D16(16), GRISTMILL_D16(32), GRISTMILL_D16(48), GRISTMILL_D16(64), GRISTMILL_D16(80),
        GRISTMILL_D16(96), GRISTMILL_D16(112)
      : "l"(a), "l"(b), "r"(int(add)));
#else
  __trap();
#endif
}

// Between the last wait and what reads d: the compiler sees no tie between the two and might move the reading ahead.
DEVICE void settle_products(float (&d)[128]) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile(""
               : GRISTMILL_D16(0), GRISTMILL_D16(16), GRISTMILL_D16(32), GRISTMILL_D16(48), GRISTMILL_D16(64),
                 GRISTMILL_D16(80), GRISTMILL_D16(96), GRISTMILL_D16(112));
#else
  static_cast<void>(d);
#endif
}

#undef GRISTMILL_D16
#undef GRISTMILL_D4

}  // namespace gristmill::cuda

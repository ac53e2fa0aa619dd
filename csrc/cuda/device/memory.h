// Loads with hints, asynchronous copies to shared memory, fences, atomics, and the wait for the kernel ahead.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/device/launch.h"

namespace gristmill::cuda {

DEVICE uint32_t shared_address(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }

// 16 bytes of memory that nothing writes during the kernel and that are read once. p is a multiple of 16.
DEVICE uint4 load_once16(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}

// 8 bytes to device memory in one instruction: where it cannot follow an address, the compiler makes two of a uint2.
DEVICE void store8(void* p, uint2 v) {
  asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(p)), "r"(v.x), "r"(v.y) : "memory");
}

// cp.async: 16 bytes to shared memory, past L1. The copies between two commits are a group.
DEVICE void copy_async16(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}
// The first n of 16 bytes (0 to 16); the rest become zeros.
DEVICE void copy_async16(void* to, const void* from, int n) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(n) : "memory");
}
// How long L2 keeps what is copied. Weights and caches are read once a pass and are more than L2 holds: with
// first_to_go() they replace each other there, and not activations, biases and partial sums.
using L2Policy = uint64_t;
DEVICE L2Policy first_to_go() {
  L2Policy policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
DEVICE void copy_async16(void* to, const void* from, int n, L2Policy policy) {
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;" ::"r"(shared_address(to)), "l"(from),
               "r"(n), "l"(policy)
               : "memory");
}
DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until all but the last kLeft groups of this thread are there. Other threads see them after a barrier.
template <int kLeft>
DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

// Whether a kernel's variant that copies in bulk (or the one that does not) is the one for the code at hand; the body
// of the other need not be compiled, and stops the launch that chose it (wrong_code) rather than leave nothing written.
template <bool kBulk>
DEVICE constexpr bool is_for_this_code() {
#if defined(__CUDA_ARCH__)
  return kBulk == (__CUDA_ARCH__ >= 900);
#else
  return true;
#endif
}

DEVICE void wrong_code() { __trap(); }

// sm_90: barriers that count the bytes of bulk copies. One thread initializes, fence_barrier_init() and a barrier of
// the block follow before use.
DEVICE void barrier_init(uint64_t* barrier, unsigned arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
DEVICE void fence_barrier_init() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}
// Arrives, and announces bytes that copies of this phase will bring.
DEVICE void barrier_arrive_expect(uint64_t* barrier, unsigned bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
#else
  __trap();
#endif
}
DEVICE void barrier_arrive(uint64_t* barrier) {
  asm volatile("{ .reg .b64 state; mbarrier.arrive.shared::cta.b64 state, [%0]; }" ::"r"(shared_address(barrier))
               : "memory");
}
// Until the phase of this parity is over; phases alternate between 0 and 1 and begin with 0.
DEVICE void barrier_wait(uint64_t* barrier, unsigned parity) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "retry:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra retry;\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
#else
  __trap();
#endif
}
// Sizes and addresses are multiples of 16.
DEVICE void copy_bulk(void* to, const void* from, unsigned bytes, uint64_t* barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(to)),
               "l"(from), "r"(bytes), "r"(shared_address(barrier))
               : "memory");
#else
  __trap();
#endif
}
DEVICE void copy_bulk(void* to, const void* from, unsigned bytes, uint64_t* barrier, L2Policy policy) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::
          "r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(barrier)), "l"(policy)
      : "memory");
#else
  __trap();
#endif
}
// Between ordinary accesses to shared memory and those of bulk copies or wgmma.
DEVICE void fence_proxy_async() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// Past L1: what other blocks wrote and announced.
DEVICE float load_coherent(const float* p) { return __ldcg(p); }
DEVICE float2 load_coherent(const float2* p) { return __ldcg(p); }
DEVICE float4 load_coherent(const float4* p) { return __ldcg(p); }
DEVICE int32_t load_coherent(const int32_t* p) { return __ldcg(p); }
DEVICE std::byte* load_coherent(std::byte* const* p) {
  return reinterpret_cast<std::byte*>(__ldcg(reinterpret_cast<const unsigned long long*>(p)));
}
DEVICE unsigned atomic_add(unsigned* p, unsigned v) { return atomicAdd(p, v); }
// As atomic_add; what this thread wrote, or others before they met it at a barrier, is visible to the thread that finds
// this added and then acquires.
DEVICE unsigned add_release(unsigned* p, unsigned v) {
  unsigned before;
  asm volatile("atom.release.gpu.global.add.u32 %0, [%1], %2;"
               : "=r"(before)
               : "l"(__cvta_generic_to_global(p)), "r"(v)
               : "memory");
  return before;
}
// For this thread and those that it meets at a barrier afterwards. Drops the SM's L1.
DEVICE void fence_acquire() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }

// A counter in shared memory: what this thread wrote, or others before they met it at a barrier, is visible to threads
// of the block that add later, and to those that they meet at a barrier afterwards.
DEVICE unsigned add_in_block(unsigned* p, unsigned v) {
  unsigned before;
  asm volatile("atom.acq_rel.cta.shared.add.u32 %0, [%1], %2;"
               : "=r"(before)
               : "r"(shared_address(p)), "r"(v)
               : "memory");
  return before;
}

// What will be read from device memory soon comes to L2.
DEVICE void prefetch(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(__cvta_generic_to_global(p))); }

// Programmatic dependent launch: until the kernel ahead has ended and its writes are visible; and leave for the kernel
// behind to start. Both do nothing in an ordinary launch.
DEVICE void grid_dependency_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
DEVICE void grid_dependency_launch() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace gristmill::cuda

// Runs a grid of thread blocks on the host: one block after the other in random order, its threads as fibers in random
// order, each until it has to meet others. Meetings (barriers, shuffles, matrix products) check who takes part and
// where; what real hardware would leave undefined ends the process with a message.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "cuda/place.h"

namespace gristmill::cuda {

struct StreamHandle;
struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
};

namespace emulation {

using Site = Place;

// Prints the running block and thread, the message and the place, and aborts.
[[noreturn]] void fail(const Site& site, const char* format, ...) __attribute__((format(printf, 2, 3)));

// The order of blocks and threads follows from the seed; tests run under several.
void set_seed(uint64_t seed);

// Runs kernel() once for every thread. Shared memory is filled with 0xff (NaN as float and as half) before each block.
void run_grid(const char* name, Dim3 grid, Dim3 block, size_t shared_bytes, bool dependent,
              const std::function<void()>& kernel);

// Ends the process where the stream is of another device than the current one.
void check_stream(StreamHandle* stream, const Place& place = Place::current());
// Throws DeviceError where the device's traits say that a launch is to fail.
void count_launch(const char* name);
// Launches and copies between these two are recorded and run by replay().
void begin_recording();
std::vector<std::function<void()>> end_recording();
bool recording();
size_t recorded_count();
// dependent: the launch may start before the one ahead has ended, which a graph must have.
void record_work(std::function<void()> work, bool dependent);

// --- What follows is called by the running thread of a kernel.

int lane();
std::byte* shared_memory();
bool is_shared(const void* p, size_t bytes);

// Waits until every lane of the mask is here, at the same place with the same mask; the last to come calls
// act(lanes, mask), lanes[i] being lane i's argument, nullptr outside of the mask.
using WarpAction = void (*)(void* const* lanes, uint32_t mask);
void meet_warp(uint32_t mask, WarpAction act, void* argument, const Site& site);
// Waits until n threads of the block are at barrier `id`; all of them at the same place.
void meet_block(int id, unsigned n, const Site& site);
unsigned block_threads();
// Lets others run until ready(argument) holds.
void wait_until(bool (*ready)(void*), void* argument, const char* what, const Site& site);

// Copies of cp.async: those issued since the last commit form a group; they happen when a wait demands them, and until
// then the destination holds 0xff.
void queue_copy(void* to, const void* from, unsigned bytes, unsigned bytes_from_memory, const Site& site);
void commit_copies();
void wait_copies(unsigned groups_left, const Site& site);

// Barriers of asynchronous copies, by the address of their word in shared memory.
void init_copy_barrier(uint64_t* barrier, unsigned arrivals, const Site& site);
void arrive_copy_barrier(uint64_t* barrier, unsigned expected_bytes, const Site& site);
void queue_bulk_copy(void* to, const void* from, unsigned bytes, uint64_t* barrier, const Site& site);
void wait_copy_barrier(uint64_t* barrier, unsigned parity, const Site& site);

// Products of a warpgroup (64 x 256 x 16 halves) from shared memory that go on by themselves: those issued since the
// last commit form a group; they happen when a wait demands them. d[128] holds NaN while one of them is open.
void fence_products();
void queue_product(float* d, uint64_t a, uint64_t b, bool add, const Site& site);
void commit_products();
void wait_products(unsigned groups_left, const Site& site);

void grid_dependency_wait();

// --- What a dependent launch must not read before it waits (in_flight.cpp).

// What follows on the device starts when everything ahead has ended.
void wait_for_everything(int device);
// Notes what launches that may still run have changed.
void begin_launch(int device, bool dependent);
void hide_changes();
void show_changes();
bool changes_hidden();
// In runtime.cpp: the blocks of a device's memory.
void for_each_allocation(int device, const std::function<void(std::byte* begin, size_t bytes)>& f);
int current_device();

}  // namespace emulation
}  // namespace gristmill::cuda

// The names that CUDA gives a running thread; set at each switch.
extern gristmill::cuda::Dim3 threadIdx, blockIdx, blockDim, gridDim;

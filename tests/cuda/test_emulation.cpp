// The emulation catches what it is there to catch: each kernel below has one mistake, and either its process ends with
// a message that names it, or its results are wrong under some order of threads. Beside each is the same without
// mistake.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "check.h"
#include "cuda/device/arithmetic.h"
#include "cuda/device/launch.h"
#include "cuda/device/memory.h"
#include "cuda/device/mma.h"
#include "cuda/device/warp.h"
#include "cuda/device/wgmma.h"
#include "cuda/half_order.h"
#include "emulation/sanitizer.h"

namespace gristmill::cuda::test {
namespace {

// What a process that runs f prints to stderr before it aborts; empty where it does not abort.
std::string death_of(const std::function<void()>& f) {
  int ends[2];
  if (pipe(ends) != 0) return "";
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], 2);
    close(ends[0]);
    close(ends[1]);
    f();
    _exit(0);
  }
  close(ends[1]);
  std::string text;
  char buffer[4096];
  for (ssize_t n; (n = read(ends[0], buffer, sizeof(buffer))) > 0;) text.append(buffer, size_t(n));
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? "" : text;
}

void expect_death(const char* message, const std::function<void()>& f) {
  const std::string text = death_of(f);
  CHECK(text.find(message) != std::string::npos, "expected '%s', got '%s'", message, text.c_str());
}

LaunchConfig one_block(unsigned threads, size_t shared_bytes = 0) { return {{1}, {threads}, shared_bytes}; }

// Reverses 64 numbers through shared memory.
template <bool kBarrier>
KERNEL(64, 1)
reverse(const float* in, float* out) {
  SMEM(float, s);
  s[threadIdx.x] = in[threadIdx.x];
  if (kBarrier) sync_block();
  out[threadIdx.x] = s[63 - threadIdx.x];
}

template <bool kBarrier>
int wrong_orders() {
  std::vector<float> in(64), out(64);
  std::iota(in.begin(), in.end(), 1.0f);
  int wrong = 0;
  for (uint64_t seed = 0; seed < 8; ++seed) {
    emulation::set_seed(seed);
    launch("reverse", reverse<kBarrier>, one_block(64, 64 * sizeof(float)), in.data(), out.data());
    for (int i = 0; i < 64; ++i)
      if (out[size_t(i)] != in[size_t(63 - i)]) {
        ++wrong;
        break;
      }
  }
  return wrong;
}

template <bool kWait>
KERNEL(32, 1)
copy_through(const float* in, float* out) {
  SMEM(float, s);
  if (threadIdx.x < 8) copy_async16(s + 4 * threadIdx.x, in + 4 * threadIdx.x);
  commit_copies();
  if (kWait) wait_copies<0>();
  sync_warp();
  out[threadIdx.x] = s[threadIdx.x];
  wait_copies<0>();
}

template <int kStages>
KERNEL(32, 1)
bulk_through(const float* in, float* out, int n, bool announce) {
  SMEM(float, s);
  uint64_t* full = reinterpret_cast<uint64_t*>(s + 32 * kStages);
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) barrier_init(full + i, 1);
    fence_barrier_init();
  }
  sync_block();
  const auto issue = [&](int i) {
    if (i >= n || threadIdx.x != 0) return;
    barrier_arrive_expect(full + i % kStages, announce ? 128 : 0);
    copy_bulk(s + 32 * (i % kStages), in + 32 * i, 128, full + i % kStages);
  };
  for (int i = 0; i < kStages - 1; ++i) issue(i);
  for (int i = 0; i < n; ++i) {
    issue(i + kStages - 1);
    barrier_wait(full + i % kStages, unsigned(i / kStages) & 1);
    out[32 * i + int(threadIdx.x)] = s[32 * (i % kStages) + int(threadIdx.x)];
    sync_warp();
  }
}

KERNEL(32, 1) waits_for_nothing() {
  SMEM(uint64_t, barrier);
  if (threadIdx.x == 0) barrier_init(barrier, 1);
  sync_block();
  barrier_wait(barrier, 0);
}

KERNEL(32, 1) diverging_shuffle(float* out) {
  float v = float(threadIdx.x);
  if (threadIdx.x < 16) {
    v = shuffle_xor(v, 1);
  } else {
    v = shuffle_xor(v, 2);
  }
  out[threadIdx.x] = v;
}

KERNEL(32, 1) half_warps(float* out) {
  float v = float(threadIdx.x);
  if (threadIdx.x < 16) {
    v = shuffle_xor(v, 1, 0x0000ffffu);
  } else {
    v = shuffle_xor(v, 2, 0xffff0000u);
  }
  out[threadIdx.x] = v;
}

KERNEL(32, 1) early_exit(float* out) {
  if (threadIdx.x == 5) return;
  out[threadIdx.x] = warp_sum(1.0f);
}

KERNEL(64, 1) barrier_in_branch() {
  if (threadIdx.x < 32) {
    sync_block();
  } else {
    sync_block();
  }
}

KERNEL(64, 1) barrier_for_some() {
  if (threadIdx.x < 32) sync_block();
  sync_warp();
  if (threadIdx.x >= 32) sync_threads(1, 64);
}

KERNEL(32, 1) beyond_shared(float* out) {
  SMEM(float, s);
  s[threadIdx.x] = 1.0f;
  out[threadIdx.x] = s[threadIdx.x + 1];
}

KERNEL(32, 1) beyond_output(float* out) { out[threadIdx.x + 1] = 1.0f; }

KERNEL(32, 1) misaligned(const char* in, char* out) {
  SMEM(char, s);
  copy_async16(s, in + 8);
  commit_copies();
  wait_copies<0>();
  out[0] = s[0];
}

KERNEL(32, 1) forgets_grid() {}
KERNEL(32, 1) waits_for_grid() { grid_dependency_wait(); }

KERNEL(32, 1) write_one(float* x) {
  grid_dependency_wait();
  x[threadIdx.x] = 1.0f;
}

enum class When { kBefore, kBeforeByCopy, kAfter };
template <When when>
KERNEL(32, 1)
reads_what_was_written(const float* x, float* out) {
  SMEM(float, s);
  if (when == When::kBeforeByCopy && threadIdx.x < 8) copy_async16(s + 4 * threadIdx.x, x + 4 * threadIdx.x);
  commit_copies();
  float v = when == When::kBefore ? x[threadIdx.x] : 0.0f;
  grid_dependency_wait();
  wait_copies<0>();
  sync_warp();
  if (when == When::kBeforeByCopy) v = s[threadIdx.x];
  out[threadIdx.x] = when == When::kAfter ? x[threadIdx.x] : v;
}

// What the last of three launches reads of what the first wrote.
template <When when>
float read_behind(bool synchronized) {
  const auto x = make_device<float>(32), y = make_device<float>(32), out = make_device<float>(32);
  fill(x.get(), 0, 32 * sizeof(float), nullptr);
  LaunchConfig config = one_block(32, 128);
  launch("write", write_one, config, x.get());
  config.dependent = true;
  launch("write", write_one, config, y.get());
  if (synchronized) synchronize(Stream{});
  launch("read", reads_what_was_written<when>, config, x.get(), out.get());
  float v = 0.0f;
  copy_to_host(&v, out.get(), sizeof(v), nullptr);
  synchronize(Stream{});
  return v;
}

KERNEL(32, 1) forgets_copies(const float* in) {
  SMEM(float, s);
  copy_async16(s, in);
  commit_copies();
}

KERNEL(32, 1) multiply_bytes(const int8_t* a, const int8_t* b, int* d) {  // a [16][32], b [32][8], d [16][8]
  const int g = lane_id() / 4, t = lane_id() % 4;
  uint32_t fa[4] = {}, fb[2] = {};
  for (int r = 0; r < 4; ++r)
    for (int i = 0; i < 4; ++i)
      fa[r] |= uint32_t(uint8_t(a[(g + 8 * (r % 2)) * 32 + 16 * (r / 2) + 4 * t + i])) << 8 * i;
  for (int r = 0; r < 2; ++r)
    for (int i = 0; i < 4; ++i) fb[r] |= uint32_t(uint8_t(b[(16 * r + 4 * t + i) * 8 + g])) << 8 * i;
  int out[4];
  const int c[4] = {1, 2, 3, 4};
  mma_s8_k32(out, fa, fb[0], fb[1], c);
  for (int r = 0; r < 4; ++r) d[(g + 8 * (r / 2)) * 8 + 2 * t + r % 2] = out[r] - c[r];
}

KERNEL(32, 1) multiply_halves(const uint16_t* a, const uint16_t* b, float* d) {  // a [16][16], b [8][16], d [16][8]
  SMEM(uint16_t, s);
  for (int i = lane_id(); i < 256; i += 32) s[i] = a[i];
  for (int i = lane_id(); i < 128; i += 32) s[256 + i] = b[i];
  sync_warp();
  const int g = lane_id() / 4, t = lane_id() % 4;
  uint32_t fa[4], fb[4];
  load_matrices(fa, s + (lane_id() % 16) * 16 + 8 * (lane_id() / 16));
  load_matrices(fb, s + 256 + (lane_id() % 8) * 16 + 8 * (lane_id() / 8 % 2));
  float out[4] = {};
  mma_f16(out, fa, fb[0], fb[1]);
  for (int r = 0; r < 4; ++r) d[(g + 8 * (r / 2)) * 8 + 2 * t + r % 2] = out[r];
}

// out [64][256] = a b, a [64][64] and b [256][64].
template <bool kFence, bool kWait>
KERNEL(128, 1)
multiply_group(const uint16_t* a, const uint16_t* b, float* out) {
  SMEM(uint16_t, s);
  for (int i = int(threadIdx.x); i < 320 * 64; i += 128)
    s[half_at(HalfOrder::kPanels, 64, i / 64, i % 64)] = i < 64 * 64 ? a[i] : b[i - 64 * 64];
  fence_proxy_async();
  sync_block();
  float d[128];
  if (kFence) fence_products();
  for (int k = 0; k < 64; k += 16) multiply_64x256(d, operand_at(s, k), operand_at(s + 64 * 64, k), k > 0);
  commit_products();
  if (kWait) wait_products<0>();
  const int row = warp_id() * 16 + lane_id() / 4;
  for (int i = 0; i < 128; ++i) out[(row + i % 4 / 2 * 8) * 256 + i / 4 * 8 + lane_id() % 4 * 2 + i % 2] = d[i];
  wait_products<0>();
}

void check_group_products() {
  std::vector<uint16_t> a(64 * 64), b(256 * 64);
  for (size_t i = 0; i < a.size(); ++i) a[i] = float_to_half(float(int(i * 7 % 31) - 15) / 4);
  for (size_t i = 0; i < b.size(); ++i) b[i] = float_to_half(float(int(i * 5 % 29) - 14) / 8);
  std::vector<float> d(64 * 256);
  const LaunchConfig config = one_block(128, 320 * 128);
  launch("multiply_group", multiply_group<true, true>, config, a.data(), b.data(), d.data());
  for (size_t i = 0; i < 64; ++i)
    for (size_t j = 0; j < 256; ++j) {
      double sum = 0;
      for (size_t k = 0; k < 64; ++k) sum += double(half_to_float(a[i * 64 + k])) * half_to_float(b[j * 64 + k]);
      CHECK(d[i * 256 + j] == float(sum), "a warpgroup's product, row %zu column %zu", i, j);
    }
  launch("multiply_group", multiply_group<true, false>, config, a.data(), b.data(), d.data());
  CHECK(std::isnan(d[0]), "a missing wait for products shows nothing");
  expect_death("without fence_products",
               [&] { launch("k", multiply_group<false, true>, config, a.data(), b.data(), d.data()); });
}

void check_products() {
  std::vector<int8_t> a(512), b(256);
  for (size_t i = 0; i < a.size(); ++i) a[i] = int8_t(i * 37 + 11);
  for (size_t i = 0; i < b.size(); ++i) b[i] = int8_t(i * 91 + 5);
  std::vector<int> d(128);
  launch("multiply_bytes", multiply_bytes, one_block(32), a.data(), b.data(), d.data());
  for (size_t i = 0; i < 16; ++i)
    for (size_t j = 0; j < 8; ++j) {
      int sum = 0;
      for (size_t k = 0; k < 32; ++k) sum += a[i * 32 + k] * b[k * 8 + j];
      CHECK(d[i * 8 + j] == sum, "bytes, row %zu column %zu: %d, not %d", i, j, d[i * 8 + j], sum);
    }
  std::vector<uint16_t> ha(256), hb(128);
  for (size_t i = 0; i < ha.size(); ++i) ha[i] = float_to_half(float(int(i * 7 % 31) - 15) / 4);
  for (size_t i = 0; i < hb.size(); ++i) hb[i] = float_to_half(float(int(i * 5 % 29) - 14) / 8);
  std::vector<float> hd(128);
  launch("multiply_halves", multiply_halves, one_block(32, 768), ha.data(), hb.data(), hd.data());
  for (size_t i = 0; i < 16; ++i)
    for (size_t j = 0; j < 8; ++j) {
      double sum = 0;
      for (size_t k = 0; k < 16; ++k) sum += double(half_to_float(ha[i * 16 + k])) * half_to_float(hb[j * 16 + k]);
      CHECK(hd[i * 8 + j] == float(sum), "halves, row %zu column %zu", i, j);
    }
}

void check_all() {
  CHECK(wrong_orders<true>() == 0);
  CHECK(wrong_orders<false>() > 0);

  std::vector<float> in(32 * 7), out(32 * 7);
  std::iota(in.begin(), in.end(), 1.0f);
  launch("copy_through", copy_through<true>, one_block(32, 128), in.data(), out.data());
  for (size_t i = 0; i < 32; ++i) CHECK(out[i] == in[i]);
  launch("copy_through", copy_through<false>, one_block(32, 128), in.data(), out.data());
  CHECK(std::any_of(out.begin(), out.end(), [](float v) { return std::isnan(v); }), "a missing wait shows nothing");
  launch("bulk_through", bulk_through<3>, one_block(32, 3 * 136), in.data(), out.data(), 7, true);
  CHECK(out == in);
  expect_death("the block ended before its bulk copies", [&] {
    launch("bulk_through", bulk_through<3>, one_block(32, 3 * 136), in.data(), out.data(), 7, false);
  });
  expect_death("waits for asynchronous copies", [&] { launch("k", waits_for_nothing, one_block(32, 8)); });

  launch("half_warps", half_warps, one_block(32), out.data());
  for (int i = 0; i < 32; ++i) CHECK(out[size_t(i)] == float(i < 16 ? i ^ 1 : i ^ 2));
  expect_death("the warp has diverged", [&] { launch("k", diverging_shuffle, one_block(32), out.data()); });
  expect_death("has left the kernel", [&] { launch("k", early_exit, one_block(32), out.data()); });
  expect_death("the block has diverged", [&] { launch("k", barrier_in_branch, one_block(64)); });
  expect_death("no thread can go on", [&] { launch("k", barrier_for_some, one_block(64)); });
  expect_death("not aligned", [&] {
    alignas(16) static const char bytes[32] = {};
    char c;
    launch("k", misaligned, one_block(32, 16), bytes, &c);
  });
  expect_death("without waiting for its asynchronous",
               [&] { launch("k", forgets_copies, one_block(32, 16), in.data()); });
  LaunchConfig dependent = one_block(32);
  dependent.dependent = true;
  launch("k", waits_for_grid, dependent);
  expect_death("without grid_dependency_wait", [&] { launch("k", forgets_grid, dependent); });
  CHECK(read_behind<When::kAfter>(false) == 1.0f);
  CHECK(read_behind<When::kBefore>(true) == 1.0f);
  CHECK(read_behind<When::kBefore>(false) != 1.0f, "a read ahead of the wait shows nothing");
  CHECK(read_behind<When::kBeforeByCopy>(false) != 1.0f, "a copy ahead of the wait shows nothing");
#if defined(GRISTMILL_ASAN)
  expect_death("heap-buffer-overflow",
               [&] { launch("k", beyond_shared, one_block(32, 32 * sizeof(float)), out.data()); });
  expect_death("heap-buffer-overflow", [&] {
    std::vector<float> exact(32);
    launch("k", beyond_output, one_block(32), exact.data());
  });
#else
  (void)beyond_shared;
  (void)beyond_output;
  std::printf("not run: accesses beyond a buffer, which AddressSanitizer finds\n");
#endif
  check_products();
  check_group_products();
}

}  // namespace
}  // namespace gristmill::cuda::test

int main() {
  for (uint64_t seed = 1; seed <= 3; ++seed) {
    gristmill::cuda::emulation::set_seed(seed);
    gristmill::cuda::test::check_all();
  }
  return gristmill::test::failures("test_emulation");
}

#include "core/thread_pool.h"

#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <set>
#include <string>
#include <system_error>
#include <utility>

#ifdef __linux__
#include <sched.h>
#endif

#include "core/error.h"

namespace gristmill {
namespace {

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

// How long a worker looks for work before it sleeps: longer than the serial stretches of a pass and than choosing the
// next token, which takes 0.2 to 0.6 ms where a pass has emptied the caches, shorter than anyone's battery. In time,
// since a pause takes 10 to 150 cycles, by processor.
constexpr std::chrono::microseconds kSpinTime{1000};
constexpr int kPausesPerLook = 32;  // at the clock
// How often the caller pauses before it lets others run, who may hold a task and have no core.
constexpr int kSpins = 1000;

// How many forks lie between the first process and this one. Threads do not survive a fork; a pool that does finds here
// that its workers are gone.
std::atomic<uint32_t> g_forks{0};

uint32_t count_forks() {
  static const int registered = pthread_atfork(nullptr, nullptr, [] { g_forks.fetch_add(1); });
  static_cast<void>(registered);
  return g_forks.load(std::memory_order_relaxed);
}

}  // namespace

ThreadPool::ThreadPool(int n_threads) : process_(count_forks()) {
  if (n_threads < 1) throw ArgumentError("[threads] count, expected at least 1, got " + std::to_string(n_threads));
  start_workers(n_threads - 1);
}

ThreadPool::~ThreadPool() {
  if (process_ != g_forks.load(std::memory_order_relaxed)) {
    abandon_workers();
    return;
  }
  stop_.store(true);
  wake_.fetch_add(1);
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::start_workers(int n) {
  workers_.reserve(size_t(n));
  for (int i = 0; i < n; ++i) {
    try {
      workers_.emplace_back([this] { work(); });
    } catch (const std::system_error&) {
      break;  // the system grants no more; the tasks are shared by those there are
    }
  }
}

// Handles of threads that another process runs can be neither joined nor destroyed: they are left where they are, and
// workers_ is empty.
void ThreadPool::abandon_workers() { new std::vector<std::thread>(std::move(workers_)); }

void ThreadPool::restart_after_fork() {
  const int n = int(workers_.size());
  abandon_workers();
  sleepers_.store(0);
  failed_.store(false);
  process_ = g_forks.load(std::memory_order_relaxed);
  start_workers(n);
}

bool ThreadPool::run_one() {
  uint64_t claim = claim_.load(std::memory_order_acquire);
  for (;;) {
    const Function function = function_.load(std::memory_order_relaxed);
    const void* context = context_.load(std::memory_order_relaxed);
    const int task = int(uint32_t(claim));
    // Acquire: whoever sees a job's count here has seen the old job's word closed, so a claim on that word fails below.
    if (task >= n_tasks_.load(std::memory_order_acquire)) return false;
    if (claim_.compare_exchange_weak(claim, claim + 1, std::memory_order_acq_rel, std::memory_order_acquire)) {
      try {
        function(context, task);
      } catch (...) {
        if (!failed_.exchange(true)) error_ = std::current_exception();
      }
      unfinished_.fetch_sub(1, std::memory_order_acq_rel);
      return true;
    }
  }
}

void ThreadPool::dispatch(int n_tasks, Function function, const void* context) {
  if (process_ != g_forks.load(std::memory_order_relaxed)) restart_after_fork();
  // Close the old job's word before its fields change: between the two stores a swap on it must fail.
  const uint64_t job = (claim_.load(std::memory_order_relaxed) >> 32) + 1;
  n_tasks_.store(0, std::memory_order_relaxed);
  claim_.store(job << 32 | 0xffffffffu >> 1, std::memory_order_seq_cst);
  function_.store(function, std::memory_order_relaxed);
  context_.store(context, std::memory_order_relaxed);
  unfinished_.store(n_tasks, std::memory_order_relaxed);
  n_tasks_.store(n_tasks, std::memory_order_release);
  claim_.store((job + 1) << 32, std::memory_order_seq_cst);
  if (sleepers_.load(std::memory_order_seq_cst) > 0) {
    wake_.fetch_add(1, std::memory_order_seq_cst);
    wake_.notify_all();
  }
  while (run_one()) {
  }
  for (int spins = 0; unfinished_.load(std::memory_order_acquire) != 0; ++spins) {
    if (spins < kSpins) {
      pause();
    } else {
      std::this_thread::yield();  // more threads than cores: let the one that holds a task run
    }
  }
  if (failed_.load(std::memory_order_relaxed)) {
    failed_.store(false, std::memory_order_relaxed);
    std::rethrow_exception(std::exchange(error_, nullptr));
  }
}

void ThreadPool::work() {
  using Clock = std::chrono::steady_clock;
  Clock::time_point idle_since = Clock::now();
  int pauses = 0;
  while (!stop_.load(std::memory_order_relaxed)) {
    if (run_one()) {
      pauses = 0;
    } else if (pauses == 0) {
      idle_since = Clock::now();
      pauses = 1;
    } else if (++pauses % kPausesPerLook != 0 || Clock::now() - idle_since < kSpinTime) {
      pause();
    } else {
      const uint32_t ticket = wake_.load(std::memory_order_seq_cst);
      sleepers_.fetch_add(1, std::memory_order_seq_cst);
      // A job published before the line above may not have seen this sleeper: look once more.
      const uint64_t claim = claim_.load(std::memory_order_seq_cst);
      const bool work_waits = int(uint32_t(claim)) < n_tasks_.load(std::memory_order_seq_cst);
      if (!work_waits && !stop_.load()) wake_.wait(ticket, std::memory_order_seq_cst);
      sleepers_.fetch_sub(1, std::memory_order_seq_cst);
      pauses = 0;
    }
  }
}

#ifdef __linux__
namespace {

// Processors a cgroup's quota amounts to, rounded up; 0 where there is no quota.
int cgroup_quota() {
  std::ifstream v2("/sys/fs/cgroup/cpu.max");
  std::string quota;
  double period = 0;
  if (v2 >> quota >> period && quota != "max" && period > 0) return int(std::ceil(std::stod(quota) / period));
  std::ifstream quota_v1("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), period_v1("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
  double quota_us = 0;
  if (quota_v1 >> quota_us && period_v1 >> period && quota_us > 0 && period > 0)
    return int(std::ceil(quota_us / period));
  return 0;
}

}  // namespace

int default_thread_count() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  int cores = 0;
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) {
    std::set<std::string> siblings;  // one line a physical core: the hyperthreads that share it
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (!CPU_ISSET(cpu, &allowed)) continue;
      std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/thread_siblings_list");
      std::string line;
      if (!std::getline(file, line)) line = "cpu" + std::to_string(cpu);
      siblings.insert(line);
    }
    cores = int(siblings.size());
  }
  if (cores == 0) cores = int(std::thread::hardware_concurrency());
  const int quota = cgroup_quota();
  if (quota > 0) cores = std::min(cores, quota);
  return std::max(1, cores);
}
#else
int default_thread_count() { return std::max(1, int(std::thread::hardware_concurrency())); }
#endif

}  // namespace gristmill

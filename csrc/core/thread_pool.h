// Threads for kernels: run(n, f) calls f(0) .. f(n - 1), each once, on the caller and the workers together.
// Tasks are claimed one by one from an atomic word, so there is no lock and no system call while work keeps coming;
// a worker with nothing to do spins for a moment, then sleeps.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

namespace gristmill {

class ThreadPool {
 public:
  // n_threads counts the caller: ThreadPool(1) starts no worker.
  explicit ThreadPool(int n_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int n_threads() const { return int(workers_.size()) + 1; }

  // One caller at a time, and never from a task of the same pool. Returns when every task is done; what the tasks wrote
  // is then visible to the caller. If tasks throw (work space that could not be had), the others may or may not have
  // run, and one of the exceptions is thrown here.
  template <class F>
  void run(int n_tasks, const F& f) {
    if (n_tasks <= 0) return;
    if (n_tasks == 1 || workers_.empty()) {
      for (int i = 0; i < n_tasks; ++i) f(i);
      return;
    }
    dispatch(n_tasks, [](const void* context, int i) { (*static_cast<const F*>(context))(i); }, &f);
  }

 private:
  using Function = void (*)(const void*, int);
  void dispatch(int n_tasks, Function function, const void* context);
  void start_workers(int n);
  void abandon_workers();
  void restart_after_fork();
  void work();
  bool run_one();

  // High half: the number of the job; low half: its next unclaimed task. A claim is a compare-and-swap of the whole
  // word, so a worker that read a job's fields too late fails the swap and never touches a finished job.
  alignas(64) std::atomic<uint64_t> claim_{0};
  std::atomic<int> n_tasks_{0};
  std::atomic<Function> function_{nullptr};
  std::atomic<const void*> context_{nullptr};
  alignas(64) std::atomic<int> unfinished_{0};
  std::atomic<bool> failed_{false};
  std::exception_ptr error_;  // written by the task that set failed_
  alignas(64) std::atomic<uint32_t> wake_{0};
  std::atomic<int> sleepers_{0};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> workers_;
  uint32_t process_;  // number of forks between the first process and the one that started the workers
};

// Physical cores that this process may use: its affinity mask and its cgroup's CPU quota counted. At least 1.
int default_thread_count();

}  // namespace gristmill

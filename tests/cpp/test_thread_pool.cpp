// The thread pool: every task exactly once, whatever the number of threads and the pace of jobs; sleeping and waking,
// exceptions, fork. Meant to run under ThreadSanitizer too.
#include "core/thread_pool.h"

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "core/error.h"

// The fork test starts threads in a child, which ThreadSanitizer refuses unless told otherwise.
extern "C" __attribute__((visibility("default"))) const char* __tsan_default_options() { return "die_after_fork=0"; }

namespace gristmill {
namespace {

using namespace std::chrono_literals;

// A plain array, not atomics: a task that ran twice, or that the caller does not see, is a race that TSan reports.
void check_once_each(ThreadPool& pool, int n_tasks) {
  std::vector<int> runs(static_cast<size_t>(n_tasks), 0);
  pool.run(n_tasks, [&](int i) { ++runs[size_t(i)]; });
  int wrong = 0;
  for (const int n : runs) wrong += n != 1;
  CHECK(wrong == 0, "%d of %d tasks, %d threads", wrong, n_tasks, pool.n_threads());
}

void every_task_once() {
  for (const int n_threads : {1, 2, 3, 8, 33}) {  // 33: more than most machines have cores
    ThreadPool pool(n_threads);
    CHECK(pool.n_threads() == n_threads);
    for (const int n_tasks : {-1, 0, 1, 2, 3, 7, n_threads, 100, 5000})
      if (n_tasks < 1) {
        pool.run(n_tasks, [](int) { CHECK(false, "there was nothing to run"); });
      } else {
        check_once_each(pool, n_tasks);
      }
  }
}

// Jobs of changing size on the heels of each other: a worker that still holds an old job's word, or its fields, must
// never run a task of the new one twice. Each job has a context of its own, gone when it is done.
void jobs_in_quick_succession() {
  for (const int n_threads : {2, 4, 16}) {
    ThreadPool pool(n_threads);
    int64_t expected = 0;
    std::atomic<int64_t> total{0};
    for (int job = 0; job < 20000; ++job) {
      const int n_tasks = 2 + job * 7 % 11;
      const auto context = std::make_unique<int>(job);
      pool.run(n_tasks, [&, p = context.get()](int i) { total.fetch_add(*p + i, std::memory_order_relaxed); });
      expected += int64_t(n_tasks) * job + int64_t(n_tasks) * (n_tasks - 1) / 2;
      if (total.load(std::memory_order_relaxed) != expected) {
        CHECK(false, "job %d of %d threads: %lld, expected %lld", job, n_threads, (long long)total.load(),
              (long long)expected);
        return;
      }
    }
  }
}

// Pauses around the time after which workers go to sleep: no wake-up is lost (the test would hang), none is needed.
void sleeping_and_waking() {
  ThreadPool pool(4);
  for (int round = 0; round < 400; ++round) {
    const auto until = std::chrono::steady_clock::now() + std::chrono::microseconds(round % 200);
    while (std::chrono::steady_clock::now() < until) {
    }
    check_once_each(pool, 5);
  }
  std::this_thread::sleep_for(50ms);  // all asleep by now
  check_once_each(pool, 1000);
}

// Pools end at any moment: never used, just used, workers spinning or asleep.
void destruction() {
  for (int round = 0; round < 200; ++round) {
    ThreadPool pool(4);
    if (round % 4 > 0) check_once_each(pool, 8);
    if (round % 4 == 2) std::this_thread::sleep_for(std::chrono::microseconds(round));
    if (round % 4 == 3 && round % 20 == 3) std::this_thread::sleep_for(5ms);
  }
}

// Pools inside another's tasks, and pools side by side on threads of their own.
void nested_pools() {
  ThreadPool outer(3);
  std::atomic<int> total{0};
  outer.run(6, [&](int) {
    ThreadPool inner(3);
    for (int job = 0; job < 20; ++job) inner.run(10, [&](int) { ++total; });
  });
  CHECK(total == 6 * 20 * 10, "%d", total.load());
  total = 0;
  std::vector<std::thread> callers;
  for (int i = 0; i < 4; ++i)
    callers.emplace_back([&] {
      ThreadPool pool(2);
      for (int job = 0; job < 500; ++job) pool.run(4, [&](int) { ++total; });
    });
  for (std::thread& caller : callers) caller.join();
  CHECK(total == 4 * 500 * 4, "%d", total.load());
}

// One pool, handed from one caller to the next.
void callers_in_turn() {
  ThreadPool pool(3);
  for (int i = 0; i < 20; ++i) std::thread([&] { check_once_each(pool, 50); }).join();
}

// What the caller wrote before run() is there for the tasks, what they wrote is there after it.
void memory_is_visible() {
  ThreadPool pool(4);
  std::vector<int> values(64, 0);
  for (int round = 1; round <= 2000; ++round) {
    values[0] = round;
    pool.run(63, [&](int i) { values[size_t(i) + 1] = values[0] + i; });
    bool good = true;
    for (int i = 0; i < 63; ++i) good &= values[size_t(i) + 1] == round + i;
    CHECK(good, "round %d", round);
  }
}

// Where a task throws, on whichever thread, run() throws once every task is over, and the pool is as good as new.
void exceptions() {
  for (const int n_threads : {1, 2, 5}) {
    ThreadPool pool(n_threads);
    for (int round = 0; round < 200; ++round) {
      std::atomic<int> others{0};
      std::string caught;
      try {
        pool.run(20, [&](int i) {
          if (i % 7 == round % 7) throw DeviceError("task " + std::to_string(i % 7));
          ++others;
        });
      } catch (const DeviceError& e) {
        caught = e.what();
      }
      CHECK(caught == "task " + std::to_string(round % 7), "'%s'", caught.c_str());
      if (n_threads > 1) CHECK(others >= 17, "%d", others.load());
      check_once_each(pool, 20);
    }
    bool failed = false;
    try {
      pool.run(8, [](int) { throw std::bad_alloc(); });  // all of them
    } catch (const std::bad_alloc&) {
      failed = true;
    }
    CHECK(failed);
  }
}

void refuses_no_threads() {
  for (const int n : {0, -1}) {
    bool refused = false;
    try {
      ThreadPool pool(n);
    } catch (const ArgumentError&) {
      refused = true;
    }
    CHECK(refused, "%d threads", n);
  }
  CHECK(default_thread_count() >= 1);
}

// 0 if the child came through; a child that hangs is ended by its alarm.
template <class F>
int in_child(const F& f) {
  const pid_t child = fork();
  if (child == 0) {
    test::failure_count() = 0;
    alarm(60);
    f();
    _exit(test::failure_count() ? 1 : 0);
  }
  int status = -1;
  waitpid(child, &status, 0);
  return status;
}

// Returns with every worker started and idle: one that is still starting may hold a lock of the C library's, or of a
// sanitizer's, that a child would wait for in vain.
void settle(ThreadPool& pool) {
  std::atomic<int> arrived{0};
  pool.run(pool.n_threads(), [&](int) {
    ++arrived;
    while (arrived < pool.n_threads()) std::this_thread::yield();
  });
  std::this_thread::sleep_for(10ms);  // asleep: their count is in the memory that a child gets
}

// A child has none of its parent's workers. Its pool starts new ones, also in the child's own child, and can go.
void survives_fork() {
  auto pool = std::make_unique<ThreadPool>(4);
  settle(*pool);
  CHECK(in_child([&] {
          check_once_each(*pool, 1000);
          CHECK(pool->n_threads() == 4);
          settle(*pool);
          const int grandchild = in_child([&] {
            check_once_each(*pool, 1000);
            pool.reset();
          });
          CHECK(grandchild == 0);
          check_once_each(*pool, 1000);
          pool.reset();
        }) == 0);
  CHECK(in_child([&] { pool.reset(); }) == 0, "destroyed unused");
  check_once_each(*pool, 100);
}

}  // namespace
}  // namespace gristmill

int main() {
  using namespace gristmill;
  every_task_once();
  jobs_in_quick_succession();
  sleeping_and_waking();
  destruction();
  nested_pools();
  callers_in_turn();
  memory_is_visible();
  exceptions();
  refuses_no_threads();
  survives_fork();
  return test::failures("test_thread_pool");
}

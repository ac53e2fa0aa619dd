// Lists of launches: which become graphs, and when.
#include "cuda/command_queue.h"

#include <vector>

#include "check.h"
#include "core/error.h"
#include "cuda/elementwise.h"
#include "device_under_test.h"
#include "quantize.h"

namespace gristmill::cuda::test {
namespace {

struct Fixture {
  Stream stream = make_stream();
  CommandQueue queue{stream};
  DevicePointer<float> x = to_device(std::vector<float>(64, 0.0f)), y = to_device(std::vector<float>(64, 1.0f));
  ~Fixture() { destroy_stream(stream); }

  void push_add() {
    queue.push("add", [this] { add(x.get(), y.get(), 64, stream); }, x.get(), y.get());
  }
  float first() {
    synchronize(stream);
    return to_host(x.get(), 1)[0];
  }
};

// add() is a dependent launch: at a graph's head there is no kernel that it could depend on.
void check_repeats() {
  Fixture f;
  for (int i = 1; i <= 4; ++i) {
    f.push_add();
    f.queue.flush(true);
    CHECK(f.queue.n_graphs() == (i > 1 ? 1 : 0), "round %d: %d graphs", i, f.queue.n_graphs());
    CHECK(f.first() == float(i), "round %d: %g", i, double(f.first()));
  }
  f.push_add();
  f.queue.flush(false);
  CHECK(f.first() == 5.0f && f.queue.n_graphs() == 1);
}

// A list that failed may have kernels that no run has loaded: its next run is again a plain one.
void check_failed_list() {
  Fixture f;
  bool fails = true;
  for (int i = 0; i < 3; ++i) {
    f.push_add();
    f.queue.push("may fail", [&] {
      if (fails) throw DeviceError("on purpose");
    });
    bool thrown = false;
    try {
      f.queue.flush(true);
    } catch (const DeviceError&) {
      thrown = true;
    }
    CHECK(thrown == fails && f.queue.empty(), "round %d", i);
    CHECK(f.queue.n_graphs() == (i == 2 ? 1 : 0), "round %d: %d graphs", i, f.queue.n_graphs());
    fails = false;
  }
  CHECK(f.first() == 3.0f, "%g", double(f.first()));
}

// Switched off (GRISTMILL_CUDA_GRAPHS).
void check_switched_off() {
  Fixture f;
  CommandQueue queue(f.stream, false);
  for (int i = 1; i <= 3; ++i) {
    queue.push("add", [&] { add(f.x.get(), f.y.get(), 64, f.stream); });
    queue.flush(true);
    CHECK(queue.n_graphs() == 0 && f.first() == float(i), "round %d: %d graphs", i, queue.n_graphs());
  }
}

// A list of which no graph can be made, or run, runs plainly, and is not tried again.
void check_no_graphs() {
  emulation::DeviceTraits& traits = emulation::device_traits();
  const auto check = [&](const char* what, auto fail, auto mend) {
    Fixture f;
    const auto step = [&](int i) {
      f.push_add();
      f.queue.flush(true);
      CHECK(f.queue.n_graphs() == 0 && f.first() == float(i), "%s, round %d: %d graphs, %g", what, i,
            f.queue.n_graphs(), double(f.first()));
    };
    step(1);
    fail();
    step(2);
    mend();
    step(3);
    step(4);
  };
  if (device_info(0).name != "host emulation") return;  // a GPU fails when it wants
  check("begin", [&] { traits.no_capture = true; }, [&] { traits.no_capture = false; });
  check("a launch in a capture", [&] { traits.launches_left = 0; }, [] {});
  check("instantiation", [&] { traits.no_graph = true; }, [&] { traits.no_graph = false; });
  check("launch", [&] { traits.no_graph_launch = true; }, [&] { traits.no_graph_launch = false; });
}

// Graphs are not kept without end.
void check_many_lists() {
  Fixture f;
  for (int round = 0; round < 2; ++round)
    for (int i = 0; i < 70; ++i) {
      f.queue.describe(i);
      f.push_add();
      f.queue.flush(true);
    }
  CHECK(f.first() == 140.0f && f.queue.n_graphs() <= 64, "%g, %d graphs", double(f.first()), f.queue.n_graphs());
}

// While a list repeats, its commands are those that were kept; where that is not certain, those that were pushed.
void check_kept_list() {
  Fixture f;
  std::vector<int> calls(8);
  const auto list = [&](std::vector<int> arguments, int call, bool may_repeat) {
    for (const int argument : arguments) f.queue.push("count", [&calls, call] { ++calls[size_t(call)]; }, argument);
    if (call > 0) f.queue.flush(may_repeat);
  };
  list({1, 2, 3}, 1, true);
  list({1, 2, 3}, 2, false);
  CHECK(calls[1] == 6 && calls[2] == 0, "a list that repeats was stored again");
  list({1, 2, 3}, 3, true);
  CHECK(calls[3] == 3 && calls[1] == 6, "a list that may not repeat was kept");
  list({1, 4}, 4, true);
  CHECK(calls[3] == 4 && calls[4] == 1, "another list from the second command on");
  list({1, 4, 5}, 5, true);
  CHECK(calls[3] == 5 && calls[4] == 2 && calls[5] == 1, "a longer list");
  list({1}, 0, true);
  f.queue.clear();
  list({1}, 6, true);
  CHECK(calls[6] == 1, "a list that was given up was kept");
}

}  // namespace
}  // namespace gristmill::cuda::test

int main() {
  using namespace gristmill::cuda::test;
  gristmill::cuda::emulation::set_seed(1);
  check_repeats();
  check_failed_list();
  check_switched_off();
  check_no_graphs();
  check_many_lists();
  check_kept_list();
  return gristmill::test::failures("test_command_queue");
}

#include "cuda/command_queue.h"

#include <utility>

#include "core/error.h"

namespace gristmill::cuda {

void CommandQueue::forget_graphs() {
  for (const auto& [key, list] : graphs_) destroy_graph(list.graph);
  graphs_.clear();
}

Graph CommandQueue::capture() {
  bool open = false;
  try {
    begin_capture(stream_);
    open = true;
    run_all();
    open = false;
    return end_capture(stream_);
  } catch (const DeviceError&) {
    // Nothing has run: what is wrong with the list itself, its plain run will tell.
    try {
      if (open) destroy_graph(end_capture(stream_));
    } catch (const DeviceError&) {  // a capture that failed has no graph
    }
  }
  return nullptr;
}

void CommandQueue::flush(bool may_repeat) {
  if (empty()) return;
  struct StartOver {
    CommandQueue& queue;
    bool keep;
    ~StartOver() {
      // The arguments of a list that does not repeat need not say everything.
      if (!keep) queue.commands_.clear();
      queue.start_over();
    }
  } start_over{*this, may_repeat};
  n_commands_ = size_;
  if (!may_repeat || !makes_graphs_) return run_all();
  const auto found = graphs_.find(key_);
  if (found == graphs_.end()) {
    run_all();  // first: a kernel that was never loaded cannot be captured, and a list that failed has loaded not all
    if (graphs_.size() >= kMostGraphs) {
      synchronize(stream_);  // one of them may still run
      forget_graphs();
    }
    graphs_[key_] = {};
    return;
  }
  List& list = found->second;
  if (!list.graph && !list.plain) list.graph = capture();
  if (list.graph) {
    try {
      return launch_graph(list.graph, stream_);
    } catch (const DeviceError&) {  // of which nothing has started
      destroy_graph(std::exchange(list.graph, nullptr));
    }
  }
  list.plain = true;
  run_all();
}

}  // namespace gristmill::cuda

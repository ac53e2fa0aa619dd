#include "cuda/command_queue.h"

#include "core/error.h"

namespace gristmill::cuda {

void CommandQueue::forget_graphs() {
  for (const auto& [key, graph] : graphs_) destroy_graph(graph);
  graphs_.clear();
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
  if (!may_repeat) return run_all();
  const auto found = graphs_.find(key_);
  if (found == graphs_.end()) {
    run_all();  // first: a kernel that was never loaded cannot be captured, and a list that failed has loaded not all
    if (graphs_.size() >= kMostGraphs) forget_graphs();
    graphs_[key_] = nullptr;
    return;
  }
  if (!found->second) {
    begin_capture(stream_);
    try {
      run_all();
    } catch (...) {
      try {
        destroy_graph(end_capture(stream_));
      } catch (const DeviceError&) {  // a capture that failed has no graph; what made it fail is reported
      }
      throw;
    }
    found->second = end_capture(stream_);
  }
  launch_graph(found->second, stream_);
}

}  // namespace gristmill::cuda

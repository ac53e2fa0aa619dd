// The launches of a pass, held back until their results are wanted. A list that comes again, call for call with the
// same arguments, as every decoding step does, runs as one CUDA graph: what changes between steps (tokens, positions,
// caches) lies in device memory that the launches only point to. Such a list is kept, so that while it comes again
// nothing but its arguments is looked at.
#pragma once

#include <bit>
#include <cstdint>
#include <functional>
#include <type_traits>
#include <unordered_map>
#include <vector>

#include "cuda/runtime.h"
#include "cuda/switches.h"

namespace gristmill::cuda {

class CommandQueue {
 public:
  // graphs: whether lists may become such.
  explicit CommandQueue(Stream stream, bool graphs = switches().graphs) : stream_(stream), makes_graphs_(graphs) {}
  ~CommandQueue() { forget_graphs(); }
  CommandQueue(const CommandQueue&) = delete;
  CommandQueue& operator=(const CommandQueue&) = delete;

  // run() launches; it and the arguments, all scalars or pointers, say everything that it does.
  template <class F, class... Arguments>
  void push(const char* name, F&& run, Arguments... arguments) {
    if (!repeats(name, arguments...)) store(std::forward<F>(run));
  }
  // The same in two steps, where run() is not made for nothing: whether the kept list has this command here; else it is
  // stored.
  template <class... Arguments>
  bool repeats(const char* name, Arguments... arguments) {
    mix(reinterpret_cast<uintptr_t>(name));
    (mix(bits_of(arguments)), ...);
    const bool same = size_ < commands_.size() && commands_[size_].key == key_;
    size_ += same;
    return same;
  }
  template <class F>
  void store(F&& run) {
    commands_.resize(size_++);
    commands_.push_back({key_, std::forward<F>(run)});
  }
  // More of what the next command does.
  template <class T>
  void describe(T value) {
    mix(bits_of(value));
  }

  bool empty() const { return size_ == 0; }
  // Starts the list on the stream. may_repeat: whether the list is worth a graph when it comes for the second time.
  void flush(bool may_repeat);
  // Drops what was not started.
  void clear() {
    if (!empty()) commands_.clear();
    start_over();
  }

  // Drops what was kept of lists that came before: memory that they point to is about to go. Only while the queue is
  // empty and the stream idle.
  void forget() {
    commands_.clear();
    forget_graphs();
  }

  // Of the list that was started last.
  size_t n_commands() const { return n_commands_; }
  int n_graphs() const {
    int n = 0;
    for (const auto& [key, list] : graphs_) n += list.graph != nullptr;
    return n;
  }

 private:
  static constexpr uint64_t kSeed = 0x9e3779b97f4a7c15u;
  static constexpr size_t kMostGraphs = 64;

  template <class T>
  static uint64_t bits_of(T value) {
    if constexpr (std::is_pointer_v<T>) {
      return reinterpret_cast<uintptr_t>(value);
    } else if constexpr (std::is_floating_point_v<T>) {
      return std::bit_cast<uint64_t>(double(value));
    } else {
      return uint64_t(value);
    }
  }
  void mix(uint64_t v) { key_ = (key_ ^ v) * 0xbf58476d1ce4e5b9u ^ (key_ >> 29); }
  void run_all() {
    for (size_t i = 0; i < size_; ++i) commands_[i].run();
  }
  // What the list does, captured; nullptr where that is not to be had.
  Graph capture();
  void forget_graphs();
  void start_over() {
    size_ = 0;
    key_ = kSeed;
  }

  Stream stream_;
  bool makes_graphs_;
  struct Command {
    uint64_t key;  // of the list up to here
    std::function<void()> run;
  };
  std::vector<Command> commands_;  // of the list that grows, and what is left of the kept one behind it
  size_t size_ = 0;                // of the list that grows
  size_t n_commands_ = 0;
  uint64_t key_ = kSeed;
  struct List {
    Graph graph = nullptr;
    bool plain = false;  // no graph could be made of it, or run: never tried again
  };
  std::unordered_map<uint64_t, List> graphs_;  // of lists that were seen once
};

}  // namespace gristmill::cuda

// The launches of a pass, held back until their results are wanted. A list that comes again, call for call with the
// same arguments, as every decoding step does, runs as one CUDA graph: what changes between steps (tokens, positions,
// caches) lies in device memory that the launches only point to.
#pragma once

#include <bit>
#include <cstdint>
#include <functional>
#include <type_traits>
#include <unordered_map>
#include <vector>

#include "cuda/runtime.h"

namespace gristmill::cuda {

class CommandQueue {
 public:
  explicit CommandQueue(Stream stream) : stream_(stream) {}
  ~CommandQueue() { forget_graphs(); }
  CommandQueue(const CommandQueue&) = delete;
  CommandQueue& operator=(const CommandQueue&) = delete;

  // run() launches; it and the arguments, all scalars or pointers, say everything that it does.
  template <class F, class... Arguments>
  void push(const char* name, F&& run, Arguments... arguments) {
    mix(reinterpret_cast<uintptr_t>(name));
    (mix(bits_of(arguments)), ...);
    commands_.push_back(std::forward<F>(run));
  }
  // More of what the next command does.
  template <class T>
  void describe(T value) {
    mix(bits_of(value));
  }

  bool empty() const { return commands_.empty(); }
  // Starts the list on the stream. may_repeat: whether the list is worth a graph when it comes for the second time.
  void flush(bool may_repeat);
  // Drops what was not started.
  void clear() {
    commands_.clear();
    key_ = kSeed;
  }

  // Of the list that was started last.
  size_t n_commands() const { return n_commands_; }
  int n_graphs() const {
    int n = 0;
    for (const auto& [key, graph] : graphs_) n += graph != nullptr;
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
    for (const auto& command : commands_) command();
  }
  void forget_graphs();

  Stream stream_;
  std::vector<std::function<void()>> commands_;
  size_t n_commands_ = 0;
  uint64_t key_ = kSeed;
  std::unordered_map<uint64_t, Graph> graphs_;  // nullptr: seen once
};

}  // namespace gristmill::cuda

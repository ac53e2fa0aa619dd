// What a dependent launch must not read before its wait: everything that the launches ahead of it have changed, back to
// what waited for all that was before it (a copy, a fill, an ordinary launch, a graph). Each of them may still run,
// since every kernel lets the one behind it start before it has waited itself. A block of threads finds those bytes
// poisoned until none of its threads can go on without the wait.
#include <algorithm>
#include <cstring>
#include <map>

#include "emulation/thread.h"

namespace gristmill::cuda::emulation {
namespace {

struct Range {
  std::byte* at;
  size_t bytes;
};

std::map<const std::byte*, std::vector<std::byte>> before;  // memory as it was when the row of launches began
std::map<int, bool> is_row;                                 // of a device: whether one has begun
std::vector<Range> changed;
std::vector<std::byte> kept;  // what the ranges hold, while they are hidden
bool hidden = false;

void add_changes(std::byte* now, const std::byte* then, size_t bytes) {
  constexpr size_t kChunk = 512;
  for (size_t first = 0; first < bytes; first += kChunk) {
    const size_t end = std::min(bytes, first + kChunk);
    if (std::memcmp(now + first, then + first, end - first) == 0) continue;
    for (size_t i = first; i < end; ++i) {
      if (now[i] == then[i]) continue;
      if (changed.empty() || changed.back().at + changed.back().bytes != now + i) changed.push_back({now + i, 0});
      ++changed.back().bytes;
    }
  }
}

}  // namespace

void wait_for_everything(int device) { is_row[device] = false; }

void begin_launch(int device, bool dependent) {
  changed.clear();
  const bool joins = dependent && is_row[device];
  is_row[device] = true;
  for_each_allocation(device, [&](std::byte* now, size_t bytes) {
    std::vector<std::byte>& then = before[now];
    if (then.size() != bytes) then.assign(bytes, std::byte{kPoison});  // as it was allocated
    if (joins) {
      add_changes(now, then.data(), bytes);
    } else if (bytes > 0 && std::memcmp(then.data(), now, bytes) != 0) {
      std::memcpy(then.data(), now, bytes);
    }
  });
}

void hide_changes() {
  size_t total = 0;
  for (const Range& r : changed) total += r.bytes;
  kept.resize(total);
  std::byte* to = kept.data();
  for (const Range& r : changed) {
    std::memcpy(to, r.at, r.bytes);
    std::memset(r.at, kPoison, r.bytes);
    to += r.bytes;
  }
  hidden = true;
}

void show_changes() {
  if (!hidden) return;
  const std::byte* from = kept.data();
  for (const Range& r : changed) {
    std::memcpy(r.at, from, r.bytes);
    from += r.bytes;
  }
  hidden = false;
}

bool changes_hidden() { return hidden; }

}  // namespace gristmill::cuda::emulation

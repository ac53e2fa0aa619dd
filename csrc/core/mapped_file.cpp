#include "core/mapped_file.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <mutex>

#include "core/error.h"

namespace gristmill {
namespace {

// What the signal handler needs, in a fixed table of atomics: it may run on any thread at any time.
struct Slot {
  std::atomic<uintptr_t> begin{0}, end{0};
  std::atomic<bool> lost{false};
};
constexpr int kSlots = 1024;
Slot g_slots[kSlots];
struct sigaction g_previous;
std::mutex g_mutex;
const uintptr_t g_page = uintptr_t(sysconf(_SC_PAGESIZE));

void on_sigbus(int signal, siginfo_t* info, void* context) {
  const int error = errno;
  const uintptr_t address = reinterpret_cast<uintptr_t>(info->si_addr);
  const bool faulted = info->si_code > 0;  // not sent by kill() or raise(), whose si_addr means nothing
  for (Slot& slot : g_slots) {
    if (!faulted) break;
    const uintptr_t begin = slot.begin.load(std::memory_order_acquire);
    const uintptr_t end = slot.end.load(std::memory_order_acquire);
    if (begin == 0 || address < begin || address >= end) continue;
    if (slot.begin.load(std::memory_order_acquire) != begin) continue;  // the slot changed hands: end is another's
    // From here to the end of the mapping, so that a kernel crossing a long missing tail faults once, not once a page.
    const uintptr_t page = address & ~(g_page - 1);
    void* zeros = mmap(reinterpret_cast<void*>(page), end - page, PROT_READ,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
    if (zeros == MAP_FAILED) break;
    slot.lost.store(true, std::memory_order_release);
    errno = error;
    return;  // the read is tried again and finds zeros
  }
  // Not ours: whoever was there before decides.
  if (g_previous.sa_flags & SA_SIGINFO) {
    g_previous.sa_sigaction(signal, info, context);
  } else if (g_previous.sa_handler == SIG_DFL || (g_previous.sa_handler == SIG_IGN && faulted)) {
    // The default action, once this returns: a fault cannot be ignored, it would come again for ever.
    ::signal(SIGBUS, SIG_DFL);
    raise(SIGBUS);
  } else if (g_previous.sa_handler != SIG_IGN) {
    g_previous.sa_handler(signal);
  }
}

void install_handler() {
  static std::once_flag once;
  std::call_once(once, [] {
    struct sigaction action = {};
    action.sa_sigaction = on_sigbus;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, &action, &g_previous);
  });
}

int claim_slot(uintptr_t begin, uintptr_t end) {
  const std::lock_guard lock(g_mutex);
  for (int i = 0; i < kSlots; ++i) {
    if (g_slots[i].begin.load(std::memory_order_relaxed) != 0) continue;
    g_slots[i].lost.store(false, std::memory_order_relaxed);
    g_slots[i].end.store(end, std::memory_order_release);
    g_slots[i].begin.store(begin, std::memory_order_release);
    return i;
  }
  return -1;
}

// A mapping of a file's bytes that a large page may hold: on such a boundary, and asked for. What of a file is in no
// cache then is read 2 MiB at once, which is faster, and stays in large pages for as long as the system keeps it, where
// file system and kernel have them for files.
void* map_file(int fd, size_t bytes) {
  constexpr size_t kLargePage = size_t(2) << 20;
  if (bytes < kLargePage) return mmap(nullptr, bytes, PROT_READ, MAP_SHARED, fd, 0);
  const size_t reserved = (bytes + g_page - 1) / g_page * g_page + kLargePage;
  void* room = mmap(nullptr, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (room == MAP_FAILED) return room;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(room), end = begin + reserved;
  const uintptr_t aligned = (begin + kLargePage - 1) / kLargePage * kLargePage;
  const uintptr_t aligned_end = aligned + (bytes + g_page - 1) / g_page * g_page;
  void* map = mmap(reinterpret_cast<void*>(aligned), bytes, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0);
  const int error = errno;
  if (map == MAP_FAILED) {
    munmap(room, reserved);
    errno = error;
    return map;
  }
  if (begin < aligned) munmap(room, aligned - begin);
  if (aligned_end < end) munmap(reinterpret_cast<void*>(aligned_end), end - aligned_end);
#ifdef MADV_HUGEPAGE
  madvise(map, bytes, MADV_HUGEPAGE);  // advice that the system may not take
#endif
  return map;
}

}  // namespace

MappedFile::MappedFile(const std::string& path) : path_(path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a pipe is refused below, not waited for
  if (fd < 0) throw GGUFError(path + ": cannot be opened: " + std::strerror(errno));
  struct stat status = {};
  if (fstat(fd, &status) != 0 || !S_ISREG(status.st_mode) || status.st_size <= 0) {
    ::close(fd);
    throw GGUFError(path + ": not a regular, non-empty file");
  }
  size_ = uint64_t(status.st_size);
  void* map = map_file(fd, size_);
  const int error = errno;
  if (map == MAP_FAILED) {
    ::close(fd);
    throw DeviceError(path + ": cannot be mapped: " + std::strerror(error));
  }
  fd_ = fd;
  data_ = static_cast<const std::byte*>(map);
  const uintptr_t begin = reinterpret_cast<uintptr_t>(map);
  slot_ = claim_slot(begin, begin + (size_ + g_page - 1) / g_page * g_page);
  if (slot_ < 0) {
    munmap(map, size_);
    ::close(fd);
    throw DeviceError(path + ": more than " + std::to_string(kSlots) + " files are mapped");
  }
  install_handler();
}

MappedFile::~MappedFile() {
  g_slots[slot_].begin.store(0, std::memory_order_release);
  munmap(const_cast<std::byte*>(data_), size_);
  ::close(fd_);
}

void MappedFile::check() const {
  // The size too: a cut inside the last page raises no signal, its bytes just turn to zeros.
  struct stat status = {};
  const bool shorter = fstat(fd_, &status) == 0 && uint64_t(status.st_size) < size_;
  if (shorter || g_slots[slot_].lost.load(std::memory_order_acquire))
    throw GGUFError(path_ + ": the file was cut or became unreadable while it was in use; load it again");
}

}  // namespace gristmill

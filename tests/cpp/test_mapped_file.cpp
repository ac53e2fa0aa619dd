// A mapped file that is cut while it is mapped: reads give zeros, check() says so, nothing else is touched.
#include "core/mapped_file.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "core/error.h"

namespace gristmill {
namespace {

namespace fs = std::filesystem;
const size_t kPage = size_t(sysconf(_SC_PAGESIZE));
fs::path g_folder;

std::string make_file(const char* name, size_t size) {
  const std::string path = g_folder / name;
  std::ofstream(path, std::ios::binary) << std::string(size, 'x');
  return path;
}

// Read through volatile: what the compiler could not have kept from before. ThreadSanitizer takes the page that another
// thread's signal handler puts in place of a lost one for a write that races with this read; the kernel orders the two.
__attribute__((no_sanitize("thread"))) char at(const MappedFile& file, size_t i) {
  return *reinterpret_cast<const volatile char*>(file.data() + i);
}

template <class E, class F>
bool throws(const F& f, const std::string& part = "") {
  try {
    f();
  } catch (const E& e) {
    return std::string(e.what()).find(part) != std::string::npos;
  }
  return false;
}

void reads_what_is_there() {
  const MappedFile file(make_file("whole", 3 * kPage + 5));
  CHECK(file.size() == 3 * kPage + 5);
  CHECK(at(file, 0) == 'x' && at(file, 3 * kPage + 4) == 'x');
  file.check();
}

// The process's mappings, as the system tells them.
struct Mapping {
  uintptr_t begin, end;
  bool reserved;  // no access at all
  std::string path;
};

std::vector<Mapping> mappings() {
  std::vector<Mapping> found;
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    unsigned long begin = 0, end = 0;
    char access[5] = "";
    CHECK(std::sscanf(line.c_str(), "%lx-%lx %4s", &begin, &end, access) == 3, "%s", line.c_str());
    const size_t path = line.find('/');
    found.push_back({begin, end, std::strncmp(access, "---", 3) == 0, path < line.size() ? line.substr(path) : ""});
  }
  return found;
}

// A file that large pages may hold lies on a boundary of them, and what was reserved around it is given back.
void lies_on_large_pages() {
  constexpr size_t kLargePage = size_t(2) << 20;
  for (const size_t size : {kLargePage, 2 * kLargePage + 5}) {
    const std::string path = make_file("large", size);
    const auto is_the_file = [&](const Mapping& m) { return m.path == path; };
    {
      const MappedFile file(path);
      const auto begin = reinterpret_cast<uintptr_t>(file.data());
      const uintptr_t end = begin + (size + kPage - 1) / kPage * kPage;
      CHECK(begin % kLargePage == 0);
      CHECK(file.size() == size && at(file, 0) == 'x' && at(file, size - 1) == 'x');
      const std::vector<Mapping> now = mappings();
      CHECK(std::count_if(now.begin(), now.end(), is_the_file) == 1);
      for (const Mapping& m : now) {
        CHECK(!is_the_file(m) || (m.begin == begin && m.end == end));
        CHECK(!(m.reserved && (m.begin == end || m.end == begin)), "%zu bytes kept", size_t(m.end - m.begin));
      }
      CHECK(truncate(path.c_str(), off_t(kPage)) == 0);
      CHECK(at(file, 0) == 'x' && at(file, size - 1) == 0 && at(file, kPage) == 0);
      CHECK(throws<GGUFError>([&] { file.check(); }, "was cut"));
    }
    const std::vector<Mapping> left = mappings();
    CHECK(std::none_of(left.begin(), left.end(), is_the_file));
  }
}

void refuses_what_is_no_file() {
  CHECK(throws<GGUFError>([] { MappedFile file(g_folder / "missing"); }, "missing: cannot be opened"));
  CHECK(throws<GGUFError>([] { MappedFile file(g_folder); }, "not a regular"));
  CHECK(throws<GGUFError>([] { MappedFile file(make_file("empty", 0)); }, "not a regular, non-empty"));
  const std::string pipe = g_folder / "pipe";
  CHECK(mkfifo(pipe.c_str(), 0600) == 0);
  CHECK(throws<GGUFError>([&] { MappedFile file(pipe); }, "not a regular"));  // and does not wait for a writer
}

void cut_to(const std::string& path, size_t size) { CHECK(truncate(path.c_str(), off_t(size)) == 0); }

void cut_while_mapped() {
  const std::string path = make_file("cut", 8 * kPage), other_path = make_file("other", 8 * kPage);
  const MappedFile before(other_path), file(path), after(other_path);
  cut_to(path, 2 * kPage);
  CHECK(at(file, 0) == 'x' && at(file, 2 * kPage - 1) == 'x', "what the file still has");
  CHECK(at(file, 2 * kPage) == 0 && at(file, 5 * kPage) == 0 && at(file, 8 * kPage - 1) == 0, "what it lost");
  CHECK(throws<GGUFError>([&] { file.check(); }, path + ": the file was cut"));
  CHECK(throws<GGUFError>([&] { file.check(); }), "and it stays so");
  CHECK(at(before, 8 * kPage - 1) == 'x' && at(after, 8 * kPage - 1) == 'x');
  before.check();
  after.check();
}

// Seen before any lost page is read, and where no read would ever raise a signal.
void cut_is_seen_by_size() {
  const std::string path = make_file("tail", kPage + 100);
  const MappedFile file(path);
  file.check();
  cut_to(path, kPage + 50);
  CHECK(at(file, kPage + 60) == 0);
  CHECK(throws<GGUFError>([&] { file.check(); }));
  const std::string whole = make_file("whole again", 4 * kPage);
  const MappedFile again(whole);
  cut_to(whole, kPage);
  CHECK(at(again, 3 * kPage) == 0);
  cut_to(whole, 4 * kPage);  // grown back, but what was read was not the file
  CHECK(throws<GGUFError>([&] { again.check(); }));
}

void cut_under_many_threads() {
  for (int round = 0; round < 20; ++round) {
    const std::string path = make_file("many", 64 * kPage);
    const MappedFile file(path);
    std::atomic<int> wrong{0}, ready{0};
    std::vector<std::thread> readers;
    for (int t = 0; t < 6; ++t)
      readers.emplace_back([&, t] {
        ++ready;
        for (int pass = 0; pass < 20; ++pass)
          for (size_t page = 0; page < 64; ++page) {
            const char c = at(file, (t % 2 ? 63 - page : page) * kPage + 17);
            if (c != 'x' && c != 0) ++wrong;
          }
      });
    while (ready < 6) std::this_thread::yield();
    cut_to(path, size_t(round) * kPage);
    for (std::thread& reader : readers) reader.join();
    CHECK(wrong == 0);
    CHECK(at(file, 63 * kPage) == 0);
    CHECK(throws<GGUFError>([&] { file.check(); }));
  }
}

// A slot of the table is free again with its file: far more files one after the other than there are slots.
void slots_are_reused() {
  const std::string path = make_file("slots", kPage);
  for (int i = 0; i < 3000; ++i) MappedFile(path).check();
  std::vector<std::unique_ptr<MappedFile>> many;
  // Open files are limited too; whichever limit is met first is an error, and going below it helps.
  CHECK(throws<Error>([&] {
    for (int i = 0; i < 5000; ++i) many.push_back(std::make_unique<MappedFile>(path));
  }));
  CHECK(many.size() > 100, "%zu", many.size());
  many.pop_back();
  MappedFile(path).check();
}

// In a child, for the process may end by it. Returns waitpid's status.
template <class F>
int in_child(const F& f) {
  const pid_t child = fork();
  if (child == 0) {
    f();
    _exit(test::failure_count() ? 1 : 0);
  }
  int status = -1;
  waitpid(child, &status, 0);
  return status;
}

// Reads a page that a file mapped by someone else has lost.
void fault_of_another() {
  const std::string path = make_file("foreign", kPage);
  const int fd = open(path.c_str(), O_RDONLY);
  const auto* p = static_cast<const volatile char*>(mmap(nullptr, kPage, PROT_READ, MAP_SHARED, fd, 0));
  cut_to(path, 0);
  static_cast<void>(*p);
}

void previous_handler_is_asked() {
  // Handlers are installed with the first file, so this runs before any other part of the test: see main.
  const std::string path = make_file("ours", 2 * kPage);
  const auto with_handler = [&](auto install, auto fault) {
    return in_child([&] {
      install();
      const MappedFile file(path);
      fault();
    });
  };
  const auto exits = [](int code) {
    return [code] {
      static int exit_code;
      exit_code = code;
      struct sigaction action = {};
      action.sa_flags = SA_SIGINFO;
      action.sa_sigaction = [](int, siginfo_t*, void*) { _exit(exit_code); };
      sigaction(SIGBUS, &action, nullptr);
    };
  };
  const auto is = [](void (*handler)(int)) { return [handler] { signal(SIGBUS, handler); }; };
  const auto killed = [](int status) { return WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS; };

  int status = with_handler(exits(42), fault_of_another);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 42, "SA_SIGINFO handler, status %d", status);
  status = with_handler(is([](int) { _exit(43); }), fault_of_another);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 43, "plain handler, status %d", status);
  CHECK(killed(with_handler(is(SIG_DFL), fault_of_another)), "default action");
  CHECK(killed(with_handler(is(SIG_IGN), fault_of_another)), "a fault cannot be ignored");
  // A signal that was sent, not caused by a read.
  CHECK(killed(with_handler(is(SIG_DFL), [] { raise(SIGBUS); })), "sent, default action");
  CHECK(with_handler(is(SIG_IGN), [] { raise(SIGBUS); }) == 0, "sent and ignored");
  status = with_handler(exits(44), [] { kill(getpid(), SIGBUS); });
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 44, "sent, handler, status %d", status);
  // And one of ours goes to nobody else.
  const int ours = with_handler(exits(45), [&] {
    const MappedFile file(path);
    cut_to(path, kPage);
    CHECK(at(file, kPage) == 0);
  });
  CHECK(ours == 0, "status %d", ours);
}

}  // namespace
}  // namespace gristmill

int main() {
  using namespace gristmill;
  char folder[] = "/tmp/gristmill-mapped-XXXXXX";
  g_folder = mkdtemp(folder);
  previous_handler_is_asked();
  reads_what_is_there();
  lies_on_large_pages();
  refuses_what_is_no_file();
  cut_while_mapped();
  cut_is_seen_by_size();
  cut_under_many_threads();
  slots_are_reused();
  fs::remove_all(g_folder);
  return test::failures("test_mapped_file");
}

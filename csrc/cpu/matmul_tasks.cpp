// How products are cut into tasks: some rows of weights, by few tokens in decoding or many of a prompt.
#include <algorithm>
#include <vector>

#include "cpu/cpu_backend.h"

namespace gristmill::cpu {
namespace {

// Rows of x that share a pass over the weights in prefill: their sums fit a core's own cache.
constexpr int kPrefillRows = 512;

// Tasks a thread at least in prefill, so that the last is not waited for.
constexpr int kPrefillTasks = 4;

// Bytes of weights of a decode task. At most: kernels read a task as sixteen streams, which are slower the further
// apart they are, and threads end closer together. At least: shorter streams end before the hardware runs ahead of
// them. Threads that have kHalvedBytes each get two tasks, so that a faster one takes some of a slower one's.
constexpr int64_t kMostTaskBytes = 2 << 20, kHalvedBytes = 1 << 20, kLeastTaskBytes = 256 << 10;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Tasks that memory wants a weight to be decoded in.
int64_t decode_tasks(const Weight& w, int n_threads) {
  const int64_t bytes = w.n_rows * w.row_bytes();
  const int64_t threads_want = bytes < kHalvedBytes * n_threads ? n_threads : 2 * int64_t(n_threads);
  const int64_t size_wants = bytes / kMostTaskBytes;
  // As many for each thread, where there are few.
  const int64_t most = divide_up(std::max(threads_want, size_wants), n_threads) * n_threads;
  return std::clamp<int64_t>(bytes / kLeastTaskBytes, 1, most);
}

}  // namespace

const std::byte* CpuBackend::quantize(const Activations& a, const float* x, int n, int64_t n_cols, int rows_at_once,
                                      AlignedBuffer<std::byte>& to) {
  const int64_t part_bytes = a.bytes(n_cols, rows_at_once);
  const int parts = (n + rows_at_once - 1) / rows_at_once;
  std::byte* out = to.grow(size_t(parts) * size_t(part_bytes));
  for (int part = 0; part < parts; ++part) {
    const int first = part * rows_at_once, rows = std::min(rows_at_once, n - first);
    for_ranges((rows + a.tokens - 1) / a.tokens, kElementGrain / (a.tokens * n_cols), [&](int64_t begin, int64_t end) {
      for (int64_t tile = begin; tile < end; ++tile)
        a.quantize(x + first * n_cols, n_cols, rows, tile, out + part * part_bytes);
    });
  }
  return out;
}

std::vector<CpuBackend::Rows> CpuBackend::cut(std::span<const Product> products, bool decode) const {
  const int n_threads = pool_.n_threads();
  int64_t all_rows = 0;
  for (const Product& p : products) all_rows += p.weight->n_rows;
  // No task of decoding is more than a thread's even share: however few bytes there are, all threads read.
  const int64_t share = std::max<int64_t>(divide_up(all_rows, n_threads), 1);
  std::vector<Rows> cuts;
  for (size_t i = 0; i < products.size(); ++i) {
    const Weight& w = *products[i].weight;
    const int64_t m = w.n_rows, whole = decode ? 16 : kernels_.panel_rows;
    int64_t step = kernels_.prefill_rows;
    if (decode) step = divide_up(m, std::max(decode_tasks(w, n_threads), divide_up(m, share)));
    // Small matrices in prefill: smaller tasks.
    while (!decode && step > whole && divide_up(all_rows, step) < kPrefillTasks * n_threads) step /= 2;
    step = std::max(whole, (decode ? divide_up(step, whole) : step / whole) * whole);
    for (int64_t r = 0; r < m; r += step) cuts.push_back({i, r, std::min(m, r + step)});
  }
  return cuts;
}

void CpuBackend::matmul(std::span<const Product> products, const float* x, int n, Phase phase) {
  const int64_t n_cols = products.front().weight->n_cols;
  const Pass pass = pass_for(phase, precise_);
  const bool decode = phase != Phase::kPrefill;
  if (n == 0) return;
  const int rows_at_once = std::min(n, decode ? kDecodeRows : kPrefillRows);
  // What each product reads. Formats may want x in different ways, of which each is made once.
  std::vector<const std::byte*> inputs;
  size_t n_ways = 0;
  const auto activations = [&](size_t i) -> const Activations& {
    return kernels_.activations[int(pass)][format_index(products[i].weight->format)];
  };
  for (size_t i = 0; i < products.size(); ++i) {
    const Activations& a = activations(i);
    size_t same = 0;
    while (same < i && activations(same).quantize != a.quantize) ++same;
    if (same < i) {
      inputs.push_back(inputs[same]);
    } else if (!a.quantize) {
      inputs.push_back(reinterpret_cast<const std::byte*>(x));
    } else {
      if (n_ways == quantized_.size()) quantized_.emplace_back();
      inputs.push_back(quantize(a, x, n, n_cols, rows_at_once, quantized_[n_ways++]));
    }
  }
  std::vector<MatmulTask> tasks;
  for (const Rows& rows : cut(products, decode)) {
    const Product& p = products[rows.product];
    const Activations& a = activations(rows.product);
    // One after the other what reads the same weights.
    for (int first = 0; first < n; first += rows_at_once) {
      tasks.push_back({p.weight, rows.begin, rows.end,
                       inputs[rows.product] + first / rows_at_once * a.bytes(n_cols, rows_at_once), a.bytes(n_cols, 1),
                       std::min(rows_at_once, n - first), p.bias, p.y + first * p.weight->n_rows,
                       kernels_.float_ahead});
    }
  }
  pool_.run(int(tasks.size()), [&](int i) {
    const MatmulTask& task = tasks[size_t(i)];
    kernels_.matmul[int(pass)][format_index(task.w->format)](task);
  });
}

}  // namespace gristmill::cpu

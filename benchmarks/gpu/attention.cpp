// Attention alone: decoding reads the cache once, prefill multiplies by mma.sync.
#include "cuda/attention.h"

#include <numeric>
#include <set>

#include "bench.h"
#include "cuda/elementwise.h"
#include "verify.h"

namespace gristmill::cuda::bench {
namespace {

const char* name_of(KvType type) { return type == KvType::F16 ? "f16 cache, " : "q8_0 cache, "; }

constexpr float kScale = 0.09f;

// Keys and values of as many positions as any cache here has, drawn once: the host takes its time.
struct Noise {
  static constexpr int kShift = 7;  // positions from a sequence's keys to the next one's, and to its values
  DevicePointer<float> floats;

  static int64_t row(const Sizes& s) { return s.n_head_kv * s.head_dim; }
  Noise(const Context& c, int64_t positions) : floats(random_floats(c, size_t(positions * row(c.sizes)))) {}
};

// Layers of a cache for each of n sequences, more than L2 holds together.
struct Caches {
  KvLayout layout;
  std::vector<DevicePointer<std::byte>> memory;
  DevicePointer<std::byte*> addresses;
  DevicePointer<int32_t> positions, sequences;

  Caches(const Context& c, const Noise& noise, KvType type, int64_t n_ctx, int n)
      : addresses(make_device<std::byte*>(size_t(n))),
        positions(make_device<int32_t>(size_t(n))),
        sequences(make_device<int32_t>(size_t(n))) {
    const Sizes& s = c.sizes;
    layout = {type, type, 1, int(s.n_head_kv), int(s.head_dim), int(s.head_dim), n_ctx};
    layout.n_layer = int(c.copies(layout.total_bytes() * n));
    std::vector<std::byte*> at;
    std::vector<int32_t> last(size_t(n), int32_t(n_ctx - 1)), index;
    for (int i = 0; i < n; ++i) {
      memory.push_back(make_device<std::byte>(size_t(layout.total_bytes())));
      at.push_back(memory.back().get());
      index.push_back(i);
    }
    copy_to_device(addresses.get(), at.data(), at.size() * sizeof(std::byte*), c.stream);
    copy_to_device(positions.get(), last.data(), last.size() * sizeof(int32_t), c.stream);
    copy_to_device(sequences.get(), index.data(), index.size() * sizeof(int32_t), c.stream);
    synchronize(c.stream);  // the host's copies go
    for (int i = 0; i < n; ++i) fill_cache(c, noise, i);
  }

 private:
  void fill_cache(const Context& c, const Noise& noise, int sequence) {
    const size_t n = size_t(layout.n_ctx);
    std::vector<int32_t> all(n);
    std::iota(all.begin(), all.end(), 0);
    const std::vector<int32_t> which(n, sequence);
    const auto p = make_device<int32_t>(n), s = make_device<int32_t>(n);
    copy_to_device(p.get(), all.data(), n * sizeof(int32_t), c.stream);
    copy_to_device(s.get(), which.data(), n * sizeof(int32_t), c.stream);
    const float* const k = noise.floats.get() + sequence * Noise::kShift * Noise::row(c.sizes);
    for (int layer = 0; layer < layout.n_layer; ++layer)
      store_kv({int(n), p.get(), s.get(), addresses.get()}, layout, layer, k, k + Noise::kShift * Noise::row(c.sizes),
               c.stream);
    synchronize(c.stream);
  }
};

// n sequences of n_ctx positions each, one token of each.
void bench_decode(const Context& c, const Noise& noise, KvType type, int64_t n_ctx, int n) {
  const Caches caches(c, noise, type, n_ctx, n);
  const KvLayout& layout = caches.layout;
  const int heads = int(c.sizes.n_head);
  const size_t width = size_t(n) * size_t(heads) * size_t(c.sizes.head_dim);
  const auto q = random_floats(c, width);
  const auto out = make_device<float>(width);
  const auto space = make_device<std::byte>(size_t(decode_attention_workspace(layout, heads, n, c.device)));
  const size_t n_counters = size_t(n) * size_t(layout.n_head_kv);
  const auto counters = make_device<unsigned>(n_counters);
  fill(counters.get(), 0, n_counters * sizeof(unsigned), c.stream);
  fill(out.get(), 0xff, width * sizeof(float), c.stream);
  const int launches = rounds(c, layout.n_layer);
  const DeviceBatch batch{n, caches.positions.get(), caches.sequences.get(), caches.addresses.get()};
  const double ms = graph_ms(c, launches, [&](int i) {
    decode_attention(batch, layout, i % layout.n_layer, q.get(), heads, kScale, out.get(), {}, space.get(),
                     counters.get(), c.device, c.stream);
  });
  const std::string name = std::string("decode, ") + name_of(type) + std::to_string(n) + " x " + std::to_string(n_ctx);
  report_bytes("attention", name, double(layout.head_bytes() * layout.n_head_kv * n), ms, c.limits.copy_bytes, "copy");
  const size_t row = width / size_t(n);
  for (const int i : std::set{0, n - 1})
    verify_attention(c, "attention " + name, layout, caches.memory[size_t(i)].get(), (launches - 1) % layout.n_layer,
                     n_ctx, q.get() + size_t(i) * row, heads, kScale, out.get() + size_t(i) * row, 1e-4);
}

// A pass of tokens after n_past that are in the cache.
void bench_prefill(const Context& c, const Noise& noise, KvType type, int64_t n_past) {
  const int n = c.sizes.prefill, heads = int(c.sizes.n_head);
  const Caches caches(c, noise, type, n_past + n, 1);
  const size_t width = size_t(n) * size_t(heads) * size_t(c.sizes.head_dim);
  const auto q = random_floats(c, width);
  const auto out = make_device<float>(width);
  fill(out.get(), 0xff, width * sizeof(float), c.stream);
  int layer = 0;
  const double ms = median_ms(c, 2, [&](int i) {
    layer = i % caches.layout.n_layer;
    prefill_attention(caches.memory.front().get(), caches.layout, layer, q.get(), heads, n, n_past, kScale, out.get(),
                      c.stream);
  });
  // Row t sees n_past + t + 1 positions, each of which costs head_dim products for its score and as many for its value.
  const double seen = double(n) * double(n_past) + 0.5 * double(n) * double(n + 1);
  const double rate = 1e3 * 4.0 * seen * double(heads * c.sizes.head_dim) / ms;
  const std::string name =
      std::string("prefill, ") + name_of(type) + std::to_string(n) + " after " + std::to_string(n_past);
  report("attention", name, rate / 1e12, "TFLOP/s", rate / c.limits.half_flops, "mma.sync f16");
  const size_t row = width / size_t(n);
  for (const int t : std::set{0, n / 3, n - 1})
    verify_attention(c, "attention " + name, caches.layout, caches.memory.front().get(), layer, n_past + t + 1,
                     q.get() + size_t(t) * row, heads, kScale, out.get() + size_t(t) * row, 4e-3);
}

}  // namespace

void bench_attention(const Context& c) {
  const Sizes& sizes = c.sizes;
  const Noise noise(c, std::max(sizes.contexts.back(), sizes.contexts.back() / 4 + sizes.prefill) +
                           Noise::kShift * (sizes.sequences.back() + 1));
  for (const KvType type : {KvType::F16, KvType::Q8_0}) {
    for (const int64_t n_ctx : sizes.contexts) bench_decode(c, noise, type, n_ctx, 1);
    for (const int n : sizes.sequences) bench_decode(c, noise, type, sizes.shared_context, n);
    bench_prefill(c, noise, type, 0);
    bench_prefill(c, noise, type, sizes.contexts.back() / 4);
  }
}

}  // namespace gristmill::cuda::bench

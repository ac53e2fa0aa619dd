// Attention alone: decoding reads the cache once, prefill multiplies by mma.sync.
#include "cuda/attention.h"
#include "bench.h"

namespace gristmill::cuda::bench {
namespace {

const char* name_of(KvType type) { return type == KvType::F16 ? "f16 cache, " : "q8_0 cache, "; }

// Layers of a cache for each of n sequences, more than L2 holds together.
struct Caches {
  KvLayout layout;
  std::vector<DevicePointer<std::byte>> memory;
  DevicePointer<std::byte*> addresses;
  DevicePointer<int32_t> positions, sequences;

  Caches(const Context& c, KvType type, int64_t n_ctx, int n)
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
      fill(memory.back().get(), 0x11, size_t(layout.total_bytes()), c.stream);
      at.push_back(memory.back().get());
      index.push_back(i);
    }
    copy_to_device(addresses.get(), at.data(), at.size() * sizeof(std::byte*), c.stream);
    copy_to_device(positions.get(), last.data(), last.size() * sizeof(int32_t), c.stream);
    copy_to_device(sequences.get(), index.data(), index.size() * sizeof(int32_t), c.stream);
    synchronize(c.stream);  // the host's copies go
  }
};

// n sequences of n_ctx positions each, one token of each.
void bench_decode(const Context& c, KvType type, int64_t n_ctx, int n) {
  const Caches caches(c, type, n_ctx, n);
  const KvLayout& layout = caches.layout;
  const int heads = int(c.sizes.n_head);
  const size_t width = size_t(n) * size_t(heads) * size_t(c.sizes.head_dim);
  const auto q = random_floats(c, width);
  const auto out = make_device<float>(width);
  const auto space = make_device<std::byte>(size_t(decode_attention_workspace(layout, heads, n, c.device)));
  const size_t n_counters = size_t(n) * size_t(layout.n_head_kv);
  const auto counters = make_device<unsigned>(n_counters);
  fill(counters.get(), 0, n_counters * sizeof(unsigned), c.stream);
  const DeviceBatch batch{n, caches.positions.get(), caches.sequences.get(), caches.addresses.get()};
  const double ms = graph_ms(c, rounds(c, layout.n_layer), [&](int i) {
    decode_attention(batch, layout, i % layout.n_layer, q.get(), heads, 0.09f, out.get(), {}, space.get(),
                     counters.get(), c.device, c.stream);
  });
  report_bytes("attention", std::string("decode, ") + name_of(type) + std::to_string(n) + " x " + std::to_string(n_ctx),
               double(layout.head_bytes() * layout.n_head_kv * n), ms, c.limits.read_bytes, "read");
}

// A pass of tokens after n_past that are in the cache.
void bench_prefill(const Context& c, KvType type, int64_t n_past) {
  const int n = c.sizes.prefill, heads = int(c.sizes.n_head);
  const Caches caches(c, type, n_past + n, 1);
  const size_t width = size_t(n) * size_t(heads) * size_t(c.sizes.head_dim);
  const auto q = random_floats(c, width);
  const auto out = make_device<float>(width);
  const double ms = median_ms(c, 2, [&](int i) {
    prefill_attention(caches.memory.front().get(), caches.layout, i % caches.layout.n_layer, q.get(), heads, n, n_past,
                      0.09f, out.get(), c.stream);
  });
  // Row t sees n_past + t + 1 positions, each of which costs head_dim products for its score and as many for its value.
  const double seen = double(n) * double(n_past) + 0.5 * double(n) * double(n + 1);
  const double rate = 1e3 * 4.0 * seen * double(heads * c.sizes.head_dim) / ms;
  report("attention", std::string("prefill, ") + name_of(type) + std::to_string(n) + " after " + std::to_string(n_past),
         rate / 1e12, "TFLOP/s", rate / c.limits.half_flops, "mma.sync f16");
}

}  // namespace

void bench_attention(const Context& c) {
  for (const KvType type : {KvType::F16, KvType::Q8_0}) {
    for (const int64_t n_ctx : c.sizes.contexts) bench_decode(c, type, n_ctx, 1);
    for (const int n : c.sizes.sequences) bench_decode(c, type, c.sizes.shared_context, n);
    bench_prefill(c, type, 0);
    bench_prefill(c, type, c.sizes.contexts.back() / 4);
  }
}

}  // namespace gristmill::cuda::bench

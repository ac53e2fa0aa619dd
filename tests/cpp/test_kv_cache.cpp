// Where the CPU's KV cache keeps keys and values. Attention scores kTile positions at a time, whatever the context's
// length, so that each head's K must hold whole tiles, and what stands behind the last position must not matter.
#include "cpu/cpu_kv_cache.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "check.h"
#include "core/half.h"
#include "cpu/cpu_backend.h"
#include "cpu/dispatch.h"

namespace gristmill::cpu {
namespace {

constexpr std::array kTypes = {KvType::F32, KvType::F16, KvType::Q8_0};
constexpr std::array<int64_t, 7> kContexts = {1, 16, 17, 32, 65, 80, 129};
constexpr int kLayers = 2, kHeads = 4, kHeadsKv = 2;

template <class F>
void for_every_shape(const F& f) {
  for (const KvType type_k : kTypes)
    for (const KvType type_v : kTypes)
      for (const int head_dim : {64, 128})
        for (const int64_t n_ctx : kContexts) f(KvShape{kLayers, kHeadsKv, head_dim, head_dim, n_ctx, type_k, type_v});
}

void regions() {
  for_every_shape([](const KvShape& s) {
    const CpuKvCache cache(s);
    const int64_t tiles = (s.n_ctx + kTile - 1) / kTile;
    const int64_t k_bytes = tiles * kv_tile_bytes(s.type_k, s.head_dim_k);
    const int64_t v_bytes = tiles * kv_tile_bytes(s.type_v, s.head_dim_v);
    const auto n_ctx = static_cast<long long>(s.n_ctx);
    const std::byte* end = cache.k(0, 0);
    for (int layer = 0; layer < kLayers; ++layer) {
      for (int head = 0; head < kHeadsKv; ++head) {
        std::byte *k = cache.k(layer, head), *v = cache.v(layer, head);
        CHECK(k >= end, "layer %d, head %d: K overlaps the region before, n_ctx %lld", layer, head, n_ctx);
        CHECK(v - k >= k_bytes, "types %d and %d, head_dim %d, n_ctx %lld: K has %lld bytes, whole tiles %lld",
              int(s.type_k), int(s.type_v), s.head_dim_k, n_ctx, static_cast<long long>(v - k),
              static_cast<long long>(k_bytes));
        // All of it is mapped: a byte that is not ends the test here.
        std::memset(k, 0xff, size_t(v - k));
        std::memset(v, 0xff, size_t(v_bytes));
        end = v + v_bytes;
      }
    }
  });
}

// Every position has the same value, so that attention returns it whatever the scores, unless one of them is NaN.
void attend(const Kernels& kernels, const KvShape& s, bool decode) {
  CpuBackend backend(kernels, 1);
  const auto made = backend.make_cache(s);
  auto& cache = static_cast<CpuKvCache&>(*made);
  const int layer = kLayers - 1;
  std::memset(cache.k(0, 0), 0xff, size_t(cache.chunk_bytes()));  // NaN in every type
  const int n = int(s.n_ctx);
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  std::vector<float> k(size_t(n) * kHeadsKv * size_t(s.head_dim_k)), v(k.size());
  for (float& x : k) x = normal(random);
  for (size_t i = 0; i < v.size(); ++i) v[i] = float(i % (kHeadsKv * size_t(s.head_dim_v))) / 64 - 1;
  Batch batch;
  batch.spans = {{&cache, 0, n}};
  batch.tokens.resize(size_t(n));
  backend.store_kv(batch, layer, k.data(), v.data());
  if (decode) {
    cache.advance(n - 1);
    batch.spans = {{&cache, 0, 1}};
    batch.tokens.resize(1);
  }
  const size_t rows = batch.tokens.size(), width = size_t(kHeads) * size_t(s.head_dim_v);
  std::vector<float> q(rows * width), out(q.size(), NAN);
  for (float& x : q) x = normal(random);
  backend.attention(batch, layer, q.data(), kHeads, 1 / std::sqrt(float(s.head_dim_k)), out.data());
  float worst = 0;
  for (size_t i = 0; i < out.size(); ++i) {
    const size_t head = i % width / size_t(s.head_dim_v) / (kHeads / kHeadsKv);
    const float error = std::fabs(out[i] - v[head * size_t(s.head_dim_v) + i % size_t(s.head_dim_v)]);
    worst = std::isnan(error) ? INFINITY : std::max(worst, error);
  }
  // Values go up to 3: half a step of Q8_0 is 3 / 254, of float16 less.
  CHECK(worst <= 0.013f, "%s, %s: types %d and %d, head_dim %d, n_ctx %d: off by %g", kernels.name,
        decode ? "decoding" : "prefill", int(s.type_k), int(s.type_v), s.head_dim_k, n, double(worst));
}

void full_contexts() {
  for (const std::string& isa : supported_isas())
    for_every_shape([&](const KvShape& s) {
      attend(choose_kernels(isa), s, false);
      attend(choose_kernels(isa), s, true);
    });
}

// What a cache holds of dimension d of a position of layer 0, head 0, by kv_layout.h.
double key_at(const CpuKvCache& cache, int position, int d) {
  const KvShape& s = cache.shape();
  const std::byte* tile = cache.k(0, 0) + position / kTile * kv_tile_bytes(s.type_k, s.head_dim_k);
  const int at = position % kTile, i = (at / kPositions * s.head_dim_k + d) * kPositions + at % kPositions;
  if (s.type_k == KvType::F32) return reinterpret_cast<const float*>(tile)[i];
  if (s.type_k == KvType::F16) return half_to_float(reinterpret_cast<const uint16_t*>(tile)[i]);
  const auto& part = reinterpret_cast<const BytePart*>(tile)[d / kPartDims];
  return double(half_to_float(part.scale[at])) * part.code[k_code(at, d % kPartDims)];
}
double value_at(const CpuKvCache& cache, int position, int d) {
  const KvShape& s = cache.shape();
  const std::byte* tile = cache.v(0, 0) + position / kTile * kv_tile_bytes(s.type_v, s.head_dim_v);
  const int at = position % kTile, i = at * s.head_dim_v + d;
  if (s.type_v == KvType::F32) return reinterpret_cast<const float*>(tile)[i];
  if (s.type_v == KvType::F16) return half_to_float(reinterpret_cast<const uint16_t*>(tile)[i]);
  const auto& part = reinterpret_cast<const BytePart*>(tile)[d / kPartDims];
  return double(half_to_float(part.scale[at])) * part.code[v_code(at, d % kPartDims)];
}

// One token's attention to what the cache holds, against float64: any number of queries a head, positions that fill no
// tile, one in fifty four times as large. Integers of 16 bits are the least exact way there is.
void exact() {
  constexpr int dim = 96;
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  for (const std::string& isa : supported_isas()) {
    for (const KvType type_k : kTypes) {
      for (const KvType type_v : kTypes) {
        for (const auto& [heads, n] :
             {std::pair{1, 1}, {2, 64}, {5, 65}, {6, 170}, {7, 3}, {13, 170}, {17, 65}, {25, 130}}) {
          CpuBackend backend(choose_kernels(isa), 1);
          const auto made = backend.make_cache({1, 1, dim, dim, n, type_k, type_v});
          auto& cache = static_cast<CpuKvCache&>(*made);
          std::memset(cache.k(0, 0), 0xff, size_t(cache.chunk_bytes()));
          std::vector<float> k(size_t(n) * dim), v(k.size()), q(size_t(heads) * dim), out(q.size(), NAN);
          for (auto* x : {&k, &v, &q})
            for (float& value : *x) value = normal(random) * (random() % 50 == 0 ? 4.0f : 1.0f);
          Batch batch;
          batch.spans = {{&cache, 0, n}};
          batch.tokens.resize(size_t(n));
          backend.store_kv(batch, 0, k.data(), v.data());
          cache.advance(n - 1);
          batch.spans = {{&cache, 0, 1}};
          batch.tokens.resize(1);
          const float scale = 1 / std::sqrt(float(dim));
          backend.attention(batch, 0, q.data(), heads, scale, out.data());
          double worst = 0, size = 0;
          for (int head = 0; head < heads; ++head) {
            std::vector<double> p(static_cast<size_t>(n));
            double sum = 0;
            for (int t = 0; t < n; ++t) {
              double score = 0;
              for (int d = 0; d < dim; ++d) score += double(q[size_t(head * dim + d)]) * key_at(cache, t, d);
              sum += p[size_t(t)] = std::exp(score * double(scale));
            }
            for (int d = 0; d < dim; ++d) {
              double expected = 0;
              for (int t = 0; t < n; ++t) expected += p[size_t(t)] / sum * value_at(cache, t, d);
              const double error = double(out[size_t(head * dim + d)]) - expected;
              worst = std::isnan(error) ? INFINITY : std::max(worst, std::fabs(error));
              size += expected * expected / (heads * dim);
            }
          }
          const bool bytes = type_k == KvType::Q8_0 || type_v == KvType::Q8_0;
          CHECK(worst <= (bytes ? 1e-3 : 2e-5) * std::sqrt(size),
                "%s: types %d and %d, %d heads, %d positions: off by %g of %g", isa.c_str(), int(type_k), int(type_v),
                heads, n, worst, std::sqrt(size));
        }
      }
    }
  }
}

// The rows of a prompt have the same bits whether they come together or cut, also where a head is no multiple of what
// values are added by at a time.
void cut_prompts() {
  constexpr int n = 80, dim = 96, rows = 20;
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  for (const std::string& isa : supported_isas()) {
    for (const KvType type_k : kTypes) {
      for (const KvType type_v : kTypes) {
        CpuBackend backend(choose_kernels(isa), 1);
        const auto made = backend.make_cache({1, 1, dim, dim, n, type_k, type_v});
        auto& cache = static_cast<CpuKvCache&>(*made);
        std::vector<float> k(size_t{n} * dim), v(k.size()), q(size_t{rows} * dim), whole(q.size()), cut(q.size());
        for (auto* x : {&k, &v, &q})
          for (float& value : *x) value = normal(random);
        Batch batch;
        batch.spans = {{&cache, 0, n}};
        batch.tokens.resize(n);
        backend.store_kv(batch, 0, k.data(), v.data());
        const auto attend = [&](int first, int count, float* out) {
          cache.truncate(0);
          cache.advance(n - rows + first);
          batch.spans = {{&cache, 0, count}};
          batch.tokens.resize(size_t(count));
          backend.attention(batch, 0, q.data() + first * dim, 1, 0.1f, out + first * dim);
        };
        attend(0, rows, whole.data());
        attend(0, 18, cut.data());
        attend(18, 2, cut.data());
        CHECK(whole == cut, "%s: types %d and %d", isa.c_str(), int(type_k), int(type_v));
      }
    }
  }
}

// A query that is not finite has an output that is not.
void bad_queries() {
  for (const std::string& isa : supported_isas()) {
    for (const KvType type : kTypes) {
      for (const float bad : {NAN, INFINITY, -INFINITY}) {
        CpuBackend backend(choose_kernels(isa), 1);
        const auto made = backend.make_cache({1, 1, 64, 64, 64, type, type});
        auto& cache = static_cast<CpuKvCache&>(*made);
        constexpr int n = 20;
        std::vector<float> k(size_t{n} * 64), v(k.size(), 0.5f), q(2 * 64, 1.0f), out(q.size());
        for (size_t i = 0; i < k.size(); ++i) k[i] = i % 2 ? 0.5f : -0.5f;
        q[64 + 40] = bad;
        Batch batch;
        batch.spans = {{&cache, 0, n}};
        batch.tokens.resize(n);
        backend.store_kv(batch, 0, k.data(), v.data());
        cache.advance(n - 1);
        batch.spans = {{&cache, 0, 1}};
        batch.tokens.resize(1);
        backend.attention(batch, 0, q.data(), 2, 0.125f, out.data());
        CHECK(std::isfinite(out[0]) && !std::isfinite(out[64]), "%s: type %d, query of %g: %g and %g", isa.c_str(),
              int(type), double(bad), double(out[0]), double(out[64]));
      }
    }
  }
}

constexpr int kDimK = 64, kDimV = 96, kLayer = 1;

// Keys are zero but for position `wanted`, which every query asks for; values tell the position and the head.
void fill(CpuBackend& backend, CpuKvCache& cache, int n, int wanted) {
  std::vector<float> k(size_t(n) * kHeadsKv * kDimK), v(size_t(n) * kHeadsKv * kDimV);
  for (size_t i = 0; i < v.size(); ++i) v[i] = float(1 + int(i / (kHeadsKv * kDimV)) % 61 + int(i / kDimV) % kHeadsKv);
  std::fill_n(k.begin() + ptrdiff_t(wanted) * kHeadsKv * kDimK, kHeadsKv * kDimK, 1.0f);
  Batch batch;
  batch.spans = {{&cache, 0, n}};
  batch.tokens.resize(size_t(n));
  cache.truncate(0);
  backend.store_kv(batch, kLayer, k.data(), v.data());
  cache.advance(n);
}

// The last `rows` positions attend: the last of them gets the value of position `wanted`.
void expect(CpuBackend& backend, CpuKvCache& cache, const char* isa, int rows, int wanted) {
  const KvShape& s = cache.shape();
  const std::vector<float> q(size_t(rows) * kHeads * kDimK, 1.0f);
  std::vector<float> out(size_t(rows) * kHeads * kDimV, NAN);
  Batch batch;
  batch.spans = {{&cache, 0, rows}};
  batch.tokens.resize(size_t(rows));
  cache.advance(-rows);
  backend.attention(batch, kLayer, q.data(), kHeads, 1.0f, out.data());
  cache.advance(rows);
  for (int head = 0; head < kHeads; ++head) {
    const float got = out[size_t((rows - 1) * kHeads + head) * kDimV + 5];
    const float value = float(1 + wanted % 61 + head / (kHeads / kHeadsKv));
    CHECK(std::fabs(got - value) <= 0.005f * value, "%s: types %d and %d, position %d, %d rows, head %d: %g, not %g",
          isa, int(s.type_k), int(s.type_v), wanted, rows, head, double(got), double(value));
  }
}

// Positions of several chunks, found by one, three and twenty rows of two query heads a head: what comes back is the
// position's value, also where chunks were given back to the system and filled again.
void chunks() {
  constexpr int n = 3 * int(kChunk) + 164;
  constexpr std::pair<KvType, KvType> kPairs[] = {
      {KvType::F32, KvType::F16}, {KvType::F16, KvType::F16}, {KvType::Q8_0, KvType::F32}, {KvType::F16, KvType::Q8_0}};
  for (const std::string& isa : supported_isas()) {
    for (const auto& [type_k, type_v] : kPairs) {
      CpuBackend backend(choose_kernels(isa), 1);
      const auto made = backend.make_cache({kLayers, kHeadsKv, kDimK, kDimV, n, type_k, type_v});
      auto& cache = static_cast<CpuKvCache&>(*made);
      for (const int wanted : {0, 511, 512, 1023, 1024, n - 1}) {
        fill(backend, cache, n, wanted);
        for (const int rows : {1, 3, 20}) expect(backend, cache, isa.c_str(), rows, wanted);
      }
    }
  }
}

// A decoded token has the same bits whatever the number of threads and whoever is decoded beside it, also where its
// positions are cut into chunks, and these into runs of several.
void same_bits() {
  constexpr std::array<int, 2> kPositions{9 * int(kChunk) + 164, 2 * int(kChunk) + 7};
  const size_t width = size_t(kHeads) * kDimK;
  std::mt19937 random(9);
  std::normal_distribution<float> normal;
  for (const std::string& isa : supported_isas()) {
    for (const auto& [type_k, type_v] : {std::pair{KvType::F16, KvType::F16}, {KvType::Q8_0, KvType::Q8_0}}) {
      std::vector<std::unique_ptr<KvCache>> caches;
      std::vector<float> q(2 * width);
      for (float& x : q) x = normal(random);
      for (const int n : kPositions) {
        CpuBackend backend(choose_kernels(isa), 1);
        caches.push_back(backend.make_cache({kLayers, kHeadsKv, kDimK, kDimK, n, type_k, type_v}));
        std::vector<float> k(size_t(n) * kHeadsKv * kDimK), v(k.size());
        for (auto* x : {&k, &v})
          for (float& value : *x) value = normal(random);
        Batch batch;
        batch.spans = {{caches.back().get(), 0, n}};
        batch.tokens.resize(size_t(n));
        backend.store_kv(batch, kLayer, k.data(), v.data());
        caches.back()->advance(n - 1);
      }
      // Sequences [first, last) decoded together.
      const auto decode = [&](int threads, size_t first, size_t last) {
        CpuBackend backend(choose_kernels(isa), threads);
        Batch batch;
        for (size_t i = first; i < last; ++i) batch.spans.push_back({caches[i].get(), int(i - first), 1});
        batch.tokens.resize(last - first);
        std::vector<float> out((last - first) * width, NAN);
        backend.attention(batch, kLayer, q.data() + first * width, kHeads, 0.125f, out.data());
        return out;
      };
      const std::vector<float> together = decode(1, 0, 2);
      CHECK(std::ranges::all_of(together, [](float x) { return std::isfinite(x); }), "%s: no numbers", isa.c_str());
      for (const int threads : {1, 2, 3, 5}) {
        CHECK(decode(threads, 0, 2) == together, "%s, %d threads: other bits", isa.c_str(), threads);
        for (const size_t i : {0, 1}) {
          const auto from = together.begin() + ptrdiff_t(i * width);
          CHECK(decode(threads, i, i + 1) == std::vector<float>(from, from + ptrdiff_t(width)),
                "%s, %d threads: sequence %d alone has other bits", isa.c_str(), threads, int(i));
        }
      }
    }
  }
}

// Much is dropped: what stays is whole, and the chunks behind it hold no memory any more.
void truncation() {
  constexpr int n = 3 * int(kChunk) + 164, kKept = int(kChunk) + 88;
  CpuBackend backend(choose_kernels("scalar"), 1);
  const auto made = backend.make_cache({kLayers, kHeadsKv, kDimK, kDimV, n, KvType::F16, KvType::F16});
  auto& cache = static_cast<CpuKvCache&>(*made);
  const int64_t page = sysconf(_SC_PAGESIZE);
  const auto resident = [&](int chunk) {  // the first whole page of the layer's keys in a chunk
    const uintptr_t address = reinterpret_cast<uintptr_t>(cache.k(kLayer, 0)) + uintptr_t(chunk * cache.chunk_bytes());
    unsigned char in_memory = 0;
    CHECK(mincore(reinterpret_cast<void*>((address + uintptr_t(page) - 1) / uintptr_t(page) * uintptr_t(page)),
                  size_t(page), &in_memory) == 0,
          "mincore");
    return (in_memory & 1) != 0;
  };
  for (const int wanted : {0, int(kChunk) - 1, int(kChunk), kKept - 1}) {
    fill(backend, cache, n, wanted);
    CHECK(resident(0) && resident(1) && resident(2) && resident(3), "a chunk that was filled is not there");
    cache.truncate(kKept);
    CHECK(resident(0) && resident(1), "a chunk in use was given back");
    CHECK(!resident(2) && !resident(3), "a chunk behind the last position was kept");
    expect(backend, cache, "scalar", 1, wanted);
  }
}

// What a type cannot hold must reach attention's output as NaN. A key far below the others is the hard case: as minus
// infinity, or cut to the largest there is, it would only get no weight.
void overflow_is_visible() {
  for (const std::string& isa : supported_isas()) {
    for (const KvType type : kTypes) {
      for (const float bad : {-1e9f, -INFINITY, NAN}) {
        for (const bool in_key : {true, false}) {
          for (const int rows : {1, 20}) {
            CpuBackend backend(choose_kernels(isa), 1);
            const auto made = backend.make_cache({1, 1, 64, 64, 64, type, type});
            auto& cache = static_cast<CpuKvCache&>(*made);
            constexpr int n = 20;
            std::vector<float> k(size_t{n} * 64, 0.5f), v(k), q(size_t(rows) * 64, 1.0f), out(q.size());
            std::vector<float>& broken = in_key ? k : v;
            for (size_t i = 0; i < 64; ++i) broken[3 * 64 + i] = bad;
            Batch batch;
            batch.spans = {{&cache, 0, n}};
            batch.tokens.resize(n);
            backend.store_kv(batch, 0, k.data(), v.data());
            cache.advance(n - rows);
            batch.spans = {{&cache, 0, rows}};
            batch.tokens.resize(size_t(rows));
            backend.attention(batch, 0, q.data(), 1, 0.125f, out.data());
            const float last = out.back();
            // A float32 holds -1e9: no weight for the key, much of the value.
            const bool holds = type == KvType::F32 && std::isfinite(bad);
            // Keys of minus infinity in float32 are the model's own; its logits show them where nothing else does.
            if (type == KvType::F32 && in_key && std::isinf(bad)) continue;
            CHECK(holds ? std::isfinite(last) : !std::isfinite(last), "%s: type %d, %s of %g, %d rows: %g", isa.c_str(),
                  int(type), in_key ? "key" : "value", double(bad), rows, double(last));
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace gristmill::cpu

int main() {
  gristmill::cpu::regions();
  gristmill::cpu::full_contexts();
  gristmill::cpu::exact();
  gristmill::cpu::cut_prompts();
  gristmill::cpu::bad_queries();
  gristmill::cpu::chunks();
  gristmill::cpu::same_bits();
  gristmill::cpu::truncation();
  gristmill::cpu::overflow_is_visible();
  return gristmill::test::failures("test_kv_cache");
}

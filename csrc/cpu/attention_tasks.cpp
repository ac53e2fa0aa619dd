// How attention is cut into tasks. Prefill: a few tokens of one KV head, over all positions they see. Decoding: one
// token's query heads of one KV head, over fixed chunks of positions whose results are merged in order.
#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/cpu_backend.h"

namespace gristmill::cpu {
namespace {

// Queries of a task: enough that a converted key or value serves many, few enough that their sums stay in L1.
constexpr int kQueriesPerTask = 48;

// Of pieces that a thread takes one after the other.
constexpr size_t kRunsPerThread = 4, kMostPieces = 8;

}  // namespace

struct CpuBackend::Piece {
  const CpuKvCache* cache;
  int head;             // KV head
  int first_row, rows;  // of the batch
  int64_t first_position;
  int64_t begin, end;  // positions attended to
  int64_t ask_end;     // of the pieces that a thread takes one after the other
  bool is_decode;
  float* partial;  // where max, sum and acc go; nullptr: straight to the output
};

void CpuBackend::run_piece(const Piece& p, int layer, const float* q, int n_head, float scale, float* out) {
  const KvShape& s = p.cache->shape();
  const int group = n_head / s.n_head_kv, n = p.rows * group;
  std::vector<const float*> queries(static_cast<size_t>(n));
  std::vector<int64_t> visible(static_cast<size_t>(n));
  for (int j = 0; j < n; ++j) {
    const int64_t row = p.first_row + j / group, head = p.head * group + j % group;
    queries[size_t(j)] = q + (row * n_head + head) * s.head_dim_k;
    visible[size_t(j)] = p.first_position + j / group + 1;
  }
  std::vector<float> own;
  float* partial = p.partial;
  if (!partial) {
    own.resize(size_t(n) * size_t(s.head_dim_v + 2));
    partial = own.data();
  }
  float *max = partial, *sum = partial + n, *acc = partial + 2 * n;
  kernels_.attention({s.type_k, s.type_v, p.cache->k(layer, p.head), p.cache->v(layer, p.head), p.cache->chunk_bytes(),
                      s.head_dim_k, s.head_dim_v, n, queries.data(), visible.data(), p.begin, p.end, p.ask_end, scale,
                      p.is_decode, max, sum, acc});
  if (p.partial) return;
  for (int j = 0; j < n; ++j) {
    const int64_t row = p.first_row + j / group, head = p.head * group + j % group;
    float* to = out + (row * n_head + head) * s.head_dim_v;
    for (int d = 0; d < s.head_dim_v; ++d) to[d] = acc[int64_t(j) * s.head_dim_v + d] / sum[j];
  }
}

// Pieces that follow each other in a cache, where there are enough for all threads: what comes next is asked for, but
// nobody asks for a run's first tile, which is an eighth of a chunk. Returns where runs begin, and the end.
std::vector<size_t> CpuBackend::cut_runs(std::span<Piece> pieces) const {
  const size_t most = std::clamp<size_t>(pieces.size() / (kRunsPerThread * size_t(pool_.n_threads())), 1, kMostPieces);
  std::vector<size_t> runs;
  for (size_t i = 0; i < pieces.size(); ++i) {
    const bool follows = i > 0 && pieces[i].begin > 0 && pieces[i].begin == pieces[i - 1].end;
    if (follows && i - runs.back() < most) {
      for (size_t j = runs.back(); j < i; ++j) pieces[j].ask_end = pieces[i].end;
    } else {
      runs.push_back(i);
    }
  }
  runs.push_back(pieces.size());
  return runs;
}

void CpuBackend::attention(const Batch& batch, int layer, const float* q, int n_head, float scale, float* out) {
  const KvShape& s = batch.spans.front().cache->shape();
  const int group = n_head / s.n_head_kv;
  const int tokens = std::max(1, kQueriesPerTask / group);
  const int64_t partial_floats = int64_t(group) * (s.head_dim_v + 2);
  std::vector<Piece> pieces;
  int64_t n_partials = 0;
  for (const Span& span : batch.spans) {
    const auto* cache = static_cast<const CpuKvCache*>(span.cache);
    for (int head = 0; head < s.n_head_kv; ++head) {
      for (int t = 0; t < span.n_rows; t += tokens) {
        const int rows = std::min(tokens, span.n_rows - t);
        const int64_t first = cache->n_past() + t, end = first + rows;
        const bool split = batch.is_decode() && end > kChunk;
        for (int64_t begin = 0; begin < end; begin += split ? kChunk : end) {
          const int64_t piece_end = split ? std::min(end, begin + kChunk) : end;
          pieces.push_back(
              {cache, head, span.first_row + t, rows, first, begin, piece_end, piece_end, batch.is_decode(), nullptr});
          if (split) ++n_partials;
        }
      }
    }
  }
  float* partials = partials_.grow(size_t(n_partials * partial_floats));
  int64_t next = 0;
  for (Piece& p : pieces)
    if (p.begin > 0 || p.end < p.first_position + p.rows) p.partial = partials + next++ * partial_floats;
  // The longest first: a task begun last should be a short one.
  if (!batch.is_decode())
    std::ranges::stable_sort(pieces, [](const Piece& a, const Piece& b) { return a.end > b.end; });
  const std::vector<size_t> runs = cut_runs(pieces);
  pool_.run(int(runs.size()) - 1, [&](int i) {
    for (size_t j = runs[size_t(i)]; j < runs[size_t(i) + 1]; ++j) run_piece(pieces[j], layer, q, n_head, scale, out);
  });

  // Merge the chunks of each query in order of position: the same sums whatever ran where.
  for (size_t i = 0; i < pieces.size();) {
    size_t last = i + 1;
    while (last < pieces.size() && pieces[last].begin > 0) ++last;
    const Piece& p = pieces[i];
    if (p.partial) {
      for (int j = 0; j < group; ++j) {
        float max = -INFINITY, sum = 0.0f;
        for (size_t c = i; c < last; ++c) max = std::max(max, pieces[c].partial[j]);
        float* to = out + (int64_t(p.first_row) * n_head + p.head * group + j) * s.head_dim_v;
        std::fill(to, to + s.head_dim_v, 0.0f);
        for (size_t c = i; c < last; ++c) {
          const float* partial = pieces[c].partial;
          const float factor = std::exp(partial[j] - max);
          sum += factor * partial[group + j];
          const float* acc = partial + 2 * group + int64_t(j) * s.head_dim_v;
          for (int d = 0; d < s.head_dim_v; ++d) to[d] += factor * acc[d];
        }
        for (int d = 0; d < s.head_dim_v; ++d) to[d] /= sum;
      }
    }
    i = last;
  }
}

}  // namespace gristmill::cpu

// Which products go into one launch, and what becomes of their results.
#include <algorithm>
#include <array>
#include <variant>

#include "cuda/decode_work.h"
#include "cuda/matmul.h"
#include "cuda/tile_layout.h"

namespace gristmill::cuda {

template <TypeId id>
void launch_decode(const DecodeWork& work, const DeviceInfo& device, bool dependent, Stream stream);

namespace {

Role role_of(const Finish& finish, size_t product) {
  constexpr std::array kRoles = {Role::kQuery, Role::kKey, Role::kValue};
  return std::holds_alternative<StoreHeads>(finish) ? kRoles.at(product) : Role::kPlain;
}

// Heads of the products before this one.
int first_group(const StoreHeads& f, std::span<const DeviceProduct> products, size_t product) {
  int64_t heads = 0;
  for (size_t i = 0; i < product; ++i) heads += products[i].matrix.n_rows / f.layout.head_dim_k;
  return int(heads);
}

DecodeFinish kernel_finish(const Finish& finish, std::span<const DeviceProduct> products, unsigned* arrivals) {
  DecodeFinish out;
  out.arrivals = arrivals;
  if (const StoreHeads* f = std::get_if<StoreHeads>(&finish)) {
    out.kind = FinishKind::kHeads;
    out.heads = {f->layout.head_dim_k,
                 f->layout.head_dim_v,
                 f->dims / 2,
                 f->style == RopeStyle::kNeox,
                 f->cos_sin,
                 f->batch,
                 key_plane(f->layout),
                 value_plane(f->layout),
                 f->layout.head_offset(f->layer, 0),
                 f->layout.head_bytes()};
  } else if (const GateRows* g = std::get_if<GateRows>(&finish)) {
    out.kind = FinishKind::kGate;
    out.gate = products[0].y;
    out.up = products[1].y;
    out.n_gated = products[0].matrix.n_rows;
    out.gated = g->out;
  }
  return out;
}

// Products of one format, by their places among all, for n tokens from `first` on.
void launch_group(std::span<const DeviceProduct> products, std::span<const size_t> places, const DecodeInput& x,
                  int64_t first, int n, const DecodeWorkspace& workspace, const Finish& finish,
                  const DeviceInfo& device, bool dependent, Stream stream) {
  DecodeWork work{};
  const Matrix& m = products[places.front()].matrix;
  work.column_tiles = int(m.column_tiles());
  work.n_cols = m.n_cols;
  work.padded = padded_columns(m.n_cols);
  work.partials = workspace.partials;
  work.counters = workspace.counters;
  work.resident = workspace.resident;
  int64_t all_row_tiles = 0;
  for (const DeviceProduct& p : products) all_row_tiles += p.matrix.row_tiles();
  work.finish = kernel_finish(finish, products, workspace.counters + all_row_tiles);
  for (const size_t i : places) {
    const DeviceProduct& p = products[i];
    const StoreHeads* heads = std::get_if<StoreHeads>(&finish);
    work.parts[work.n_parts++] = {p.matrix.tiles,
                                  p.bias,
                                  p.y + first * p.matrix.n_rows,
                                  p.matrix.n_rows,
                                  work.row_tiles,
                                  role_of(finish, i),
                                  heads ? first_group(*heads, products, i) : 0};
    work.row_tiles += int(p.matrix.row_tiles());
  }
  // A group's rows of gate and up side by side: what makes its results is spread over all blocks.
  work.alternate = work.finish.kind == FinishKind::kGate && work.n_parts == 2;
  if (work.row_tiles == 0) return;
  work.n = n;
  work.finish.first_token = first;
  if (x.floats) work.floats = x.floats + first * work.n_cols;
  if (x.quantized.planes) {
    work.planes = x.quantized.planes + first * 2 * work.padded;
    work.scales = x.quantized.scales + first * work.padded / 16;
    work.sums = x.quantized.sums + first * work.padded / 16;
  }
  with_format(m.format, [&]<TypeId id>() { launch_decode<id>(work, device, dependent, stream); });
}

}  // namespace

bool can_finish(std::span<const DeviceProduct> products, const Finish& finish) {
  if (const StoreHeads* f = std::get_if<StoreHeads>(&finish)) {
    const auto fits = [](int dim) { return dim % 32 == 0 && dim <= 128; };
    return products.size() == 3 && fits(f->layout.head_dim_k) && f->layout.head_dim_k == f->layout.head_dim_v &&
           f->dims % 8 == 0 && std::ranges::all_of(products, [&](const DeviceProduct& p) {
             return p.matrix.n_rows % f->layout.head_dim_k == 0;
           });
  }
  if (std::holds_alternative<GateRows>(finish))  // whole column tiles for the product that follows
    return products.size() == 2 && products[0].matrix.n_rows == products[1].matrix.n_rows &&
           products[0].matrix.n_rows % kTileColumns == 0;
  return true;
}

int64_t decode_partials(const DeviceInfo& device) {
  return int64_t(device.multiprocessors) * 2 * kDecodeShares * kTileRows * kDecodeColumns;
}

int64_t decode_counters(std::span<const DeviceProduct> products) {
  int64_t row_tiles = 0;
  for (const DeviceProduct& p : products) row_tiles += p.matrix.row_tiles();
  return 2 * row_tiles;  // blocks that come to each, and groups, which have one row tile at least
}

void decode_matmul(std::span<const DeviceProduct> products, const DecodeInput& x, int n,
                   const DecodeWorkspace& workspace, const Finish& finish, const DeviceInfo& device, bool dependent,
                   Stream stream) {
  std::array<size_t, kDecodeParts> group;
  // Tokens outermost: what finishes them counts on every format's launch for them before one for others.
  for (int64_t first = 0; first < n; first += kDecodeColumns) {
    const int some = int(std::min<int64_t>(kDecodeColumns, n - first));
    for (size_t i = 0; i < products.size(); ++i) {
      const TypeId format = products[i].matrix.format;
      const auto same = [&](const DeviceProduct& p) { return p.matrix.format == format; };
      if (std::any_of(products.begin(), products.begin() + ptrdiff_t(i), same)) continue;  // went with an earlier one
      size_t count = 0;
      const auto flush = [&] {
        if (count == 0) return;
        launch_group(products, {group.data(), count}, x, first, some, workspace, finish, device, dependent, stream);
        count = 0;
      };
      for (size_t j = i; j < products.size(); ++j) {
        if (!same(products[j])) continue;
        group[count++] = j;
        if (count == group.size()) flush();
      }
      flush();
    }
  }
}

}  // namespace gristmill::cuda

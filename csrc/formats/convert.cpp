#include "formats/convert.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

#include "formats/search.h"

namespace gristmill::formats {
namespace {

// Rows are taken together up to this many values: enough for searches that work on many blocks at once, and few
// enough to stay in the second-level cache.
constexpr int64_t kSlabValues = 1 << 14;

constexpr uint32_t kInfinity = 0x7f800000;

constexpr uint32_t kInfiniteAsHalf = 0x477ff000;  // 65520, from which F16 is infinite; BF16 goes further

int64_t first_at_least(const float* x, int64_t n, uint32_t least) {
  return std::find_if(x, x + n, [=](float v) { return (std::bit_cast<uint32_t>(v) & 0x7fffffff) >= least; }) - x;
}

int64_t count_infinite(const float* x, int64_t n) {
  return std::count_if(x, x + n, [](float v) { return (std::bit_cast<uint32_t>(v) & 0x7fffffff) == kInfinity; });
}

bool holds_halves(const std::byte* bytes) { return reinterpret_cast<uintptr_t>(bytes) % alignof(uint16_t) == 0; }

}  // namespace

Converted convert_rows(const FormatInfo& from, const void* source, const FormatInfo& to,
                       std::span<const float> importance, int64_t rows, int64_t n_cols, void* target) {
  const int64_t source_bytes = n_cols / from.block_size * from.type_size;
  const int64_t target_bytes = n_cols / to.block_size * to.type_size;
  const int64_t step = std::clamp<int64_t>(kSlabValues / std::max<int64_t>(1, n_cols), 1, std::max<int64_t>(1, rows));
  std::vector<float> values(size_t(step * n_cols)), again, shares;
  if (to.kind == Kind::kAffine && !importance.empty())
    for (int64_t i = 0; i < step; ++i) shares.insert(shares.end(), importance.begin(), importance.end());
  const Search& vectors = search();
  Converted result;
  for (int64_t row = 0; row < rows; row += step) {
    const int64_t n = std::min(step, rows - row) * n_cols;
    std::byte* out = static_cast<std::byte*>(target) + row * target_bytes;
    const std::byte* in = static_cast<const std::byte*>(source) + row * source_bytes;
    // Halves are what most files are quantized from. A signalling NaN may change its bits here, but is refused anyway.
    if (from.id == TypeId::F16 && holds_halves(in)) {
      vectors.halves(reinterpret_cast<const uint16_t*>(in), values.data(), n);
    } else {
      from.to_float(in, values.data(), n);
    }
    const uint32_t limit = to.kind == Kind::kAffine ? kInfinity : kInfinity + 1;
    const uint32_t worst = vectors.worst_magnitude(values.data(), n);
    if (worst >= limit) {
      result.refused = row * n_cols + first_at_least(values.data(), n, limit);
      return result;
    }
    if (to.id == TypeId::F16 && holds_halves(out)) {
      vectors.to_halves(values.data(), reinterpret_cast<uint16_t*>(out), n);
    } else if (to.id == TypeId::BF16 && holds_halves(out)) {
      vectors.to_bfloats(values.data(), reinterpret_cast<uint16_t*>(out), n);
    } else {
      to.from_float(values.data(), shares.empty() ? nullptr : shares.data(), out, n);
    }
    if (to.kind == Kind::kFloat && to.type_size < 4 && worst >= kInfiniteAsHalf) {
      again.resize(size_t(n));
      to.to_float(out, again.data(), n);
      result.overflowed += count_infinite(again.data(), n) - count_infinite(values.data(), n);
    }
  }
  return result;
}

}  // namespace gristmill::formats

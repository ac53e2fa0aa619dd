#include "formats/registry.h"

#include <array>

namespace gristmill::formats {
namespace {

template <class Format>
constexpr int group_of() {
  if constexpr (Format::kKind == Kind::kAffine) return Format::kGroup;
  return 0;
}

template <class Format>
void to_affine(const void* blocks, uint8_t* q, float* scale, float* min, int64_t n) {
  if constexpr (Format::kKind == Kind::kAffine) {
    constexpr int kGroups = Format::kBlockSize / Format::kGroup;
    const auto* b = static_cast<const typename Format::Block*>(blocks);
    for (int64_t i = 0; i < n / Format::kBlockSize; ++i, q += Format::kBlockSize, scale += kGroups, min += kGroups) {
      Format::to_affine(b[i], q, scale, min);
      for (int g = 0; g < kGroups; ++g) min[g] -= float(Format::kZero) * scale[g];
    }
  }
}

template <class Format>
constexpr FormatInfo info() {
  using Block = typename Format::Block;
  return {Format::kId,
          Format::kName,
          Format::kKind,
          Format::kBlockSize,
          int(sizeof(Block)),
          group_of<Format>(),
          Format::kMaxRelativeError,
          [](const void* blocks, float* y, int64_t n) {
            const Block* b = static_cast<const Block*>(blocks);
            for (int64_t i = 0; i < n / Format::kBlockSize; ++i) Format::to_float(b[i], y + i * Format::kBlockSize);
          },
          [](const float* x, const float* importance, void* blocks, int64_t n) {
            Block* b = static_cast<Block*>(blocks);
            if constexpr (requires { &Format::from_floats; }) {
              Format::from_floats(x, importance, b, n / Format::kBlockSize);
            } else {
              for (int64_t i = 0; i < n / Format::kBlockSize; ++i) {
                const int64_t at = i * Format::kBlockSize;
                Format::from_float(x + at, importance ? importance + at : nullptr, b[i]);
              }
            }
          },
          Format::kKind == Kind::kAffine ? &to_affine<Format> : nullptr};
}

template <class... Format>
constexpr auto table(std::tuple<Format...>*) {
  return std::array{info<Format>()...};
}

constexpr auto kTable = table(static_cast<All*>(nullptr));

}  // namespace

const FormatInfo* begin_formats() { return kTable.data(); }
const FormatInfo* end_formats() { return kTable.data() + kTable.size(); }

const FormatInfo* find_format(uint32_t type_id) {
  for (const FormatInfo& f : kTable)
    if (uint32_t(f.id) == type_id) return &f;
  return nullptr;
}

const FormatInfo* find_format(std::string_view name) {
  for (const FormatInfo& f : kTable)
    if (f.name == name) return &f;
  return nullptr;
}

}  // namespace gristmill::formats

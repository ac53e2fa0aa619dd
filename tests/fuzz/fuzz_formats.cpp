// Block formats over any bytes: to_float and to_affine tell the same weights, from_float takes any floats and writes
// blocks that are finite again.
#include <bit>
#include <cmath>
#include <cstring>
#include <memory>

#include "formats/registry.h"
#include "input.h"

using namespace gristmill;

namespace {

bool same(float a, float b) {
  if (std::isnan(a) || std::isnan(b)) return std::isnan(a) && std::isnan(b);
  return a == b;  // -0 may have become +0
}

// Buffers are of exactly the right size and alignment 1, so that the sanitizer sees the first byte too many.
void check_decode(const formats::FormatInfo& f, const std::vector<uint8_t>& bytes) {
  const size_t n_blocks = bytes.size() / size_t(f.type_size), n = n_blocks * size_t(f.block_size);
  if (n_blocks == 0) return;
  const size_t shift = f.kind == formats::Kind::kAffine ? 1 : 0;  // blocks may lie at any byte, floats may not
  const auto blocks = std::make_unique<uint8_t[]>(n_blocks * size_t(f.type_size) + shift);
  std::memcpy(blocks.get() + shift, bytes.data(), n_blocks * size_t(f.type_size));
  const auto y = std::make_unique<float[]>(n);
  f.to_float(blocks.get() + shift, y.get(), int64_t(n));
  if (!f.to_affine) return;
  const size_t groups = n / size_t(f.group);
  const auto q = std::make_unique<uint8_t[]>(n);
  const auto scale = std::make_unique<float[]>(groups), min = std::make_unique<float[]>(groups);
  f.to_affine(blocks.get() + shift, q.get(), scale.get(), min.get(), int64_t(n));
  for (size_t i = 0; i < n; ++i) {
    const size_t g = i / size_t(f.group);
    // The zero point is folded into min here, at the price of a rounding; test_formats holds the exact form.
    const float terms = std::fabs(scale[g] * float(q[i])) + std::fabs(min[g]);
    const float w = scale[g] * float(q[i]) + min[g];
    fuzz::require(same(w, y[i]) || std::fabs(w - y[i]) <= 1e-6f * terms || !std::isfinite(terms),
                  "to_affine gives to_float's weights");
    fuzz::require(std::isfinite(y[i]) || !std::isfinite(terms), "to_float is finite where scale and min are");
  }
}

void check_encode(const formats::FormatInfo& f, fuzz::Input& input) {
  const size_t n = size_t(f.block_size) * (1 + input.below(2));
  const bool weighted = input.flip();
  const auto x = std::make_unique<float[]>(n), importance = std::make_unique<float[]>(n), y = std::make_unique<float[]>(n);
  const float scale = input.take<float>();
  for (size_t i = 0; i < n; ++i) {
    x[i] = input.flip() ? input.take<float>() : float(input.take<int8_t>()) * scale;
    importance[i] = std::fabs(input.take<float>());
  }
  const auto blocks = std::make_unique<uint8_t[]>(n / size_t(f.block_size) * size_t(f.type_size));
  f.from_float(x.get(), weighted ? importance.get() : nullptr, blocks.get(), int64_t(n));
  f.to_float(blocks.get(), y.get(), int64_t(n));
  if (f.kind != formats::Kind::kAffine) return;
  for (size_t i = 0; i < n; ++i) fuzz::require(std::isfinite(y[i]), "from_float writes finite blocks");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input input(data, size);
  const auto n_formats = uint32_t(formats::end_formats() - formats::begin_formats());
  const formats::FormatInfo& format = formats::begin_formats()[input.below(n_formats)];
  if (input.flip()) {
    check_decode(format, input.bytes(4096));
  } else {
    check_encode(format, input);
  }
  return 0;
}

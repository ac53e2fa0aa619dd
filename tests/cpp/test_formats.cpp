// Every registered format over random and adversarial bytes and floats: to_affine says what to_float says, from_float
// survives any input and stays finite. Meant to run under ASan and UBSan; buffers are exact so that ASan sees each
// edge.
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <type_traits>
#include <vector>

#include "check.h"
#include "formats/registry.h"

namespace gristmill::formats {
namespace {

std::mt19937 random_bits(1);

// Halves that conversions stumble over: zeros, subnormals, the extremes, infinities, quiet and signalling NaN.
constexpr uint16_t kHalves[] = {0x0000, 0x8000, 0x0001, 0x83ff, 0x0400, 0x7bff, 0xfbff,
                                0x7c00, 0xfc00, 0x7c01, 0x7e00, 0xffff, 0x3c00};

bool same_bits(float a, float b) {
  if (std::isnan(a) || std::isnan(b)) return std::isnan(a) && std::isnan(b);
  return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b);
}

template <class Format>
void check_affine(const typename Format::Block& block) {
  constexpr int n = Format::kBlockSize, groups = n / Format::kGroup;
  const auto y = std::make_unique<float[]>(n), scale = std::make_unique<float[]>(groups),
             min = std::make_unique<float[]>(groups);
  const auto q = std::make_unique<uint8_t[]>(n);
  Format::to_float(block, y.get());
  Format::to_affine(block, q.get(), scale.get(), min.get());
  for (int i = 0; i < n; ++i) {
    const int g = i / Format::kGroup;
    const float w = scale[g] * float(int(q[i]) - Format::kZero) + min[g];
    // Adding a min of +0 turns -0 into +0; nothing else may differ.
    CHECK(same_bits(w, y[i]) || (w == 0.0f && y[i] == 0.0f), "%s weight %d: affine %a, to_float %a", Format::kName, i,
          w, y[i]);
    if (!Format::kHasMin) CHECK(min[g] == 0.0f, "%s group %d", Format::kName, g);
  }
  // Sums that start at 1.5 * 2^23 and end as floats rely on it (isa/avx512_vnni/panel.h).
  for (int g = 0; g < groups; ++g)
    CHECK(!std::isfinite(scale[g]) || double(0x1.8p23f * scale[g]) == 0x1.8p23 * double(scale[g]),
          "%s group %d: a scale of too many bits, %a", Format::kName, g, scale[g]);
}

template <class Format>
void check_bytes() {
  using Block = typename Format::Block;
  const auto run = [](const std::vector<uint8_t>& bytes) {
    // One byte past an aligned address: a row may start anywhere.
    const auto storage = std::make_unique<uint8_t[]>(sizeof(Block) + 1);
    std::memcpy(storage.get() + 1, bytes.data(), sizeof(Block));
    const Block& block = *reinterpret_cast<const Block*>(storage.get() + 1);
    if constexpr (Format::kKind == Kind::kAffine) {
      check_affine<Format>(block);
    } else {
      float y;
      Format::to_float(block, &y);
      Block back;
      Format::from_float(&y, nullptr, back);
      float again;
      Format::to_float(back, &again);
      CHECK(same_bits(y, again), "%s: %a came back as %a", Format::kName, y, again);
    }
  };
  std::vector<uint8_t> bytes(sizeof(Block));
  for (int trial = 0; trial < 300; ++trial) {
    for (uint8_t& byte : bytes) byte = uint8_t(random_bits());
    run(bytes);
  }
  for (size_t at = 0; at + 2 <= sizeof(Block); at += 2)
    for (const uint16_t half : kHalves) {
      for (uint8_t& byte : bytes) byte = uint8_t(random_bits());
      std::memcpy(bytes.data() + at, &half, 2);
      run(bytes);
    }
}

template <class Format>
void check_from_float(const std::vector<float>& x, const float* importance, bool within_bound, const char* what) {
  constexpr int n = Format::kBlockSize;
  const auto exact = std::make_unique<float[]>(n), y = std::make_unique<float[]>(n);
  float peak = 0.0f;
  for (int i = 0; i < n; ++i) {
    exact[i] = x[i];
    peak = std::fmax(peak, std::fabs(x[i]));
  }
  typename Format::Block block;
  Format::from_float(exact.get(), importance, block);
  Format::to_float(block, y.get());
  for (int i = 0; i < n; ++i) {
    if (Format::kKind == Kind::kAffine)
      CHECK(std::isfinite(y[i]), "%s, %s: %a gave %a", Format::kName, what, x[i], y[i]);
    if (within_bound)
      CHECK(std::fabs(y[i] - x[i]) <= Format::kMaxRelativeError * peak, "%s, %s: %a gave %a, peak %a", Format::kName,
            what, x[i], y[i], peak);
  }
}

template <class Format>
void check_floats() {
  constexpr int n = Format::kBlockSize;
  std::vector<float> x(n);
  const auto fill = [&](auto&& value) {
    for (int i = 0; i < n; ++i) x[i] = value(i);
  };
  std::normal_distribution<float> normal;
  std::vector<float> importance(n);
  for (int trial = 0; trial < 50; ++trial) {
    fill([&](int) { return 3.0f * normal(random_bits) + 0.5f; });
    if (n == 1 && std::fabs(x[0]) < 0x1p-14f) x[0] = 1.0f;
    check_from_float<Format>(x, nullptr, true, "gaussian");
    for (float& w : importance) w = std::fabs(normal(random_bits)) * float(random_bits() % 4);
    check_from_float<Format>(x, importance.data(), false, "gaussian with importance");
  }
  const auto both = [&](bool within_bound, const char* what) {
    check_from_float<Format>(x, nullptr, within_bound, what);
    for (const float w : {0.0f, 1.0f, 1e-45f, 3e38f}) {
      for (float& v : importance) v = w;
      check_from_float<Format>(x, importance.data(), false, what);
    }
  };
  fill([](int) { return 0.0f; });
  both(true, "zero");
  for (const float constant : {1.0f, -1.0f, 0.3f, -700.0f}) {
    fill([&](int) { return constant; });
    both(true, "constant");
  }
  fill([](int i) { return i == 0 ? -64.0f : 0.01f; });
  both(n > 1, "outlier");
  fill([](int i) { return i % 2 ? 1e-45f : -1e-39f; });
  both(false, "denormal");
  fill([](int i) { return float(i % 7 - 3) * 1e-7f; });
  both(false, "below the halves");
  fill([](int i) { return i % 2 ? 3.4e38f : -3.4e38f; });
  both(false, "huge");
  // Not promised a meaning, but no undefined behaviour and, in quantized formats, finite bytes.
  const float odd[] = {NAN, INFINITY, -INFINITY, -NAN, 0.0f, -0.0f, 1.0f, 3.4e38f, 1e-45f};
  for (int trial = 0; trial < 50; ++trial) {
    fill([&](int) { return odd[random_bits() % std::size(odd)]; });
    both(false, "not finite");
  }
  for (int trial = 0; trial < 200; ++trial) {
    fill([](int) { return std::bit_cast<float>(uint32_t(random_bits())); });
    both(false, "random bits");
  }
}

void check_registry() {
  int count = 0;
  for (const FormatInfo* f = begin_formats(); f != end_formats(); ++f, ++count) {
    CHECK(find_format(uint32_t(f->id)) == f, "%.*s: its number finds another", int(f->name.size()), f->name.data());
    CHECK(find_format(f->name) == f, "%.*s: its name finds another", int(f->name.size()), f->name.data());
  }
  CHECK(count == int(std::tuple_size_v<All>));
  CHECK(find_format("q4_k") == nullptr && find_format(4u) == nullptr);
}

}  // namespace
}  // namespace gristmill::formats

int main() {
  using namespace gristmill::formats;
  check_registry();
  for_each_format([]<class Format>() {
    check_bytes<Format>();
    check_floats<Format>();
  });
  return gristmill::test::failures("test_formats");
}

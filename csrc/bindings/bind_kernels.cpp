// One product as the engine computes it, by any instruction set: what gristmill.matmul and the kernels' tests call.
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <memory>
#include <string>

#include "bindings/bindings.h"
#include "core/error.h"
#include "cpu/cpu_backend.h"
#include "cpu/dispatch.h"
#include "formats/registry.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace gristmill::bindings {
namespace {

using ConstFloats = nb::ndarray<const float, nb::shape<-1, -1>, nb::c_contig, nb::device::cpu>;
using ConstBytes = nb::ndarray<const uint8_t, nb::shape<-1, -1>, nb::c_contig, nb::device::cpu>;

// Multiplications below which starting threads takes longer than they save.
constexpr double kOneThread = 2e7;

struct Mode {
  Phase phase;
  bool precise;
};

Mode mode_named(const char* op, const std::string& mode, size_t n) {
  const Phase by_rows = n <= size_t(cpu::kDecodeRows) ? Phase::kDecode : Phase::kPrefill;
  if (mode == "auto") return {by_rows, true};
  if (mode == "decode") return {Phase::kDecode, false};
  if (mode == "precise_decode") return {Phase::kDecode, true};
  if (mode == "prefill") return {Phase::kPrefill, false};
  if (mode == "precise") return {Phase::kPrefill, true};
  throw ArgumentError("[" + std::string(op) +
                      "] mode, expected decode, prefill, precise_decode, precise or auto, got " + mode);
}

Weight weight_of(const char* op, const ConstBytes& packed, uint32_t type_id, int64_t n_cols) {
  const formats::FormatInfo* format = formats::find_format(type_id);
  if (!format) throw ArgumentError("[" + std::string(op) + "] unknown type " + std::to_string(type_id));
  const Weight w{format, reinterpret_cast<const std::byte*>(packed.data()), int64_t(packed.shape(0)), n_cols};
  if (n_cols < 0 || n_cols % format->block_size != 0 || w.row_bytes() != int64_t(packed.shape(1)))
    throw ArgumentError("[" + std::string(op) + "] bytes of a row of " + std::to_string(n_cols) + " columns, got " +
                        std::to_string(packed.shape(1)));
  return w;
}

// An uninitialized numpy array [rows, cols].
template <class T>
nb::ndarray<nb::numpy, T, nb::ndim<2>> make_array(size_t rows, size_t cols) {
  auto data = std::make_unique_for_overwrite<T[]>(rows * cols);
  const nb::capsule owner(data.get(), [](void* p) noexcept { delete[] static_cast<T*>(p); });
  return nb::ndarray<nb::numpy, T, nb::ndim<2>>(data.release(), {rows, cols}, owner);
}

const cpu::Activations& activations_named(const char* op, const std::string& isa, uint32_t type_id,
                                          const std::string& mode) {
  const formats::FormatInfo* format = formats::find_format(type_id);
  if (!format) throw ArgumentError("[" + std::string(op) + "] unknown type " + std::to_string(type_id));
  const Mode how = mode_named(op, mode, 1);
  return cpu::choose_kernels(isa).activations[int(cpu::pass_for(how.phase, how.precise))][cpu::format_index(format)];
}

auto matmul(ConstBytes packed, uint32_t type_id, int64_t n_cols, ConstFloats x, const std::string& isa,
            const std::string& mode) {
  const Weight w = weight_of("matmul", packed, type_id, n_cols);
  if (int64_t(x.shape(1)) != n_cols)
    throw ArgumentError("[matmul] columns of x, expected " + std::to_string(n_cols) + ", got " +
                        std::to_string(x.shape(1)));
  const size_t n = x.shape(0), m = packed.shape(0);
  const Mode how = mode_named("matmul", mode, n);
  const cpu::Kernels& kernels = cpu::choose_kernels(isa);
  auto y = make_array<float>(n, m);
  const nb::gil_scoped_release release;
  if (n_cols == 0) {
    std::fill_n(y.data(), y.size(), 0.0f);
  } else if (y.size() > 0) {
    const bool small = double(n) * double(m) * double(n_cols) < kOneThread;
    cpu::CpuBackend backend(kernels, small ? 1 : default_thread_count(), how.precise);
    const Product product{&w, nullptr, y.data()};
    backend.matmul({&product, 1}, x.data(), int(n), how.phase);
  }
  return y;
}

nb::tuple affine_rows(ConstBytes packed, uint32_t type_id, int64_t n_cols) {
  const Weight w = weight_of("affine_rows", packed, type_id, n_cols);
  if (!w.format->to_affine) throw ArgumentError("[affine_rows] " + std::string(w.format->name) + " has no scales");
  const size_t m = packed.shape(0), n_groups = size_t(n_cols / w.format->group);
  auto q = make_array<uint8_t>(m, size_t(n_cols));
  auto scale = make_array<float>(m, n_groups), min = make_array<float>(m, n_groups);
  w.format->to_affine(w.data, q.data(), scale.data(), min.data(), n_cols * w.n_rows);
  return nb::make_tuple(q, scale, min);
}

}  // namespace

void bind_kernels(nb::module_& m) {
  m.def("matmul", &matmul, "packed"_a, "type_id"_a, "n_cols"_a, "x"_a, "isa"_a = "", "mode"_a = "auto",
        "x [n, n_cols] times the transpose of packed [m, row_bytes] -> [n, m].");
  m.def(
      "activation_bits",
      [](const std::string& isa, uint32_t type_id, const std::string& mode) {
        return activations_named("activation_bits", isa, type_id, mode).bits;
      },
      "isa"_a, "type_id"_a, "mode"_a = "prefill",
      "Bits of an activation that a mode multiplies weights of a type with: 8, 15 or 16; 14, of both; or 32, as "
      "floats.");
  m.def(
      "activation_group",
      [](const std::string& isa, uint32_t type_id, const std::string& mode) {
        return activations_named("activation_group", isa, type_id, mode).group;
      },
      "isa"_a, "type_id"_a, "mode"_a = "prefill",
      "How many activations share a scale; 1 where they are floats, and then weights have no more bits than they.");
  m.def(
      "arithmetic",
      [](const std::string& isa, uint32_t type_id, const std::string& mode) {
        return activations_named("arithmetic", isa, type_id, mode).arithmetic;
      },
      "isa"_a, "type_id"_a, "mode"_a = "prefill", "What multiplies them, as measure_peak_ops names it.");
  m.def("affine_rows", &affine_rows, "packed"_a, "type_id"_a, "n_cols"_a,
        "Quantized rows taken apart, weight = scale * q + min: (q [m, n_cols], scale [m, n_cols / group], min).");
}

}  // namespace gristmill::bindings

// The machine's limits, and kernels against the clock: what gristmill.bench and benchmarks/kernels measure with.
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "bindings/bindings.h"
#include "core/error.h"
#include "core/page_buffer.h"
#include "cpu/limit_kernels.h"
#include "cuda_library.h"
#include "kernel_timer.h"
#include "machine_limits.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace gristmill::bindings {
namespace {

using ConstBytes1 = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using ConstBytes2 = nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Seconds = nb::ndarray<nb::numpy, double, nb::ndim<1>>;

Seconds time_packed_matmul(const ConstBytes2& packed, uint32_t type_id, int64_t n_cols, int n, bool decode,
                           int n_threads, size_t weight_bytes, bool large_pages, double seconds,
                           const std::string& isa) {
  const formats::FormatInfo* format = formats::find_format(type_id);
  if (!format) throw ArgumentError("[time_matmul] unknown type " + std::to_string(type_id));
  const Weight w{format, reinterpret_cast<const std::byte*>(packed.data()), int64_t(packed.shape(0)), n_cols};
  if (n_cols < 0 || n_cols % format->block_size != 0 || w.row_bytes() != int64_t(packed.shape(1)))
    throw ArgumentError("[time_matmul] bytes of a row of " + std::to_string(n_cols) + " columns, got " +
                        std::to_string(packed.shape(1)));
  auto times = std::make_unique<std::vector<double>>();
  {
    const nb::gil_scoped_release release;
    *times = time_matmul({w, n, decode, n_threads, weight_bytes, large_pages, seconds, isa});
  }
  double* data = times->data();
  const size_t size = times->size();
  const nb::capsule owner(times.release(), [](void* p) noexcept { delete static_cast<std::vector<double>*>(p); });
  return Seconds(data, {size}, owner);
}

std::vector<uint64_t> read_bytes(const ConstBytes1& bytes, const std::string& isa) {
  std::vector<uint64_t> sums;
  for (const auto read : cpu::choose_limits(isa).read_bytes)
    sums.push_back(read(reinterpret_cast<const std::byte*>(bytes.data()), bytes.size()));
  return sums;
}

int64_t multiply_adds(const std::string& kind, int64_t iterations, const std::string& isa) {
  const cpu::PeakLoop loop = cpu::peak_loop(cpu::choose_limits(isa), kind);
  if (iterations < 0 || iterations > cpu::kMaxLimitIterations)
    throw ArgumentError("[limits] iterations, expected 0 to " + std::to_string(cpu::kMaxLimitIterations));
  return loop ? loop(iterations) : 0;
}

}  // namespace

void bind_limits(nb::module_& m) {
  m.def("measure_read_bandwidth", &measure_read_bandwidth, "n_threads"_a, "bytes"_a, "seconds"_a = 0.5, "isa"_a = "",
        nb::call_guard<nb::gil_scoped_release>(),
        "Gigabytes (1e9) a second that threads together read from memory; the best of several passes.");
  m.def("measure_peak_ops", &measure_peak_ops, "n_threads"_a, "kind"_a, "seconds"_a = 0.2, "isa"_a = "",
        nb::call_guard<nb::gil_scoped_release>(),
        "1e9 operations a second (a multiply-add is two), kind int8, float32, bfloat16 or int16; 0 where there is no "
        "such instruction.");
  m.def(
      "measure_gpu_limits",
      [](int index, double seconds) {
        const cuda::Entry* entry = cuda::entry();
        if (!entry || index < 0 || index >= entry->device_count(nullptr))
          throw DeviceError("[limits] cuda:" + std::to_string(index) + " is not there" +
                            (entry ? std::string() : ": " + cuda::why_not()));
        const cuda::DeviceLimits limits = entry->measure_limits(index, seconds);
        return std::tuple{limits.read_gb_s, limits.copy_gb_s, limits.half_gop_s};
      },
      "index"_a, "seconds"_a = 0.4, nb::call_guard<nb::gil_scoped_release>(),
      "1e9 bytes a second that a GPU reads from memory, 1e9 that it copies (both ways counted), 1e9 operations a "
      "second "
      "of tensor products of halves.");
  m.def("read_bytes", &read_bytes, "bytes"_a, "isa"_a = "",
        "The loops that bandwidth is measured with, one after the other: the exclusive or of all 64-bit words.");
  m.def("multiply_adds", &multiply_adds, "kind"_a, "iterations"_a, "isa"_a = "",
        "The loop that peaks are measured with: how many multiply-adds the iterations made; 0 where there is no such "
        "instruction.");
  m.def("time_matmul", &time_packed_matmul, "packed"_a, "type_id"_a, "n_cols"_a, "n"_a, "decode"_a, "n_threads"_a,
        "weight_bytes"_a = 0, "large_pages"_a = true, "seconds"_a = 1.0, "isa"_a = "",
        "Seconds of each product of n rows with packed [m, row_bytes], copies of which are cycled that take "
        "weight_bytes.");
}

}  // namespace gristmill::bindings

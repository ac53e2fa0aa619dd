// Block formats: the registry as a list, rows to blocks and back. gristmill.quants checks arguments and explains.
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>

#include <optional>

#include "bindings/bindings.h"
#include "core/error.h"
#include "formats/convert.h"
#include "formats/registry.h"
#include "formats/search.h"

namespace nb = nanobind;

namespace gristmill::bindings {
namespace {

using Floats = nb::ndarray<float, nb::shape<-1, -1>, nb::c_contig, nb::device::cpu>;
using ConstFloats = nb::ndarray<const float, nb::shape<-1, -1>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<uint8_t, nb::shape<-1, -1>, nb::c_contig, nb::device::cpu>;
using ConstBytes = nb::ndarray<const uint8_t, nb::shape<-1, -1>, nb::c_contig, nb::device::cpu>;

const formats::FormatInfo& format_of(std::string_view name) {
  const formats::FormatInfo* format = formats::find_format(name);
  if (!format) throw ArgumentError("[formats] unknown type " + std::string(name));
  return *format;
}

// values [rows, k] and blocks [rows, k / block_size * type_size] describe the same tensor.
void check_shapes(std::string_view op, const formats::FormatInfo& format, const auto& values, const auto& blocks) {
  const size_t k = values.shape(1), expected = k / format.block_size * format.type_size;
  if (k % format.block_size != 0 || values.shape(0) != blocks.shape(0) || blocks.shape(1) != expected)
    throw ArgumentError("[" + std::string(op) + "] shapes of values and blocks, expected " +
                        std::to_string(values.shape(0)) + " x " + std::to_string(expected) + " bytes, got " +
                        std::to_string(blocks.shape(0)) + " x " + std::to_string(blocks.shape(1)));
}

nb::list list_formats() {
  nb::list all;
  for (const auto* f = formats::begin_formats(); f != formats::end_formats(); ++f) {
    const char* kind = f->kind == formats::Kind::kFloat ? "float" : "affine";
    all.append(nb::make_tuple(f->name, uint32_t(f->id), f->block_size, f->type_size, kind, f->max_relative_error));
  }
  return all;
}

// importance: [1, k] for all rows, or [rows, k].
void quantize_rows(ConstFloats x, std::string_view type, std::optional<ConstFloats> importance, Bytes blocks) {
  const formats::FormatInfo& format = format_of(type);
  check_shapes("quantize", format, x, blocks);
  const size_t rows = x.shape(0), k = x.shape(1);
  if (importance && (importance->shape(1) != k || (importance->shape(0) != 1 && importance->shape(0) != rows)))
    throw ArgumentError("[quantize] importance, expected 1 or " + std::to_string(rows) + " rows of " +
                        std::to_string(k));
  const float* weights = importance ? importance->data() : nullptr;
  const size_t weights_stride = importance && importance->shape(0) == rows ? k : 0;
  const nb::gil_scoped_release release;
  for (size_t row = 0; row < rows; ++row)
    format.from_float(x.data() + row * k, weights ? weights + row * weights_stride : nullptr,
                      blocks.data() + row * blocks.shape(1), int64_t(k));
}

void dequantize_rows(ConstBytes blocks, std::string_view type, Floats y) {
  const formats::FormatInfo& format = format_of(type);
  check_shapes("dequantize", format, y, blocks);
  const nb::gil_scoped_release release;
  format.to_float(blocks.data(), y.data(), int64_t(y.size()));
}

using ConstBuffer = nb::ndarray<const uint8_t, nb::shape<-1>, nb::c_contig, nb::device::cpu>;
using Buffer = nb::ndarray<uint8_t, nb::shape<-1>, nb::c_contig, nb::device::cpu>;
using ConstVector = nb::ndarray<const float, nb::shape<-1>, nb::c_contig, nb::device::cpu>;

// source and target: whole rows of n_cols weights.
nb::tuple convert_rows(ConstBuffer source, std::string_view from_type, std::string_view to_type, int64_t n_cols,
                       std::optional<ConstVector> importance, Buffer target) {
  const formats::FormatInfo &from = format_of(from_type), &to = format_of(to_type);
  if (n_cols <= 0 || n_cols % from.block_size || n_cols % to.block_size)
    throw ArgumentError("[convert] columns, expected whole blocks of both formats, got " + std::to_string(n_cols));
  const size_t source_row = size_t(n_cols / from.block_size * from.type_size);
  const size_t target_row = size_t(n_cols / to.block_size * to.type_size);
  const size_t rows = source.size() / source_row;
  if (source.size() != rows * source_row || target.size() != rows * target_row)
    throw ArgumentError("[convert] bytes, expected whole rows, as many in source and target");
  if (importance && int64_t(importance->size()) != n_cols)
    throw ArgumentError("[convert] importance, expected " + std::to_string(n_cols) + " numbers");
  formats::Converted result;
  {
    const nb::gil_scoped_release release;
    result =
        formats::convert_rows(from, source.data(), to,
                              importance ? std::span(importance->data(), importance->size()) : std::span<const float>(),
                              int64_t(rows), n_cols, target.data());
  }
  return nb::make_tuple(result.refused, result.overflowed);
}

}  // namespace

void bind_formats(nb::module_& m) {
  m.def("formats", &list_formats, nb::sig("def formats() -> list[tuple[str, int, int, int, str, float]]"),
        "Every block format: (name, type_id, block_size, type_size, kind, max_relative_error).");
  m.def("quantize_rows", &quantize_rows, nb::arg("x"), nb::arg("type"), nb::arg("importance").none(),
        nb::arg("blocks"));
  m.def("dequantize_rows", &dequantize_rows, nb::arg("blocks"), nb::arg("type"), nb::arg("y"));
  m.def("search_isa", [] { return formats::search().name; }, "The vectors in which the quantizers search.");
  m.def("convert_rows", &convert_rows, nb::arg("source"), nb::arg("from_type"), nb::arg("to_type"), nb::arg("n_cols"),
        nb::arg("importance").none(), nb::arg("target"),
        nb::sig("def convert_rows(source: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', "
                "device='cpu', writable=False)], from_type: str, to_type: str, n_cols: int, importance: "
                "Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)] | "
                "None, target: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu')]) -> "
                "tuple[int, int]"),
        "Rows through float32. Returns (first value that to_type cannot hold or -1, finite values become infinite).");
}

}  // namespace gristmill::bindings

// Strings of a GGUF header. A vocabulary has 10^5 of them, on which Python alone would spend most of a model's start.
#include <cstdint>
#include <cstring>

#include "bindings/bindings.h"
#include "core/error.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace gristmill::bindings {
namespace {

// The memory of a bytes-like object, for as long as this lives.
class Bytes {
 public:
  explicit Bytes(nb::handle object) {
    if (PyObject_GetBuffer(object.ptr(), &view_, PyBUF_SIMPLE) != 0) throw nb::python_error();
  }
  ~Bytes() { PyBuffer_Release(&view_); }
  Bytes(const Bytes&) = delete;
  Bytes& operator=(const Bytes&) = delete;

  uint64_t size() const { return uint64_t(view_.len); }
  const char* at(uint64_t pos) const { return static_cast<const char*>(view_.buf) + pos; }
  bool has(uint64_t pos, uint64_t n) const { return pos <= size() && n <= size() - pos; }
  uint64_t u64(uint64_t pos) const {
    uint64_t value;
    std::memcpy(&value, at(pos), sizeof value);  // little-endian, as every machine that this is built for
    return value;
  }

 private:
  Py_buffer view_;
};

// A string is its length, a uint64, and as many bytes of UTF-8.
constexpr uint64_t kLength = 8;
// Lengths from here on would let positions overflow.
constexpr uint64_t kAbsurd = uint64_t(1) << 62;

nb::typed<nb::tuple, uint64_t, uint64_t> skip_strings(nb::handle data, uint64_t pos, uint64_t count) {
  const Bytes bytes(data);
  for (; count > 0 && bytes.has(pos, kLength); --count) {
    const uint64_t length = bytes.u64(pos);
    if (length >= kAbsurd) break;
    pos += kLength + length;
  }
  return nb::make_tuple(pos, count);
}

nb::typed<nb::tuple, nb::typed<nb::list, nb::str>, uint64_t> decode_strings(nb::handle data, uint64_t pos,
                                                                            uint64_t count) {
  const Bytes bytes(data);
  const auto check = [&](bool there) {
    if (!there) throw ArgumentError("[decode_strings] strings, expected them to end where the data does or before");
  };
  check(bytes.has(pos, 0) && count <= (bytes.size() - pos) / kLength);
  const nb::object strings = nb::steal(PyList_New(Py_ssize_t(count)));
  if (!strings.is_valid()) throw nb::python_error();
  for (uint64_t i = 0; i < count; ++i) {
    check(bytes.has(pos, kLength));
    const uint64_t length = bytes.u64(pos);
    pos += kLength;
    check(bytes.has(pos, length));
    PyObject* text = PyUnicode_DecodeUTF8(bytes.at(pos), Py_ssize_t(length), "surrogateescape");
    if (!text) throw nb::python_error();
    PyList_SET_ITEM(strings.ptr(), Py_ssize_t(i), text);
    pos += length;
  }
  return nb::make_tuple(strings, pos);
}

}  // namespace

void bind_header(nb::module_& m) {
  m.def("skip_strings", &skip_strings, "data"_a, "pos"_a, "count"_a,
        "Steps over strings, each a uint64 length and its bytes, while their lengths lie in data and are below 2^62; "
        "(position behind the last, strings left). The position may lie beyond data.");
  m.def("decode_strings", &decode_strings, "data"_a, "pos"_a, "count"_a,
        "(list of strings, position behind them), bytes that are not UTF-8 by surrogateescape. ArgumentError if data "
        "ends before they do.");
}

}  // namespace gristmill::bindings

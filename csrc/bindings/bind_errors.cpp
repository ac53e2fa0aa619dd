// C++ exceptions become the classes of gristmill.errors (defined in Python, so that they are documented and typed
// there).
#include <cstring>
#include <new>

#include "bindings/bindings.h"
#include "core/error.h"

namespace nb = nanobind;

namespace gristmill::bindings {
namespace {

void raise(const char* name, const char* what) {
  const nb::object type = nb::module_::import_("gristmill.errors").attr(name);
  // Messages name files, whose names need not be UTF-8 and may hold line breaks.
  const nb::object text = nb::steal(PyUnicode_DecodeUTF8(what, Py_ssize_t(std::strlen(what)), "backslashreplace"));
  const nb::object message = nb::module_::import_("gristmill.messages").attr("printable")(text);
  PyErr_SetObject(type.ptr(), message.ptr());
}

}  // namespace

void bind_errors(nb::module_&) {
  nb::register_exception_translator([](const std::exception_ptr& p, void*) {
    try {
      std::rethrow_exception(p);
    } catch (const GGUFError& e) {
      raise("GGUFError", e.what());
    } catch (const UnsupportedModelError& e) {
      raise("UnsupportedModelError", e.what());
    } catch (const ContextFullError& e) {
      raise("ContextFullError", e.what());
    } catch (const DeviceError& e) {
      raise("DeviceError", e.what());
    } catch (const ArgumentError& e) {
      raise("ArgumentError", e.what());
    } catch (const Error& e) {
      raise("Error", e.what());
    } catch (const std::bad_alloc&) {
      raise("DeviceError", "[memory] an allocation failed");
    }
  });
}

}  // namespace gristmill::bindings

// Typed errors of the C++ side. The bindings map each to the Python class of the same name.
// Messages read "[op] what, expected X, got Y"; they name things as the GGUF file does.
#pragma once

#include <stdexcept>
#include <string>

namespace gristmill {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};
// The file is malformed, or its tensors and metadata contradict each other.
struct GGUFError : Error {
  using Error::Error;
};
// The file is sound, but this build cannot run it.
struct UnsupportedModelError : Error {
  using Error::Error;
};
// More positions were asked for than the context holds.
struct ContextFullError : Error {
  using Error::Error;
};
// Memory, a mapping or a device call failed.
struct DeviceError : Error {
  using Error::Error;
};
// An argument of the caller's is out of range. Also a ValueError in Python.
struct ArgumentError : Error {
  using Error::Error;
};

}  // namespace gristmill

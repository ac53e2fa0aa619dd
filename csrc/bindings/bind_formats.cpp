#include "bindings/bindings.h"

namespace nb = nanobind;

namespace gristmill::bindings {

void bind_formats(nb::module_&) {}

}  // namespace gristmill::bindings

#include "bindings/bindings.h"

namespace nb = nanobind;

namespace gristmill::bindings {

void bind_model(nb::module_&) {}

}  // namespace gristmill::bindings

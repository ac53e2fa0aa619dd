#include "bindings/bindings.h"

namespace nb = nanobind;

namespace gristmill::bindings {

void bind_sampling(nb::module_&) {}

}  // namespace gristmill::bindings

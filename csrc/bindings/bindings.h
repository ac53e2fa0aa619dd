// One bind_* per area; no logic here, only conversions between Python's types and ours.
#pragma once

#include <nanobind/nanobind.h>

namespace gristmill::bindings {

void bind_errors(nanobind::module_& m);
void bind_formats(nanobind::module_& m);
void bind_header(nanobind::module_& m);
void bind_kernels(nanobind::module_& m);
void bind_limits(nanobind::module_& m);
void bind_model(nanobind::module_& m);
void bind_sampling(nanobind::module_& m);

}  // namespace gristmill::bindings

#include "bindings/bindings.h"

NB_MODULE(_core, m) {
  m.doc() = "gristmill's compiled part: block formats, kernels, models, samplers.";
  gristmill::bindings::bind_errors(m);
  gristmill::bindings::bind_formats(m);
  gristmill::bindings::bind_header(m);
  gristmill::bindings::bind_kernels(m);
  gristmill::bindings::bind_limits(m);
  gristmill::bindings::bind_model(m);
  gristmill::bindings::bind_sampling(m);
}

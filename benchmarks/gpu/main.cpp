// gpu_bench PART...: limits kernels model:Q4_K_M model:Q8_0 ... (model:MIX:LAYERS for a smaller one),
// logits:Q4_K_M ... JSON lines on standard output; check.sh makes a table of them. "tiny" first: everything in sizes
// that the emulation runs, for its own sake, not for its figures. Ends with 1 where a result was wrong, when all has
// been measured.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "bench.h"
#include "core/error.h"
#include "verify.h"

int main(int argc, char** argv) {
  using namespace gristmill;
  using namespace gristmill::cuda;
  try {
    if (device_count() == 0) throw DeviceError("there is no GPU");
    set_device(0);
    const bool tiny = argc > 1 && std::strcmp(argv[1], "tiny") == 0;
    bench::Context context{device_info(0), make_stream(), tiny ? bench::tiny_sizes() : bench::Sizes{}, {}};
    bool measured = false;
    for (int i = tiny ? 2 : 1; i < argc; ++i) {
      const std::string part = argv[i];
      if (!measured && !part.starts_with("logits:")) {
        bench::measure_limits(context);
        measured = true;
      }
      if (part == "kernels") {
        bench::bench_products(context);
        bench::bench_attention(context);
        bench::bench_rows(context);
      } else if (part.starts_with("model:")) {
        const size_t colon = part.find(':', 6);
        const int n_layer = colon == std::string::npos ? 64 : std::atoi(part.c_str() + colon + 1);
        bench::bench_model(context, part.substr(6, colon - 6), n_layer);
      } else if (part.starts_with("logits:")) {
        bench::compare_with_cpu(context, part.substr(7));
      } else if (part != "limits") {
        throw Error("unknown part " + part);
      }
    }
    destroy_stream(context.stream);
  } catch (const Error& e) {
    std::fprintf(stderr, "gpu_bench: %s\n", e.what());
    return 1;
  }
  return bench::n_wrong() > 0 ? 1 : 0;
}

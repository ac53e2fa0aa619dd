// What the GPU reads, copies, multiplies and launches at most, in the run whose figures stand beside it.
#include "bench.h"
#include "cuda/matmul.h"
#include "peaks.h"

namespace gristmill::cuda::bench {

void measure_limits(Context& c) {
  const size_t bytes = c.sizes.limit_bytes;
  const int rounds = c.sizes.limit_rounds, launches = c.sizes.launches;
  const auto from = make_device<std::byte>(bytes), to = make_device<std::byte>(bytes);
  const auto sink = make_device<float>(size_t(c.device.multiprocessors) * 512);
  fill(from.get(), 0x5a, bytes, c.stream);
  double ms = median_ms(c, 2, [&](int) { copy_on_device(to.get(), from.get(), bytes, c.stream); });
  c.limits.copy_bytes = 2e3 * double(bytes) / ms;
  ms = median_ms(
      c, 2, [&](int) { read_memory(from.get(), bytes, reinterpret_cast<unsigned*>(sink.get()), c.device, c.stream); });
  c.limits.read_bytes = 1e3 * double(bytes) / ms;
  double operations = 0;
  ms = median_ms(c, 2, [&](int) { operations = multiply_halves(sink.get(), rounds, c.device, c.stream); });
  c.limits.half_flops = 1e3 * operations / ms;
  ms = median_ms(c, 2, [&](int) { operations = multiply_bytes(sink.get(), rounds, c.device, c.stream); });
  c.limits.byte_ops = 1e3 * operations / ms;
  c.limits.gemm_flops = c.limits.half_flops;
  if (prefill_order(c.device) == HalfOrder::kPanels) {
    ms = median_ms(c, 2, [&](int) { operations = multiply_wgmma(sink.get(), 16 * rounds, c.device, c.stream); });
    c.limits.gemm_flops = 1e3 * operations / ms;
    c.limits.gemm = "wgmma f16";
  }
  c.limits.launch_ms = graph_ms(c, launches, [&](int) { do_nothing(true, c.stream); });
  report("limits", "device copy, read and written", c.limits.copy_bytes / 1e9, "GB/s");
  report("limits", "read", c.limits.read_bytes / 1e9, "GB/s");
  report("limits", "mma.sync f16, f32 sums", c.limits.half_flops / 1e12, "TFLOP/s");
  if (c.limits.gemm_flops != c.limits.half_flops)
    report("limits", "wgmma f16, f32 sums", c.limits.gemm_flops / 1e12, "TFLOP/s");
  report("limits", "mma.sync int8", c.limits.byte_ops / 1e12, "TOP/s");
  report("limits", "launch", 1e3 * median_ms(c, launches, [&](int) { do_nothing(false, c.stream); }), "us");
  report("limits", "dependent launch", 1e3 * median_ms(c, launches, [&](int) { do_nothing(true, c.stream); }), "us");
  report("limits", "dependent launch in a graph", 1e3 * c.limits.launch_ms, "us");
}

}  // namespace gristmill::cuda::bench

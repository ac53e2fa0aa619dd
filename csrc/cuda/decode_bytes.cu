// decode_matmul for formats whose codes are signed bytes or levels.
#include "cuda/decode_kernel.h"

namespace gristmill::cuda {

template void launch_decode<TypeId::Q8_0>(const DecodeWork&, const DeviceInfo&, bool, Stream);
template void launch_decode<TypeId::IQ4_NL>(const DecodeWork&, const DeviceInfo&, bool, Stream);
template void launch_decode<TypeId::IQ4_XS>(const DecodeWork&, const DeviceInfo&, bool, Stream);

}  // namespace gristmill::cuda

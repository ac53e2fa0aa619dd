// decode_matmul for formats whose blocks are 32 weights.
#include "cuda/decode_kernel.h"

namespace gristmill::cuda {

template void launch_decode<TypeId::Q4_0>(const DecodeWork&, const DeviceInfo&, bool, Stream);
template void launch_decode<TypeId::Q4_1>(const DecodeWork&, const DeviceInfo&, bool, Stream);
template void launch_decode<TypeId::Q5_0>(const DecodeWork&, const DeviceInfo&, bool, Stream);
template void launch_decode<TypeId::Q5_1>(const DecodeWork&, const DeviceInfo&, bool, Stream);

}  // namespace gristmill::cuda

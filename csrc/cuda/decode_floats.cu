// decode_matmul for weights of float formats.
#include "cuda/decode_kernel.h"

namespace gristmill::cuda {

template void launch_decode<TypeId::F32>(const DecodeWork&, const DeviceInfo&, bool, Stream);
template void launch_decode<TypeId::F16>(const DecodeWork&, const DeviceInfo&, bool, Stream);
template void launch_decode<TypeId::BF16>(const DecodeWork&, const DeviceInfo&, bool, Stream);

}  // namespace gristmill::cuda

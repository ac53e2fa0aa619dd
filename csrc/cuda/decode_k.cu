// decode_matmul for K quantizations of 4 and 5 bits.
#include "cuda/decode_kernel.h"

namespace gristmill::cuda {

template void launch_decode<TypeId::Q4_K>(const DecodeWork&, const DeviceInfo&, bool, Stream);
template void launch_decode<TypeId::Q5_K>(const DecodeWork&, const DeviceInfo&, bool, Stream);

}  // namespace gristmill::cuda

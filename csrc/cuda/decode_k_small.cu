// decode_matmul for K quantizations of 2, 3 and 6 bits, whose groups are 16 weights.
#include "cuda/decode_kernel.h"

namespace gristmill::cuda {

template void launch_decode<TypeId::Q2_K>(const DecodeWork&, const DeviceInfo&, bool, Stream);
template void launch_decode<TypeId::Q3_K>(const DecodeWork&, const DeviceInfo&, bool, Stream);
template void launch_decode<TypeId::Q6_K>(const DecodeWork&, const DeviceInfo&, bool, Stream);

}  // namespace gristmill::cuda

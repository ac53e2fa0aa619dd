// From the mapped file to tiles on the device.
#pragma once

#include <cstddef>

#include "backend.h"
#include "cuda/runtime.h"

namespace gristmill::cuda {

// The tiles of a matrix. Rows go through two pinned buffers, so that reading the file, the copy over the bus and the
// repacking of a piece overlap those of its neighbours. Returns when the file's bytes are no longer needed.
DevicePointer<std::byte> upload_tiles(const Weight& w, Stream stream);

}  // namespace gristmill::cuda

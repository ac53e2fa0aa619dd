// What tests say to the device they run on: here the emulation. tests/cuda/gpu has the same for a real GPU.
#pragma once

#include "emulation/block.h"
#include "emulation/device.h"

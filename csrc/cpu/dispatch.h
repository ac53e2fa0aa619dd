// Which instruction set runs: the best that the processor and the system support, or the one GRISTMILL_ISA names.
#pragma once

#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace gristmill::cpu {

// One declaration a set; dispatch.cpp ranks them.
const Kernels& scalar_kernels();
const Kernels& avx2_kernels();
const Kernels& avx512_vnni_kernels();
const Kernels& amx_bf16_kernels();

// Names of the sets this build has, best first, and of those that can run here.
std::vector<std::string> built_isas();
std::vector<std::string> supported_isas();

// name: a set, or empty for GRISTMILL_ISA and, where that is not set, the best supported one.
// Throws ArgumentError for an unknown set, DeviceError for one that this machine cannot run.
const Kernels& choose_kernels(const std::string& name = "");

}  // namespace gristmill::cpu

// Which device runs a model: what was asked for, what is there, and whether the model fits it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "backend.h"
#include "models/hyperparameters.h"
#include "models/model_source.h"

namespace gristmill {

struct DeviceRequest {
  // "cpu"; "cuda" or "cuda:N": that one or an error; "auto": a GPU that the whole model fits, else the CPU.
  std::string device = "cpu";
  int64_t n_ctx = 0;
  KvType type_k = KvType::F16, type_v = KvType::F16;
};

struct DeviceChoice {
  std::unique_ptr<Backend> backend;  // nullptr: the CPU
  std::string name = "cpu";          // "cuda:0 (NVIDIA H200)"
  std::string note;                  // why not a GPU, where one was left out that could have been meant
};

// Throws DeviceError: no such device, or too little memory, with what would fit.
DeviceChoice choose_device(const models::ModelSource& source, const models::Hyperparameters& h, int64_t work_bytes,
                           const DeviceRequest& request);

}  // namespace gristmill

// The largest logits, found on the device.
#pragma once

#include <cstdint>

#include "cuda/runtime.h"

namespace gristmill::cuda {

int64_t top_candidates_workspace(int n_rows, int64_t row_length, int k);

// For each row of logits [n_rows][row_length] the k largest (k <= 1024) of the first n_vocab, largest first, equal ones
// by id: ids [n_rows][k], values [n_rows][k]; log_sum [n_rows] is log(sum of exp(logit)) over those n_vocab. finite
// [n_rows] is 0 where a logit of the whole row is NaN or infinite. All on the device.
void top_candidates(const float* logits, int n_rows, int64_t row_length, int64_t n_vocab, int k, int32_t* ids,
                    float* values, float* log_sum, int32_t* finite, void* workspace, Stream stream);

}  // namespace gristmill::cuda

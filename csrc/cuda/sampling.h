// The largest logits, found on the device.
#pragma once

#include <cstdint>

#include "cuda/runtime.h"

namespace gristmill::cuda {

int64_t top_candidates_workspace(int n_rows, int64_t n_vocab, int k);

// For each row of logits [n_rows][n_vocab] the k largest (k <= 1024), largest first, equal ones by id: ids [n_rows][k],
// values [n_rows][k]; log_sum [n_rows] is log(sum of exp(logit)) over the whole row. finite [n_rows] is 0 where a logit
// is NaN or infinite. All on the device.
void top_candidates(const float* logits, int n_rows, int64_t n_vocab, int k, int32_t* ids, float* values,
                    float* log_sum, int32_t* finite, void* workspace, Stream stream);

}  // namespace gristmill::cuda

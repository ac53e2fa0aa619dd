// Attention of any types and head dimensions, one query head of one row a block: for what the fast kernels do not take.
#pragma once

#include "cuda/attention.h"

namespace gristmill::cuda {

// Rows of a batch of sequences, or (positions == nullptr) of one sequence at n_past, n_past + 1, ...
struct AttentionRows {
  DeviceBatch batch;
  std::byte* cache = nullptr;
  int64_t n_past = 0;
};

// Rows may be decoded or prefilled: the bits are the same.
void plain_attention(const AttentionRows& rows, const KvLayout& layout, int layer, const float* q, int n_head, int n,
                     float scale, float* out, Stream stream);

}  // namespace gristmill::cuda

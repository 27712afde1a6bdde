// What sampling needs of a whole row of logits.
#pragma once

#include <cstdint>

namespace shale {

// The k greatest of n logits, descending, equal ones by ascending id, NaN last; k must be in [1, n]. Exact.
void top_k(const float* logits, int64_t n, int64_t k, int32_t* ids, float* values);

// log(sum of e^logit), the same bits for any number of threads. n >= 1; -infinity when all logits are; NaN if one is.
double log_sum_exp(const float* logits, int64_t n);

}  // namespace shale

// Fills an OpTable with the kernels over one vector type. Included by the translation unit of each instruction set
// only.
#pragma once

#include "activation_kernel.h"
#include "attention_kernel.h"
#include "attention_merge.h"
#include "cache_rows.h"
#include "hadamard_kernel.h"
#include "norm_kernel.h"
#include "ops.h"
#include "rope_kernel.h"
#include "sample_kernel.h"

namespace shale {

template <class V>
inline constexpr OpTable kOpTable = {
    .rms_norm = rms_norm<V>,
    .add_rms_norm = add_rms_norm<V>,
    .layer_norm = layer_norm<V>,
    .add = add<V>,
    .rope = rope<V>,
    .swiglu = swiglu<V>,
    .geglu = geglu<V>,
    .gelu = gelu<V>,
    .store_cache_row = store_cache_row<V>,
    .load_cache_row = load_cache_row<V>,
    .hadamard = hadamard<V>,
    .attend = attend<V>,
    .merge_chunks = merge_chunks<V>,
    .find_greater = find_greater<V>,
    .max_value = max_value<V>,
    .sum_exp = sum_exp<V>,
};

}  // namespace shale

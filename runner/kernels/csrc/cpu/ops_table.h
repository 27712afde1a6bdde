// Fills an OpTable with the kernels over one vector type. Included by the translation unit of each instruction set
// only.
#pragma once

#include "activation_kernel.h"
#include "attention_kernel.h"
#include "attention_merge.h"
#include "norm_kernel.h"
#include "ops.h"
#include "rope_kernel.h"
#include "sample_kernel.h"

namespace shale {

template <class V>
void to_half(const float* x, uint16_t* out, int64_t n) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) V::load(x + i).store(out + i);
  if (i < n) V::load_first(x + i, static_cast<int>(n - i)).store_first(out + i, static_cast<int>(n - i));
}

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
    .to_half = to_half<V>,
    .attend_half = attend<V, uint16_t>,
    .attend_float = attend<V, float>,
    .merge_chunks = merge_chunks<V>,
    .find_greater = find_greater<V>,
    .max_value = max_value<V>,
    .sum_exp = sum_exp<V>,
};

}  // namespace shale

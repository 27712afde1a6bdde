// The kernels of one instruction set as a table. Every function works on one thread, on whole rows or a range of
// elements; who calls it splits the work. Sizes are in elements, strides in elements of the array they belong to.
#pragma once

#include <cstdint>

#include "cache_types.h"

namespace shale {

struct AttentionTask;  // attention.h
struct AttentionSpan;

struct OpTable {
  // norm_kernel.h
  void (*rms_norm)(const float* x, const float* weight, float eps, float* out, int64_t rows, int64_t dim);
  void (*add_rms_norm)(float* residual, const float* delta, const float* weight, float eps, float* out, int64_t rows,
                       int64_t dim);
  void (*layer_norm)(const float* x, const float* weight, const float* bias, float eps, float* out, int64_t rows,
                     int64_t dim);
  void (*add)(float* x, const float* delta, int64_t n);
  // rope_kernel.h
  void (*rope)(float* x, const float* table, bool neox, int64_t tokens, int64_t heads, int64_t dim, int64_t n_rot);
  // activation_kernel.h
  void (*swiglu)(const float* gate, const float* up, float* out, int64_t n);
  void (*geglu)(const float* gate, const float* up, float* out, int64_t n);
  void (*gelu)(const float* x, float* out, int64_t n);
  // cache_rows.h
  void (*store_cache_row)(CacheType type, const float* x, uint8_t* row, int64_t n);
  void (*load_cache_row)(CacheType type, const uint8_t* row, float* x, int64_t n);
  // hadamard_kernel.h
  void (*hadamard)(float* x, int64_t size, int64_t num_blocks);
  // attention_kernel.h, attention_merge.h
  void (*attend)(const AttentionTask& task, const AttentionSpan& span);
  void (*merge_chunks)(const AttentionTask& task, int64_t row, int64_t head);
  // sample_kernel.h
  int64_t (*find_greater)(const float* x, int64_t* position, int64_t end, float threshold, int32_t* found,
                          int64_t room);
  float (*max_value)(const float* x, int64_t n);
  double (*sum_exp)(const float* x, int64_t n, float max);
};

// The table of the active instruction set.
const OpTable& ops() noexcept;

extern const OpTable ops_portable;
#if SHALE_X86
extern const OpTable ops_avx2;
extern const OpTable ops_avx512;
#endif

}  // namespace shale

// Matrix products of one activation with several packed matrices.
#pragma once

#include <cstdint>
#include <vector>

namespace shale {

struct PackedMatrix {
  int type;  // index into the types' table, repack.h
  int64_t rows, cols;
  const uint8_t* panels;  // 64-byte aligned
};

struct LinearTarget {
  PackedMatrix matrix;
  const float* bias;  // (rows,) or null
  float* out;         // (num_tokens, rows)
};

enum class LinearForm { automatic, direct, panel };

// out = x W^T + bias for every target; all have `cols` columns. x is quantized once for all, and all panels are one job
// of the pool. The bytes of the results depend neither on the form, nor on num_tokens, nor on the number of threads.
void linear(const float* x, int64_t num_tokens, int64_t cols, const std::vector<LinearTarget>& targets,
            LinearForm form);

}  // namespace shale

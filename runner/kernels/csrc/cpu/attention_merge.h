// Chunks of attention (attention.h) put together: a share is a maximum, the sum of the weights e^(score - maximum) and
// the weighted sums of the values.
//
// Rounding: shares are added in ascending order of their chunks, each as total * e^(old - new maximum) + share *
// e^(its - new maximum), whether one thread has all chunks or several leave theirs in memory.
#pragma once

#include <cstdint>
#include <cstring>

#include "attention.h"
#include "vector_math.h"

namespace shale {

// Where a span of one chunk leaves its share for merge_chunks.
template <class V>
inline float* partial_of(const AttentionTask& task, int64_t row, int64_t head, int64_t chunk) {
  const int64_t index = (row * task.num_heads + head) * task.num_chunks + chunk - task.first_chunk;
  return task.partials + index * (task.value_stride + 2);
}

// Adds a chunk's share to the total of the chunks before it.
template <class V>
inline void merge_share(float& total_maximum, float& total_weight, float* total_sums, float maximum, float weight,
                        const float* sums, int64_t n) {
  const float highest = maximum > total_maximum ? maximum : total_maximum;
  const V fade = exp_nonpositive(V::set(total_maximum - highest)), share = exp_nonpositive(V::set(maximum - highest));
  total_maximum = highest;
  total_weight = total_weight * fade.max() + weight * share.max();
  for (int64_t d = 0; d < n; d += 16) {
    V::fma(V::load(sums + d), share, V::load(total_sums + d) * fade).store(total_sums + d);
  }
}

template <class V>
inline void write_quotient(const float* sums, float weight, float* out, int64_t n) {
  const V inverse = V::set(1.0f / weight);
  int64_t d = 0;
  for (; d + 16 <= n; d += 16) (V::load(sums + d) * inverse).store(out + d);
  if (d < n) (V::load(sums + d) * inverse).store_first(out + d, static_cast<int>(n - d));
}

// The output of one row and head from the partials of its chunks.
template <class V>
void merge_chunks(const AttentionTask& task, int64_t row, int64_t head) {
  const int64_t first = task.rows[3 * row + 1], end = task.rows[3 * row + 2];
  float* out = task.out + (row * task.num_heads + head) * task.value_length;
  if (first >= end) {
    std::memset(out, 0, static_cast<std::size_t>(task.value_length) * sizeof(float));
    return;
  }
  float* total = partial_of<V>(task, row, head, first / kChunk);
  for (int64_t chunk = first / kChunk + 1; chunk * kChunk < end; ++chunk) {
    const float* share = partial_of<V>(task, row, head, chunk);
    merge_share<V>(total[0], total[1], total + 2, share[0], share[1], share + 2, task.value_stride);
  }
  write_quotient<V>(total + 2, total[1], out, task.value_length);
}

}  // namespace shale

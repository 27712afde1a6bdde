// Passes over logits: 4 bytes and a few operations a value (sum_exp about 15).
#pragma once

#include <cstdint>

#include "vector_math.h"

namespace shale {

// Writes the indices >= *position of values greater than the threshold to `found`, ascending; stops at `end` or when
// fewer than 16 places of `room` are left. *position is where it stopped; the number found is returned. NaN is never
// greater.
template <class V>
int64_t find_greater(const float* x, int64_t* position, int64_t end, float threshold, int32_t* found, int64_t room) {
  const V limit = V::set(threshold);
  int64_t count = 0, i = *position;
  for (; i + 16 <= end && count + 16 <= room; i += 16) {
    for (uint32_t hits = V::bits(V::less(limit, V::load(x + i))); hits != 0; hits &= hits - 1) {
      found[count++] = static_cast<int32_t>(i) + __builtin_ctz(hits);
    }
  }
  for (; i + 16 > end && i < end && count < room; ++i) {
    if (x[i] > threshold) found[count++] = static_cast<int32_t>(i);
  }
  *position = i;
  return count;
}

template <class V>
float max_value(const float* x, int64_t n) {
  V best = V::set(x[0]);
  for (int64_t i = 0; i + 16 <= n; i += 16) best = V::max(best, V::load(x + i));
  float result = best.max();
  for (int64_t i = n / 16 * 16; i < n; ++i) result = x[i] > result ? x[i] : result;
  return result;
}

// The sum of e^(x - max), added in double: lane l takes the values l mod 16, ascending, then the lanes from 0 to 15.
template <class V>
double sum_exp(const float* x, int64_t n, float max) {
  double sums[16] = {};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) exp_nonpositive(V::load(x + i) - V::set(max)).add_to(sums);
  if (i < n) {
    const int rest = static_cast<int>(n - i);
    const V e = exp_nonpositive(V::load_first(x + i, rest) - V::set(max));
    V::select(V::less(V::iota(), V::set(static_cast<float>(rest))), e, V::zero()).add_to(sums);
  }
  double total = 0.0;
  for (double sum : sums) total += sum;
  return total;
}

}  // namespace shale

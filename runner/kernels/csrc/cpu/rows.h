// Rows of floats in vectors of sixteen: the loops that every elementwise and every summing kernel shares.
#pragma once

#include <cstdint>

namespace shale {

// out[i] = f(at) for i in [0, n), where at(p) is the vector p[i ... i + 15]. Reads and writes n values exactly.
template <class V, class F>
inline void map_row(float* out, int64_t n, F&& f) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) f([i](const float* p) { return V::load(p + i); }).store(out + i);
  if (i == n) return;
  const int rest = static_cast<int>(n - i);
  f([i, rest](const float* p) { return V::load_first(p + i, rest); }).store_first(out + i, rest);
}

// The sum over i in [0, n) of terms that `add` folds into a vector: sum = add(at, sum), with at as above (values beyond
// n read as zero, which `valid` tells from values that are zero). Order: vector j goes to partial sum j mod 4, the
// partial sums are added as (0 + 1) + (2 + 3), the lanes as a tree.
template <class V, class F>
inline float sum_row(int64_t n, F&& add) {
  V sums[4] = {V::zero(), V::zero(), V::zero(), V::zero()};
  int64_t i = 0;
  const auto full = [&i](const float* p) { return V::load(p + i); };
  for (; i + 64 <= n; i += 64) {
    for (int j = 0; j < 4; ++j) {
      sums[j] = add([at = i + 16 * j](const float* p) { return V::load(p + at); }, sums[j]);
    }
  }
  int j = 0;
  for (; i + 16 <= n; i += 16, ++j) sums[j] = add(full, sums[j]);
  if (i < n) {
    const int rest = static_cast<int>(n - i);
    sums[j] = add([i, rest](const float* p) { return V::load_first(p + i, rest); }, sums[j]);
  }
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])).sum();
}

}  // namespace shale

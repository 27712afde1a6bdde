// Loops over query vectors cut into tiles whose sums stay in registers.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

// For lambdas whose arrays are to stay in registers.
#define SHALE_INLINE __attribute__((always_inline))

namespace shale {

// f(0), ..., f(N - 1), each index a constant: arrays that are only indexed by such become registers, whatever else the
// surrounding loop does. (GCC 12 keeps those of an unrolled loop in memory where the loop also writes elsewhere.)
template <int N, class F>
SHALE_INLINE inline void unrolled(F&& f) {
  [&]<int... I>(std::integer_sequence<int, I...>)
      SHALE_INLINE { (f(std::integral_constant<int, I>{}), ...); }(std::make_integer_sequence<int, N>{});
}

// Calls f<R>() with the template argument R = n, for n in [1, R].
template <int R, class F>
inline void with_constant(int n, F&& f) {
  if constexpr (R > 1) {
    if (n < R) return with_constant<R - 1>(n, f);
  }
  f.template operator()<R>();
}

// Splits [0, n) into runs of at most V::kTileRows, as even as possible: f(first, count).
template <class V, class F>
inline void for_row_groups(int64_t n, F&& f) {
  const int64_t num_groups = (n + V::kTileRows - 1) / V::kTileRows;
  for (int64_t g = 0; g < num_groups; ++g) {
    const int64_t first = n * g / num_groups;
    f(first, static_cast<int>(n * (g + 1) / num_groups - first));
  }
}

}  // namespace shale

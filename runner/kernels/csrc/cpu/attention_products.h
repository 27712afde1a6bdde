// The two products of attention, of R query vectors with a tile of positions (attention_sources.h).
//
// Rounding: a score is four chains of fused multiply-adds, chain j over the dimensions d = j modulo 4 in ascending
// order, then (0 + 1) + (2 + 3). A sum of values is a chain of fused multiply-adds over the positions in ascending
// order.
#pragma once

#include <cstdint>

#include "register_tile.h"

namespace shale {

// Scores of sixteen positions: out[r * stride ... + 15] = query r times keys, over `length` dimensions (a multiple of
// Source::kStep; queries have `query_stride` floats). `between` is called now and then.
template <class V, int R, class Source, class Between>
inline void score(const Source& source, const float* queries, int64_t query_stride, int64_t length, float* out,
                  int64_t stride, Between&& between) {
  constexpr int C = Source::kVectors, kStep = Source::kStep;
  V parts[R][4];
  unrolled<4 / C>([&](auto pass) SHALE_INLINE {
    constexpr int k = pass * C;
    V sums[R][C];
    unrolled<R * C>([&](auto i) SHALE_INLINE { sums[i / C][i % C] = V::zero(); });
    for (int64_t d = 0; d < length; d += kStep) {
      decltype(source.load(0, 0)) keys[C];
      unrolled<C>([&](auto c) SHALE_INLINE { keys[c] = source.load(k + c, d); });
      unrolled<kStep / 4>([&](auto s) SHALE_INLINE {
        if constexpr (s % Source::kStepsBetween == 0) between();
        V key[C];
        unrolled<C>([&](auto c) SHALE_INLINE { key[c] = keys[c].get(s); });
        unrolled<R>([&](auto r) SHALE_INLINE {
          const V x = V::repeat(queries + r * query_stride + d + 4 * s);
          unrolled<C>([&](auto c) SHALE_INLINE { sums[r][c] = V::fma(x, key[c], sums[r][c]); });
        });
      });
    }
    unrolled<R * C>([&](auto i) SHALE_INLINE { parts[i / C][k + i % C] = sums[i / C][i % C]; });
  });
  unrolled<R>([&](auto r) SHALE_INLINE {
    V::sum_quarters(parts[r][0], parts[r][1], parts[r][2], parts[r][3]).store(out + r * stride);
  });
}

// sums[r * sum_stride + d ...] += weights[r * weight_stride + p] * value(p, d) for C vectors from d on, over positions
// [first, end).
template <class V, int R, int C, class Source, class Between>
inline void accumulate(const Source& source, const float* weights, int64_t weight_stride, int first, int end, int64_t d,
                       float* sums, int64_t sum_stride, Between&& between) {
  V totals[R][C];
  unrolled<R * C>([&](auto i)
                      SHALE_INLINE { totals[i / C][i % C] = V::load(sums + i / C * sum_stride + d + 16 * (i % C)); });
  for (int p = first; p < end; ++p) {
    if constexpr (Source::kHasBetween) between();
    V value[C];
    source.load(p, d, value);
    unrolled<R>([&](auto r) SHALE_INLINE {
      const V weight = V::set(weights[r * weight_stride + p]);
      unrolled<C>([&](auto c) SHALE_INLINE { totals[r][c] = V::fma(weight, value[c], totals[r][c]); });
    });
  }
  unrolled<R * C>([&](auto i)
                      SHALE_INLINE { totals[i / C][i % C].store(sums + i / C * sum_stride + d + 16 * (i % C)); });
}

}  // namespace shale

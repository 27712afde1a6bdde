// Matrices of float types times activations in float32: both forms of them.
//
// Computes out[t][r] = sum over c of w[r][c] * x[t][c] for 16 rows and T tokens at a time. Weights are (column, 16
// rows), so they are read once, in order; 16 * T fused multiply-adds for each column. Rounding order: four partial
// sums, of the columns c with c mod 4 = 0 ... 3, each by fma in ascending order, added as (0 + 1) + (2 + 3); bias is
// added last.
#pragma once

#include <cstdint>

#include "kernel_table.h"
#include "matvec.h"

namespace shale {
namespace {

template <class V, class Q>
inline typename V::Floats load_weights(const uint8_t* p) {
  if constexpr (Q::id == F16::id) return V::from_f16(p);
  if constexpr (Q::id == BF16::id) return V::from_bf16(p);
  if constexpr (Q::id == F32::id) return V::from_f32(p);
}

template <class V, class Q, int T>
void multiply_float_tile(const Product& product, int64_t panel, int64_t token) {
  constexpr int kColumnBytes = kPanelRows * Q::bytes;
  const uint8_t* w = product.panels + panel * product.panel_bytes;
  const float* x = product.x + token * product.cols;
  typename V::Floats sum[4][T];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) sum[j][t] = V::zero();
  }
  const auto add_column = [&](int j, int64_t c) {
    const typename V::Floats weights = load_weights<V, Q>(w + c * kColumnBytes);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      sum[j][t] = V::add_product(weights, V::broadcast(x[t * product.cols + c]), sum[j][t]);
    }
  };
  int64_t c = 0;
  for (; c + 4 <= product.cols; c += 4) {
    prefetch<4 * kColumnBytes>(w + c * kColumnBytes + product.prefetch_bytes);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) add_column(j, c + j);
  }
#pragma GCC unroll 3
  for (int j = 0; j < 3; ++j) {
    if (c + j < product.cols) add_column(j, c + j);
  }
  typename V::Floats f[T];
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) f[t] = V::add(V::add(sum[0][t], sum[1][t]), V::add(sum[2][t], sum[3][t]));
  store_results<V, T>(product, panel, token, T, f);
}

template <class V, class Q>
void multiply_float(const Product& product, int64_t begin, int64_t end, uint8_t*) {
  constexpr int kWidth = V::float_width;
  for (int64_t panel = begin; panel < end; ++panel) {
    int64_t t = product.first_token;
    for (; t + kWidth <= product.end_token; t += kWidth) multiply_float_tile<V, Q, kWidth>(product, panel, t);
    if constexpr (kWidth > 2) {
      for (; t + 2 <= product.end_token; t += 2) multiply_float_tile<V, Q, 2>(product, panel, t);
    }
    for (; t < product.end_token; ++t) multiply_float_tile<V, Q, 1>(product, panel, t);
  }
}

}  // namespace
}  // namespace shale

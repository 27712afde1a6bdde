// Normalisations of rows, and the sum of two arrays.
//
// Layout: x, out, delta, residual (rows, dim), weight, bias (dim), all contiguous, no alignment needed; weight and bias
// may be null (1 and 0). Per element: rms_norm reads 8 and writes 4 bytes in two passes over a row that stays in the L1
// cache, 4 operations; layer_norm has a third pass. Rounding: float32; the order of every sum is sum_row's and depends
// on dim only.
#pragma once

#include <cstdint>

#include "rows.h"

namespace shale {

// out = x / sqrt(mean(x^2) + eps) * weight
template <class V>
void rms_norm_row(const float* x, const float* weight, float eps, float* out, int64_t dim) {
  const float squares = sum_row<V>(dim, [x](auto at, V sum) { return V::fma(at(x), at(x), sum); });
  const V scale = V::set(1.0f / __builtin_sqrtf(squares / static_cast<float>(dim) + eps));
  if (weight == nullptr) return map_row<V>(out, dim, [=](auto at) { return at(x) * scale; });
  map_row<V>(out, dim, [=](auto at) { return at(x) * scale * at(weight); });
}

template <class V>
void rms_norm(const float* x, const float* weight, float eps, float* out, int64_t rows, int64_t dim) {
  for (int64_t row = 0; row < rows; ++row) rms_norm_row<V>(x + row * dim, weight, eps, out + row * dim, dim);
}

template <class V>
void add(float* x, const float* delta, int64_t n) {
  map_row<V>(x, n, [=](auto at) { return at(x) + at(delta); });
}

// residual += delta; out = rms_norm(residual)
template <class V>
void add_rms_norm(float* residual, const float* delta, const float* weight, float eps, float* out, int64_t rows,
                  int64_t dim) {
  for (int64_t row = 0; row < rows; ++row) {
    add<V>(residual + row * dim, delta + row * dim, dim);
    rms_norm_row<V>(residual + row * dim, weight, eps, out + row * dim, dim);
  }
}

// out = (x - mean(x)) / sqrt(mean((x - mean)^2) + eps) * weight + bias
template <class V>
void layer_norm_row(const float* x, const float* weight, const float* bias, float eps, float* out, int64_t dim) {
  const float count = static_cast<float>(dim);
  const float mean_value = sum_row<V>(dim, [x](auto at, V sum) { return sum + at(x); }) / count;
  const V mean = V::set(mean_value);
  map_row<V>(out, dim, [=](auto at) { return at(x) - mean; });
  const float squares = sum_row<V>(dim, [out](auto at, V sum) { return V::fma(at(out), at(out), sum); });
  const V scale = V::set(1.0f / __builtin_sqrtf(squares / count + eps));
  if (weight == nullptr && bias == nullptr) return map_row<V>(out, dim, [=](auto at) { return at(out) * scale; });
  map_row<V>(out, dim, [=](auto at) {
    const V scaled = weight == nullptr ? at(out) * scale : at(out) * scale * at(weight);
    return bias == nullptr ? scaled : scaled + at(bias);
  });
}

template <class V>
void layer_norm(const float* x, const float* weight, const float* bias, float eps, float* out, int64_t rows,
                int64_t dim) {
  for (int64_t row = 0; row < rows; ++row) layer_norm_row<V>(x + row * dim, weight, bias, eps, out + row * dim, dim);
}

}  // namespace shale

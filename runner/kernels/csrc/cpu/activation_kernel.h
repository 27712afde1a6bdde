// Activations of feed-forward layers, element by element: 12 bytes and about 25 operations an element (gelu 8 bytes).
//
// No alignment needed; out may be gate or x itself. Rounding: as written, in float32, with vector_math.h's functions.
#pragma once

#include <cstdint>

#include "rows.h"
#include "vector_math.h"

namespace shale {

// out = silu(gate) * up, silu(x) = x / (1 + e^-x)
template <class V>
void swiglu(const float* gate, const float* up, float* out, int64_t n) {
  map_row<V>(out, n, [=](auto at) {
    const V x = at(gate);
    return x * sigmoid(x) * at(up);
  });
}

// out = gelu(gate) * up with the tanh approximation, 0.5 x (1 + tanh(u)) = x sigmoid(2u), u = sqrt(2 / pi) (x +
// 0.044715 x^3)
template <class V>
void geglu(const float* gate, const float* up, float* out, int64_t n) {
  constexpr float kLinear = 1.59576912f, kCubic = 0.0713548163f;  // 2 sqrt(2 / pi), and that times 0.044715
  map_row<V>(out, n, [=](auto at) {
    const V x = at(gate);
    return x * sigmoid(x * V::fma(x * x, V::set(kCubic), V::set(kLinear))) * at(up);
  });
}

// out = x Phi(x), the exact form 0.5 x (1 + erf(x / sqrt 2))
template <class V>
void gelu(const float* x, float* out, int64_t n) {
  map_row<V>(out, n, [=](auto at) { return at(x) * normal_cdf(at(x)); });
}

}  // namespace shale

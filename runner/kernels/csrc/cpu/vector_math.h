// exp, sigmoid, tanh and the normal distribution over F32x16, each with one order of operations on every instruction
// set. Coefficients are minimax fits (weighted least squares, Lawson's iteration) made for these forms; the errors
// stated were measured against double precision over the whole range, with a fused multiply-add.
#pragma once

namespace shale {

// c[0] + x * (c[1] + x * (...)), by Horner's rule.
template <class V, int N>
inline V polynomial(V x, const float (&c)[N]) {
  V sum = V::set(c[N - 1]);
  for (int i = N - 2; i >= 0; --i) sum = V::fma(sum, x, V::set(c[i]));
  return sum;
}

// e^x for x <= 0: 1 ulp. 0 below -87, where the results would soon not be normal numbers; NaN stays NaN.
template <class V>
inline V exp_nonpositive(V x) {
  constexpr float kTail[] = {0.49999994f, 0.16666520f, 0.041668393f, 0.0083687808f, 0.0013814467f};
  constexpr float kLowest = -87.0f, kLog2E = 1.44269504f;
  constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;  // n * high is exact: it has 9 bits
  const V n = V::round(x * V::set(kLog2E));
  V r = V::fma(n, V::set(-kLn2High), x);
  r = V::fma(n, V::set(-kLn2Low), r);
  const V e = V::fma(r * r, polynomial(r, kTail), r) + V::set(1.0f);
  return V::select(V::less(x, V::set(kLowest)), V::zero(), V::scale2(e, n));
}

// 1 / (1 + e^-x): 3 ulp; 0 below -87.
template <class V>
inline V sigmoid(V x) {
  const V e = exp_nonpositive(V::zero() - V::abs(x));
  const V high = V::set(1.0f) / (V::set(1.0f) + e);
  return V::select(V::less(x, V::zero()), e * high, high);
}

template <class V>
inline V tanh(V x) {
  constexpr float kSmall[] = {-0.33333281f, 0.13331418f, -0.053737606f, 0.020631891f, -0.0056966236f};
  const V magnitude = V::abs(x), square = x * x;
  const V small = V::fma(magnitude * square, polynomial(square, kSmall), magnitude);
  const V e = exp_nonpositive(magnitude * V::set(-2.0f));
  const V large = (V::set(1.0f) - e) / (V::set(1.0f) + e);
  return V::with_sign(V::select(V::less(magnitude, V::set(0.625f)), small, large), x);
}

// Phi(x), the standard normal distribution function; erf(x) = 2 Phi(x sqrt 2) - 1. Absolute error below 1.5e-7.
// Phi(-t) = e^(-t^2 / 2) G(t), and G is smooth in u = 1 / (1 + 0.35 t).
template <class V>
inline V normal_cdf(V x) {
  constexpr float kG[] = {0.13962166f, 0.13985756f,  0.11986314f, 0.10539192f,  -0.022842813f,
                          0.15879557f, -0.25539002f, 0.14381789f, -0.029114896f};
  const V t = V::abs(x);
  const V u = V::set(1.0f) / V::fma(t, V::set(0.35f), V::set(1.0f));
  const V tail = exp_nonpositive(t * t * V::set(-0.5f)) * (u * polynomial(u, kG));
  return V::select(V::less(x, V::zero()), tail, V::set(1.0f) - tail);
}

}  // namespace shale

// Rotary position embedding (Su et al., 2021), in place.
//
// Layout: x (tokens, heads, dim), table (tokens, n_rot) with n_rot / 2 cosines, then n_rot / 2 sines of each token; the
// first n_rot (even) values of a head turn. neox: value i with value i + n_rot / 2; otherwise 2i with 2i + 1.
// Per value 8 bytes and 3 operations. Rounding, both forms: first = fma(-second, sin, first * cos),
// second = fma(first, sin, second * cos).
#pragma once

#include <cstdint>

namespace shale {

template <class V, class Load, class Store>
inline void rotate_halves(float* first, float* second, V cosine, V sine, Load load, Store store) {
  const V a = load(first), b = load(second);
  store(V::fma(V::zero() - b, sine, a * cosine), first);
  store(V::fma(a, sine, b * cosine), second);
}

template <class V>
void rope_halves(float* x, const float* cosines, const float* sines, int64_t heads, int64_t dim, int64_t half) {
  int64_t i = 0;
  const auto load = [](const float* p) { return V::load(p); };
  const auto store = [](V v, float* p) { v.store(p); };
  for (; i + 16 <= half; i += 16) {
    const V cosine = V::load(cosines + i), sine = V::load(sines + i);
    for (int64_t h = 0; h < heads; ++h) {
      rotate_halves<V>(x + h * dim + i, x + h * dim + half + i, cosine, sine, load, store);
    }
  }
  if (i == half) return;
  const int rest = static_cast<int>(half - i);
  const auto load_rest = [rest](const float* p) { return V::load_first(p, rest); };
  const auto store_rest = [rest](V v, float* p) { v.store_first(p, rest); };
  const V cosine = load_rest(cosines + i), sine = load_rest(sines + i);
  for (int64_t h = 0; h < heads; ++h) {
    rotate_halves<V>(x + h * dim + i, x + h * dim + half + i, cosine, sine, load_rest, store_rest);
  }
}

template <class V>
void rope_pairs(float* x, const float* cosines, const float* sines, int64_t heads, int64_t dim, int64_t half) {
  for (int64_t i = 0; i < 2 * half; i += 16) {
    float cosine_of[16] = {}, sine_of[16] = {};  // of each lane; the sine is negative for the first of a pair
    const int count = static_cast<int>(2 * half - i < 16 ? 2 * half - i : 16);
    for (int lane = 0; lane < count; ++lane) {
      cosine_of[lane] = cosines[(i + lane) / 2];
      sine_of[lane] = lane % 2 == 0 ? -sines[(i + lane) / 2] : sines[(i + lane) / 2];
    }
    const V cosine = V::load(cosine_of), sine = V::load(sine_of);
    for (int64_t h = 0; h < heads; ++h) {
      float* at = x + h * dim + i;
      const V values = count == 16 ? V::load(at) : V::load_first(at, count);
      const V turned = V::fma(V::swap_pairs(values), sine, values * cosine);
      count == 16 ? turned.store(at) : turned.store_first(at, count);
    }
  }
}

template <class V>
void rope(float* x, const float* table, bool neox, int64_t tokens, int64_t heads, int64_t dim, int64_t n_rot) {
  const int64_t half = n_rot / 2;
  const auto turn = neox ? rope_halves<V> : rope_pairs<V>;
  for (int64_t t = 0; t < tokens; ++t) {
    turn(x + t * heads * dim, table + t * n_rot, table + t * n_rot + half, heads, dim, half);
  }
}

}  // namespace shale

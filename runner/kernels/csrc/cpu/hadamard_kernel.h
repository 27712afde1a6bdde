// Walsh-Hadamard transform of blocks of `size` (a power of two, at least 16) floats, in place, times size^-1/2.
//
// Layout: blocks one after the other, no alignment needed. Operations: 16 fused multiply-adds a vector of 16 for the
// four strides inside it, log2(size / 16) additions for the others. Rounding: the 16 values of a vector are added in
// ascending order, each with its sign, times the factor; then butterflies of strides 16, 32, ...
#pragma once

#include <cmath>
#include <cstdint>

namespace shale {

// Lane i of row j is the sign of value j in sum i: -1 where i and j share an odd number of bits.
struct HadamardSigns {
  alignas(64) float rows[16][16];
  constexpr HadamardSigns() : rows{} {
    for (int j = 0; j < 16; ++j) {
      for (int i = 0; i < 16; ++i) {
        int odd = 0;
        for (int both = i & j; both != 0; both &= both - 1) odd ^= 1;
        rows[j][i] = odd != 0 ? -1.0f : 1.0f;
      }
    }
  }
};
inline constexpr HadamardSigns kHadamardSigns;

template <class V>
void hadamard(float* x, int64_t size, int64_t num_blocks) {
  const V factor = V::set(1.0f / std::sqrt(static_cast<float>(size)));
  for (int64_t block = 0; block < num_blocks; ++block, x += size) {
    for (int64_t i = 0; i < size; i += 16) {
      V sum = V::set(x[i]);
      for (int j = 1; j < 16; ++j) sum = V::fma(V::set(x[i + j]), V::load(kHadamardSigns.rows[j]), sum);
      (sum * factor).store(x + i);
    }
    for (int64_t stride = 16; stride < size; stride *= 2) {
      for (int64_t i = 0; i < size; i += 16) {
        if ((i & stride) != 0) continue;
        const V a = V::load(x + i), b = V::load(x + i + stride);
        (a + b).store(x + i);
        (a - b).store(x + i + stride);
      }
    }
  }
}

}  // namespace shale

// Activations of a tile of tokens to int8, by blocks of 32 columns; see Tile in kernel_table.h.
//
// Computes, for each token and block: scale = m / 127 and q = rint(x * (127 / m)) with m = max|x|, ties to even; the sums of
// q are exact integers. A block whose m is NaN or infinite gets scale = NaN and q = 0, so that its results are NaN; one
// whose m is so small that 127 / m overflows is zero. Every operation is correctly rounded: all instruction sets agree.
// Bytes: 4 read and about 1.9 written for each value.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "kernel_table.h"

namespace shale {
namespace {

struct QuantizedBlock {
  alignas(16) int8_t q[kBlock];
  float scale;
  int32_t half_sum[2];
};

template <class V>
inline QuantizedBlock quantize_block(const float* x) {
  constexpr uint32_t kInfinity = 0x7f800000;
  constexpr float kSmallest = 0x1p-120f;  // 127 / kSmallest is finite
  const typename V::Floats low = V::load(x), high = V::load(x + 16);
  const uint32_t low_max = V::max_magnitude(low), high_max = V::max_magnitude(high);
  const uint32_t bits = low_max > high_max ? low_max : high_max;
  const float max = std::bit_cast<float>(bits);
  QuantizedBlock block;
  if (bits >= kInfinity || max < kSmallest) {
    block = {};
    block.scale = bits >= kInfinity ? std::bit_cast<float>(kInfinity | 1u << 22) : 0.0f;
    return block;
  }
  const float inverse = 127.0f / max;
  block.scale = max / 127.0f;
  block.half_sum[0] = V::quantize16(low, inverse, block.q);
  block.half_sum[1] = V::quantize16(high, inverse, block.q + 16);
  return block;
}

inline void store_block(const QuantizedBlock& block, int64_t b, int t, const Tile& tile) {
  const int64_t at = b * tile.width + t, first = 2 * b * tile.width + t, second = first + tile.width;
  for (int g = 0; g < 8; ++g) std::memcpy(tile.q + (8 * b + g) * tile.width + t, block.q + 4 * g, 4);
  const int32_t sum = block.half_sum[0] + block.half_sum[1];
  tile.scale[at] = block.scale;
  tile.sum[at] = block.scale * static_cast<float>(sum);
  tile.half_sum[first] = block.scale * static_cast<float>(block.half_sum[0]);
  tile.half_sum[second] = block.scale * static_cast<float>(block.half_sum[1]);
  tile.count[at] = -sum;
  tile.half_count[first] = -block.half_sum[0];
  tile.half_count[second] = -block.half_sum[1];
}

// x: (num_tokens, cols), the row of the tile's first token; cols a multiple of 32.
template <class V>
void quantize_tile(const float* x, int64_t cols, const Tile& tile) {
  const int64_t num_padded = num_padded_blocks(cols);
  const QuantizedBlock zero{};
  for (int64_t b = 0; b < num_padded; ++b) {
    for (int t = 0; t < tile.width; ++t) {
      const bool is_real = b < tile.num_blocks && t < tile.num_tokens;
      store_block(is_real ? quantize_block<V>(x + t * cols + b * kBlock) : zero, b, t, tile);
    }
  }
}

}  // namespace
}  // namespace shale

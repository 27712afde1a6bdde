// Activations of a tile of tokens to int8, by blocks of 32 columns; see Tile in kernel_table.h.
//
// Computes, for each token and block: scale = m / 127 and q = rint(x * (127 / m)) with m = max|x|, ties to even; the
// sums of q are exact integers. A block whose m is NaN or infinite gets scale = NaN and q = 0, so that its results are
// NaN; one whose m is so small that 127 / m overflows is zero. Every operation is correctly rounded: all instruction
// sets agree. Bytes: 4 read and about 1.9 written for each value.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "kernel_table.h"

namespace shale {
namespace {

// Stores what the kernels need besides q of block b of the tile's t-th token, of whose halves the sums of q are given.
inline void store_sums(float scale, const int32_t (&half)[2], int64_t b, int t, const Tile& tile) {
  const int64_t width = tile.width, at = b * width + t, first = 2 * b * width + t, second = first + width;
  const int32_t sum = half[0] + half[1];
  tile.scale[at] = scale;
  tile.sum[at] = scale * static_cast<float>(sum);
  tile.half_sum[first] = scale * static_cast<float>(half[0]);
  tile.half_sum[second] = scale * static_cast<float>(half[1]);
  tile.count[at] = -sum;
  tile.half_count[first] = -half[0];
  tile.half_count[second] = -half[1];
}

inline int8_t* codes(int64_t b, int t, const Tile& tile) {
  return reinterpret_cast<int8_t*>(tile.q + 8 * (b * tile.width + t));
}

// A block without a number other than zero.
inline void store_zeros(float scale, int64_t b, int t, const Tile& tile) {
  std::memset(codes(b, t, tile), 0, kBlock);
  store_sums(scale, {0, 0}, b, t, tile);
}

template <class V>
inline void quantize_block(const float* x, int64_t b, int t, const Tile& tile) {
  constexpr uint32_t kInfinity = 0x7f800000, kQuietNan = 0x7fc00000;
  constexpr float kSmallest = 0x1p-120f;  // 127 / kSmallest is finite
  const typename V::Floats low = V::load(x), high = V::load(x + 16);
  const uint32_t bits = V::max_magnitude(low, high);
  const float max = std::bit_cast<float>(bits);
  if (bits >= kInfinity) return store_zeros(std::bit_cast<float>(kQuietNan), b, t, tile);
  if (max < kSmallest) return store_zeros(0.0f, b, t, tile);
  int32_t half_sums[2];
  V::quantize(low, high, 127.0f / max, codes(b, t, tile), half_sums);
  store_sums(max / 127.0f, half_sums, b, t, tile);
}

// x: (num_tokens, cols), the row of the tile's first token; cols a multiple of 32.
template <class V>
void quantize_tile(const float* x, int64_t cols, const Tile& in_memory) {
  const Tile tile = in_memory;  // a copy: stores through its pointers cannot change it
  const int64_t num_padded = num_padded_blocks(cols);
  for (int64_t b = 0; b < tile.num_blocks; ++b) {
    for (int t = 0; t < tile.num_tokens; ++t) quantize_block<V>(x + t * cols + b * kBlock, b, t, tile);
    for (int t = tile.num_tokens; t < tile.width; ++t) store_zeros(0.0f, b, t, tile);
  }
  for (int64_t b = tile.num_blocks; b < num_padded; ++b) {
    for (int t = 0; t < tile.width; ++t) store_zeros(0.0f, b, t, tile);
  }
}

}  // namespace
}  // namespace shale

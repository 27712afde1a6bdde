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

struct QuantizedBlock {
  alignas(32) int8_t q[kBlock] = {};
  float scale = 0.0f;
  int32_t half_sum[2] = {};
};

template <class V>
inline QuantizedBlock quantize_block(const float* x) {
  constexpr uint32_t kInfinity = 0x7f800000, kQuietNan = 0x7fc00000;
  constexpr float kSmallest = 0x1p-120f;  // 127 / kSmallest is finite
  const typename V::Floats low = V::load(x), high = V::load(x + 16);
  const uint32_t bits = V::max_magnitude(low, high);
  const float max = std::bit_cast<float>(bits);
  QuantizedBlock block;
  if (bits >= kInfinity) {
    block.scale = std::bit_cast<float>(kQuietNan);
  } else if (max >= kSmallest) {
    block.scale = max / 127.0f;
    V::quantize(low, high, 127.0f / max, block.q, block.half_sum);
  }
  return block;
}

// How a block's int8 of a tile lie in Tile::q.
enum class Layout { words, rows };  // (8 words, width): a word of all tokens; (width, 8): 32 columns of a token

// Block b of the tile's t-th token.
template <Layout kLayout>
inline void store_block(const QuantizedBlock& block, int64_t b, int t, const Tile& tile) {
  const int64_t width = tile.width, at = b * width + t, first = 2 * b * width + t, second = first + width;
  if constexpr (kLayout == Layout::rows) {
    std::memcpy(tile.q + 8 * at, block.q, kBlock);
  } else {
    int32_t* words = tile.q + 8 * b * width + t;
#pragma GCC unroll 8
    for (int g = 0; g < 8; ++g) std::memcpy(words + g * width, block.q + 4 * g, 4);
  }
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
template <class V, Layout kLayout>
void quantize_tile(const float* x, int64_t cols, const Tile& in_memory) {
  const Tile tile = in_memory;  // a copy: stores through its pointers cannot change it
  const int64_t num_padded = num_padded_blocks(cols);
  for (int64_t b = 0; b < tile.num_blocks; ++b) {
    for (int t = 0; t < tile.num_tokens; ++t) {
      store_block<kLayout>(quantize_block<V>(x + t * cols + b * kBlock), b, t, tile);
    }
    for (int t = tile.num_tokens; t < tile.width; ++t) store_block<kLayout>({}, b, t, tile);
  }
  for (int64_t b = tile.num_blocks; b < num_padded; ++b) {
    for (int t = 0; t < tile.width; ++t) store_block<kLayout>({}, b, t, tile);
  }
}

}  // namespace
}  // namespace shale

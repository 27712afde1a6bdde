// The direct form: few tokens, weights unpacked in registers. One decode step is this kernel with one token.
//
// Computes out[t][r] = sum over blocks of x_scale * w_scale * (exact integer dot of 32) - x_sum * w_min, for 16 rows
// and T tokens at a time. Reads each byte of the weights once, in order; activations stay in the first-level cache. 8 *
// T dot instructions (a Bytes each) for a block of 32 columns x 16 rows. Rounding order (the panel form keeps the
// same): blocks ascending, and in a block, for each of its scales,
//   f = fma(float(dot), w_scale * x_scale, f), then f = fma(-w_min, x_sum, f); bias is added last.
#pragma once

#include <cstdint>

#include "kernel_table.h"
#include "unpack.h"

namespace shale {
namespace {

template <class V, class Q>
inline constexpr bool uses_signed_dot =
    Q::wide && V::signed_wide;  // its dot takes code - 128, so nothing is to correct

template <class V, class Q>
inline constexpr int correction_shift = uses_signed_dot<V, Q> ? kNoOffset : Q::offset_log2;

// Pointers to the same block in every array of a tile of width T.
template <int T>
struct TileBlock {
  const int32_t* q;
  const float *scale, *sum, *half_sum;
  const int32_t *count, *half_count;

  TileBlock(const Tile& tile, int64_t b)
      : q(tile.q + b * 8 * T),
        scale(tile.scale + b * T),
        sum(tile.sum + b * T),
        half_sum(tile.half_sum + b * 2 * T),
        count(tile.count + b * T),
        half_count(tile.half_count + b * 2 * T) {}
};

// The unit's b-th block, unpacked to w.
template <class V, class Q, int T>
inline void add_block(const typename V::Bytes (&w)[8], const UnitScales<V, Q>& scales, int b, const TileBlock<T>& x,
                      typename V::Floats (&f)[T]) {
  constexpr int kGroups = 8 / Q::scales;
#pragma GCC unroll 2
  for (int s = 0; s < Q::scales; ++s) {
    const typename V::Floats scale = scales.scale(b * Q::scales + s);
    typename V::Floats minimum;
    if constexpr (Q::has_minimum) minimum = scales.minimum(b * Q::scales + s);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      const int32_t* count = (Q::scales == 2 ? x.half_count + s * T : x.count) + t;
      typename V::Ints dot = V::zero_ints();
      if constexpr (correction_shift<V, Q> != kNoOffset) dot = V::broadcast_shifted(count, correction_shift<V, Q>);
#pragma GCC unroll 8
      for (int g = s * kGroups; g < (s + 1) * kGroups; ++g) {
        dot = V::template dot<Q::wide>(dot, w[g], V::broadcast_word(x.q + 8 * t + g));
      }
      f[t] = V::add_product(V::to_float(dot), V::mul(scale, V::broadcast(x.scale[t])), f[t]);
      if constexpr (Q::has_minimum) {
        const float x_sum = (Q::scales == 2 ? x.half_sum + s * T : x.sum)[t];
        f[t] = V::sub_product(minimum, V::broadcast(x_sum), f[t]);
      }
    }
  }
}

template <class V, class Q, int T>
inline void multiply_panel_directly(const uint8_t* panel, int64_t num_units, int64_t prefetch_bytes, const Tile& tile,
                                    typename V::Floats (&f)[T]) {
  constexpr int kPlaneBytes = plane_bytes(Q::planes);
  for (int64_t u = 0; u < num_units; ++u, panel += Q::unit_bytes) {
    prefetch<Q::header>(panel + prefetch_bytes);
    const UnitScales<V, Q> scales(panel);
#pragma GCC unroll 1
    for (int b = 0; b < Q::unit_blocks; ++b) {
      const uint8_t* planes = panel + Q::header + b * kPlaneBytes;
      prefetch<kPlaneBytes>(planes + prefetch_bytes);
      typename V::Bytes w[8];
      read_block<V, Q>(planes, w);
      add_block<V, Q, T>(w, scales, b, TileBlock<T>(tile, u * Q::unit_blocks + b), f);
    }
  }
}

inline int64_t num_rows_of_panel(const Product& product, int64_t panel) {
  const int64_t left = product.rows - panel * kPanelRows;
  return left < kPanelRows ? left : kPanelRows;
}

template <class V, int T>
inline void store_results(const Product& product, int64_t panel, int64_t first_token, int num_tokens,
                          const typename V::Floats (&f)[T]) {
  const int64_t row = panel * kPanelRows, num_rows = num_rows_of_panel(product, panel);
  const typename V::Floats bias = product.bias ? V::load_rows(product.bias + row, num_rows) : V::zero();
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) {
    if (t >= num_tokens) break;
    float* out = product.out + (first_token + t) * product.rows + row;
    V::store_rows(out, product.bias ? V::add(f[t], bias) : f[t], num_rows);
  }
}

// Not inlined: among its siblings GCC 12 runs out of registers (Q6_K, 8 tokens: 70 cycles a block instead of 59).
template <class V, class Q, int T>
[[gnu::noinline]] void multiply_tile_directly(const Product& product, const Tile& tile, int64_t panel) {
  typename V::Floats f[T];
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) f[t] = V::zero();
  const int64_t num_units = (product.cols + Q::unit_columns - 1) / Q::unit_columns;
  const uint8_t* weights = product.panels + panel * product.panel_bytes;
  multiply_panel_directly<V, Q, T>(weights, num_units, product.prefetch_bytes, tile, f);
  store_results<V, T>(product, panel, tile.first_token, tile.num_tokens, f);
}

template <class V, class Q>
void multiply_direct(const Product& product, int64_t begin, int64_t end, uint8_t*) {
  for (int64_t panel = begin; panel < end; ++panel) {
    for (int i = 0; i < product.num_tiles; ++i) {
      const Tile& tile = product.tiles[i];
      switch (tile.width) {  // kDirectWidths
        case 1:
          multiply_tile_directly<V, Q, 1>(product, tile, panel);
          break;
        case 2:
          multiply_tile_directly<V, Q, 2>(product, tile, panel);
          break;
        case 3:
          multiply_tile_directly<V, Q, 3>(product, tile, panel);
          break;
        case 4:
          multiply_tile_directly<V, Q, 4>(product, tile, panel);
          break;
        case 6:
          multiply_tile_directly<V, Q, 6>(product, tile, panel);
          break;
        case 8:
          multiply_tile_directly<V, Q, 8>(product, tile, panel);
          break;
      }
    }
  }
}

}  // namespace
}  // namespace shale

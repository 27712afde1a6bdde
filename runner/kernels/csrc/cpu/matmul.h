// The panel form: many tokens. Panels are unpacked once, then every tile of tokens is multiplied with the unpacked
// codes.
//
// Computes the same as matvec.h, in the same order: a partial sum that leaves the registers between two passes over the
// columns is stored as the float it is. Scratch of a pass: codes (panel, block, 8 lines), scales and minima
// (panel, block, scale, 16 rows). The microkernel is one for all types that have as many scales to a block and minima
// or none; R panels x T tokens of integer and of float sums stay in registers through a pass. For a block of 32
// columns: 8 * R * T dot instructions, 8 * R lines and 8 * T words read from the caches.
#pragma once

#include <cstdint>

#include "kernel_table.h"
#include "matvec.h"
#include "unpack.h"

namespace shale {
namespace {

// What a microkernel must know of a type. The offset's shift is a run-time number: it is the same instruction.
template <int kScales, bool kHasMinimum, bool kSignedDot>
struct Form {
  static constexpr int scales = kScales;
  static constexpr bool has_minimum = kHasMinimum, signed_dot = kSignedDot;
};

template <class V, class Q>
using FormOf = Form<Q::scales, Q::has_minimum, uses_signed_dot<V, Q>>;

// Unpacked panels of a range of columns, in scratch.
template <int kScales>
struct Pass {
  uint8_t* codes;
  float *scale, *minimum;
  int64_t first_block, num_blocks;
  bool is_first, is_last;  // of the passes over the columns

  static constexpr int64_t kMaxBlocks = kColumnsPerPass / kBlock;
  static constexpr int64_t kCodeBytes = 8 * kLine, kFloats = kScales * kPanelRows;  // of a block

  explicit Pass(uint8_t* scratch)
      : codes(scratch),
        scale(reinterpret_cast<float*>(scratch + kPanelsPerPass * kMaxBlocks * kCodeBytes)),
        minimum(scale + kPanelsPerPass * kMaxBlocks * kFloats) {}
  uint8_t* panel_codes(int i) const { return codes + i * kMaxBlocks * kCodeBytes; }
  float* panel_scale(int i) const { return scale + i * kMaxBlocks * kFloats; }
  float* panel_minimum(int i) const { return minimum + i * kMaxBlocks * kFloats; }
};

// kSigned: codes without their offset, as int8.
template <class V, class Q, bool kSigned = false>
void unpack_panel(const uint8_t* panel, int64_t prefetch_bytes, int i, const Pass<Q::scales>& pass) {
  constexpr int kUnitScales = Q::unit_blocks * Q::scales, kPlaneBytes = plane_bytes(Q::planes);
  uint8_t* codes = pass.panel_codes(i);
  float *scale = pass.panel_scale(i), *minimum = pass.panel_minimum(i);
  panel += pass.first_block / Q::unit_blocks * Q::unit_bytes;
  for (int64_t b = 0; b < pass.num_blocks; b += Q::unit_blocks, panel += Q::unit_bytes) {
    prefetch<Q::header>(panel + prefetch_bytes);
    const UnitScales<V, Q> scales(panel);
    for (int s = 0; s < kUnitScales; ++s, scale += kPanelRows, minimum += kPanelRows) {
      V::store(scale, scales.scale(s));
      if constexpr (Q::has_minimum) V::store(minimum, scales.minimum(s));
    }
#pragma GCC unroll 1
    for (int j = 0; j < Q::unit_blocks; ++j, codes += 8 * kLine) {
      const uint8_t* planes = panel + Q::header + j * kPlaneBytes;
      prefetch<kPlaneBytes>(planes + prefetch_bytes);
      typename V::Bytes w[8];
      read_block<V, Q>(planes, w);
      if constexpr (kSigned && Q::offset_log2 != kNoOffset) {
#pragma GCC unroll 8
        for (int g = 0; g < 8; ++g) w[g] = V::template without_offset<Q::offset_log2>(w[g]);
      }
#pragma GCC unroll 8
      for (int g = 0; g < 8; ++g) V::store_bytes(codes + g * kLine, w[g]);
    }
  }
}

template <class V, class F, int R, int T>
inline void multiply_block(const Pass<F::scales>& pass, int i, int64_t b, const TileBlock<T>& x, int offset_shift,
                           typename V::Floats (&f)[R][T]) {
  constexpr int kGroups = 8 / F::scales;
#pragma GCC unroll 2
  for (int s = 0; s < F::scales; ++s) {
    typename V::Ints dot[R][T];
    const int32_t* count = F::scales == 2 ? x.half_count + s * T : x.count;
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      const typename V::Ints start =
          F::has_minimum || F::signed_dot ? V::zero_ints() : V::broadcast_shifted(count + t, offset_shift);
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) dot[r][t] = start;
    }
#pragma GCC unroll 8
    for (int g = s * kGroups; g < (s + 1) * kGroups; ++g) {
      typename V::Bytes w[R];
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) w[r] = V::load_bytes(pass.panel_codes(i + r) + (b * 8 + g) * kLine);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        const typename V::Word word = V::broadcast_word(x.q + 8 * t + g);
#pragma GCC unroll 2
        for (int r = 0; r < R; ++r) dot[r][t] = V::template dot<F::signed_dot>(dot[r][t], w[r], word);
      }
    }
    const int64_t at = (b * F::scales + s) * kPanelRows;
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r) {
      const typename V::Floats scale = V::load(pass.panel_scale(i + r) + at);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        const typename V::Floats both = V::mul(scale, V::broadcast(x.scale[t]));
        f[r][t] = V::add_product(V::to_float(dot[r][t]), both, f[r][t]);
      }
      if constexpr (F::has_minimum) {
        const float* sum = F::scales == 2 ? x.half_sum + s * T : x.sum;
        const typename V::Floats minimum = V::load(pass.panel_minimum(i + r) + at);
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) f[r][t] = V::sub_product(minimum, V::broadcast(sum[t]), f[r][t]);
      }
    }
  }
}

// The sums of R panels from the matrix's `panel`-th on and of a tile, before and after a pass.
template <class V, int R, int T>
inline void load_sums(const Product& product, bool is_first, int64_t panel, const Tile& tile,
                      typename V::Floats (&f)[R][T]) {
#pragma GCC unroll 2
  for (int r = 0; r < R; ++r) {
    const float* out = product.out + tile.first_token * product.rows + (panel + r) * kPanelRows;
    const int64_t num_rows = num_rows_of_panel(product, panel + r);
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) {
      f[r][t] = is_first || t >= tile.num_tokens ? V::zero() : V::load_rows(out + t * product.rows, num_rows);
    }
  }
}

template <class V, int R, int T>
inline void store_sums(const Product& product, bool is_last, int64_t panel, const Tile& tile,
                       const typename V::Floats (&f)[R][T]) {
  Product stored = product;
  if (!is_last) stored.bias = nullptr;
#pragma GCC unroll 2
  for (int r = 0; r < R; ++r) store_results<V, T>(stored, panel + r, tile.first_token, tile.num_tokens, f[r]);
}

// R panels from the pass's i-th on (the matrix's `panel`-th) times one tile.
template <class V, class F, int R, int T>
void multiply_tile(const Product& product, const Pass<F::scales>& pass, int i, int64_t panel, const Tile& tile,
                   int offset_shift) {
  typename V::Floats f[R][T];
  load_sums<V, R, T>(product, pass.is_first, panel, tile, f);
  for (int64_t b = 0; b < pass.num_blocks; ++b) {
    multiply_block<V, F, R, T>(pass, i, b, TileBlock<T>(tile, pass.first_block + b), offset_shift, f);
  }
  store_sums<V, R, T>(product, pass.is_last, panel, tile, f);
}

template <class V, class F, int R>
void multiply_tiles(const Product& product, const Pass<F::scales>& pass, int i, int64_t panel, const Tile& tile,
                    int offset_shift) {
  switch (tile.width) {  // kPanelWidths
    case 4:
      multiply_tile<V, F, R, 4>(product, pass, i, panel, tile, offset_shift);
      break;
    case 5:
      multiply_tile<V, F, R, 5>(product, pass, i, panel, tile, offset_shift);
      break;
    case 6:
      multiply_tile<V, F, R, 6>(product, pass, i, panel, tile, offset_shift);
      break;
  }
}

template <class V, class F>
void multiply_pass(const Product& product, const Pass<F::scales>& pass, int64_t panel, int num_panels,
                   int offset_shift) {
  constexpr int R = V::rows_per_step;
  for (int k = 0; k < product.num_tiles; ++k) {
    int i = 0;
    for (; i + R <= num_panels; i += R)
      multiply_tiles<V, F, R>(product, pass, i, panel + i, product.tiles[k], offset_shift);
    if constexpr (R > 1) {
      for (; i < num_panels; ++i) multiply_tiles<V, F, 1>(product, pass, i, panel + i, product.tiles[k], offset_shift);
    }
  }
}

// Unpacks the panels [begin, end) pass by pass: unpack(panel, prefetch_bytes, i, pass) for each of them, then
// multiply(pass, panel, num_panels).
template <class Q, class Unpack, class MultiplyPass>
inline void for_each_pass(const Product& product, int64_t begin, int64_t end, uint8_t* scratch, Unpack&& unpack,
                          MultiplyPass&& multiply) {
  constexpr int64_t kBlocksPerPass = kColumnsPerPass / kBlock;
  const int64_t num_units = (product.cols + Q::unit_columns - 1) / Q::unit_columns;
  const int64_t num_blocks = num_units * Q::unit_blocks;
  Pass<Q::scales> pass(scratch);
  for (int64_t panel = begin; panel < end; panel += kPanelsPerPass) {
    const int num_panels = static_cast<int>(end - panel < kPanelsPerPass ? end - panel : kPanelsPerPass);
    for (int64_t b = 0; b < num_blocks; b += kBlocksPerPass) {
      pass.first_block = b;
      pass.num_blocks = num_blocks - b < kBlocksPerPass ? num_blocks - b : kBlocksPerPass;
      pass.is_first = b == 0;
      pass.is_last = b + pass.num_blocks == num_blocks;
      for (int i = 0; i < num_panels; ++i) {
        unpack(product.panels + (panel + i) * product.panel_bytes, product.prefetch_bytes, i, pass);
      }
      multiply(pass, panel, num_panels);
    }
  }
}

template <class V, class Q>
void multiply_unpacked(const Product& product, int64_t begin, int64_t end, uint8_t* scratch) {
  for_each_pass<Q>(product, begin, end, scratch, unpack_panel<V, Q>,
                   [&](const Pass<Q::scales>& pass, int64_t panel, int num_panels) {
                     multiply_pass<V, FormOf<V, Q>>(product, pass, panel, num_panels, correction_shift<V, Q>);
                   });
}

}  // namespace
}  // namespace shale

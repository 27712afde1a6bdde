// The panel form with AMX: the integer dots of a block are one matrix-tile multiplication.
//
// Computes the same as matmul.h, in the same order, to the bit. A tile multiplication takes 16 or 32 columns: T tokens
// of int8 from Tile::q times a panel's lines, which are laid out as the instruction wants them, as int8 without their
// offset, so that nothing is to be corrected. Its T x 16 dots go through the first-level cache to the vector registers,
// which hold R x T float sums through a pass and do what remains: conversion, scale, minimum. For a step, R panels x T
// tokens: R multiplications of T cycles; R * T conversions, multiplications and additions (and minima); 8 * R + T / 2
// lines (half as many for 16 columns) and R * T lines of dots read. Measured on a Sapphire Rapids core: while tiles are
// in use, one of its two units for 512-bit float operations does none, so that these decide the speed; and a tile that
// is stored right after its multiplication costs 24 cycles instead of 14, so that it is stored when its register is
// wanted again. bfloat16 tiles, whose dots need no conversion, were slower for the bytes that they read.
#pragma once

#include <cstdint>

#include "kernel_table.h"
#include "matmul.h"
#include "quant_types.h"

namespace shale {
namespace {

inline constexpr int kAmxWidths[] = {4, 8, 12};  // 2 x 12 sums fill 24 of 32 vector registers
// Registers: two sets, for even and odd steps. GCC knows no tile registers: nothing is
// declared as changed, and its own intrinsics (GCC 12) do not tell it which memory they read.
template <int kSet>
struct TileSet {
  static constexpr int activations = 4 * kSet, weights = activations + 1, dots = activations + 2;
};

template <int kRegister>
inline void load_matrix(const void* p, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(p), "r"(stride), "i"(kRegister) : "memory");
}
template <int kRegister>
inline void store_matrix(void* p, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(p), "r"(stride), "i"(kRegister) : "memory");
}
template <int kRegister>
inline void zero_matrix() {
  asm volatile("tilezero %%tmm%c0" : : "i"(kRegister));
}
// dots += activations x weights
template <int kDots, int kActivations, int kWeights>
inline void add_matrix_product() {
  asm volatile("tdpbssd %%tmm%c0, %%tmm%c1, %%tmm%c2" : : "i"(kWeights), "i"(kActivations), "i"(kDots));
}
inline void release_matrices() { asm volatile("tilerelease"); }

// Operand of LDTILECFG (Intel SDM vol. 2, palette 1).
struct alignas(kLine) MatrixShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  MatrixShapes(int num_tokens, int columns) {
    for (int set = 0; set < 2; ++set) {
      shape(4 * set, num_tokens, columns);
      shape(4 * set + 1, columns / 4, kLine);
      shape(4 * set + 2, num_tokens, kLine);
      shape(4 * set + 3, num_tokens, kLine);
    }
  }
  void shape(int i, int num_rows, int bytes) {
    rows[i] = static_cast<uint8_t>(num_rows);
    row_bytes[i] = static_cast<uint16_t>(bytes);
  }
  void configure() const { asm volatile("ldtilecfg %0" : : "m"(*this)); }
};
static_assert(sizeof(MatrixShapes) == kLine);

template <int R, int T>
struct Dots {
  alignas(kLine) int32_t v[R][T][kPanelRows];
};

// What steps of R panels x T tokens multiply.
template <class F, int R, int T>
struct Steps {
  static constexpr int columns = kBlock / F::scales, lines = columns / 4;
  const uint8_t* codes[R];
  const uint8_t* activations;

  Steps(const Pass<F::scales>& pass, int i, const Tile& tile)
      : activations(reinterpret_cast<const uint8_t*>(tile.q + pass.first_block * 8 * T)) {
    for (int r = 0; r < R; ++r) codes[r] = pass.panel_codes(i + r);
  }

  template <int kSet>
  void multiply(int64_t step) const {
    using Set = TileSet<kSet>;
    const uint8_t* x = activations + step / F::scales * T * kBlock + step % F::scales * columns;
    load_matrix<Set::activations>(x, kBlock);
    zero_matrix<Set::dots>();
    load_matrix<Set::weights>(codes[0] + step * lines * kLine, kLine);
    add_matrix_product<Set::dots, Set::activations, Set::weights>();
    if constexpr (R == 2) {
      zero_matrix<Set::dots + 1>();
      load_matrix<Set::weights>(codes[1] + step * lines * kLine, kLine);
      add_matrix_product<Set::dots + 1, Set::activations, Set::weights>();
    }
  }
  template <int kSet>
  static void store(Dots<R, T>& dots) {
    using Set = TileSet<kSet>;
    store_matrix<Set::dots>(dots.v[0], kLine);
    if constexpr (R == 2) store_matrix<Set::dots + 1>(dots.v[1], kLine);
  }
};

template <class V, class F, int R, int T>
inline void add_dots(const Dots<R, T>& dots, const Pass<F::scales>& pass, int i, int64_t step, const float* x_scale,
                     const float* x_sum, typename V::Floats (&f)[R][T]) {
  typename V::Floats scale[R], minimum[R];
#pragma GCC unroll 2
  for (int r = 0; r < R; ++r) {
    scale[r] = V::load(pass.panel_scale(i + r) + step * kPanelRows);
    if constexpr (F::has_minimum) minimum[r] = V::load(pass.panel_minimum(i + r) + step * kPanelRows);
  }
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) {
    const typename V::Floats both = V::broadcast(x_scale[t]);
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r) {
      const typename V::Floats dot = V::to_float(V::load_ints(dots.v[r][t]));
      f[r][t] = V::add_product(dot, V::mul(scale[r], both), f[r][t]);
    }
    if constexpr (F::has_minimum) {
      const typename V::Floats sum = V::broadcast(x_sum[t]);
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) f[r][t] = V::sub_product(minimum[r], sum, f[r][t]);
    }
  }
}

// R panels from the pass's i-th on (the matrix's `panel`-th) times one tile.
template <class V, class F, int R, int T>
void multiply_matrix_tile(const Product& product, const Pass<F::scales>& pass, int i, int64_t panel, const Tile& tile) {
  constexpr int kRing = 4;  // three are in use
  Dots<R, T> dots[kRing];
  const Steps<F, R, T> steps(pass, i, tile);
  const int64_t num_steps = pass.num_blocks * F::scales;
  const float* x_scale = tile.scale + pass.first_block * T;
  const float* x_sum = F::scales == 2 ? tile.half_sum + pass.first_block * 2 * T : tile.sum + pass.first_block * T;
  typename V::Floats f[R][T];
  load_sums<V, R, T>(product, pass.is_first, panel, tile, f);
  const auto add = [&](int64_t step) __attribute__((always_inline)) {
    add_dots<V, F, R, T>(dots[step % kRing], pass, i, step, x_scale + step / F::scales * T, x_sum + step * T, f);
  };
  steps.template multiply<0>(0);
  steps.template multiply<1>(1);
  for (int64_t step = 0; step < num_steps; step += 2) {  // a unit has an even number of blocks
    steps.template store<0>(dots[step % kRing]);
    if (step + 2 < num_steps) steps.template multiply<0>(step + 2);
    if (step > 0) add(step - 1);
    steps.template store<1>(dots[(step + 1) % kRing]);
    if (step + 2 < num_steps) steps.template multiply<1>(step + 3);
    add(step);
  }
  add(num_steps - 1);
  store_sums<V, R, T>(product, pass.is_last, panel, tile, f);
}

template <class V, class F, int T>
void multiply_matrix_tiles(const Product& product, const Pass<F::scales>& pass, int64_t panel, int num_panels,
                           const Tile& tile) {
  int i = 0;
  for (; i + 2 <= num_panels; i += 2) multiply_matrix_tile<V, F, 2, T>(product, pass, i, panel + i, tile);
  for (; i < num_panels; ++i) multiply_matrix_tile<V, F, 1, T>(product, pass, i, panel + i, tile);
}

template <class V, class F>
void multiply_matrix_pass(const Product& product, const Pass<F::scales>& pass, int64_t panel, int num_panels) {
  int configured = 0;
  for (int k = 0; k < product.num_tiles; ++k) {
    const Tile& tile = product.tiles[k];
    if (tile.width != configured) MatrixShapes(tile.width, kBlock / F::scales).configure();
    configured = tile.width;
    switch (tile.width) {  // kAmxWidths
      case 4:
        multiply_matrix_tiles<V, F, 4>(product, pass, panel, num_panels, tile);
        break;
      case 8:
        multiply_matrix_tiles<V, F, 8>(product, pass, panel, num_panels, tile);
        break;
      case 12:
        multiply_matrix_tiles<V, F, 12>(product, pass, panel, num_panels, tile);
        break;
    }
  }
}

template <class V, class Q>
void multiply_with_tiles(const Product& product, int64_t begin, int64_t end, uint8_t* scratch) {
  for_each_pass<Q>(product, begin, end, scratch, unpack_panel<V, Q, true>,
                   [&](const Pass<Q::scales>& pass, int64_t panel, int num_panels) {
                     multiply_matrix_pass<V, Form<Q::scales, Q::has_minimum, true>>(product, pass, panel, num_panels);
                   });
  release_matrices();  // a thread with tiles in use is slow to switch
}

}  // namespace
}  // namespace shale

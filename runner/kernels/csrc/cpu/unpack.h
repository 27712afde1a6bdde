// From packed units to whole codes and float scales, once for all instruction sets. Layouts: quant_types.h, repack.cpp.
#pragma once

#include <cstdint>

#include "quant_types.h"

namespace shale {
namespace {

// Asks for kBytes, which may lie beyond the matrix.
template <int kBytes>
inline void prefetch(const uint8_t* p) {
#pragma GCC unroll 16
  for (int i = 0; i < kBytes; i += kLine) __builtin_prefetch(p + i);
}

template <class V, int kTo>
inline void add_bits(const uint8_t* line, typename V::Bytes (&w)[8]) {
  const typename V::Bytes bits = V::load_bytes(line);
  w[0] = V::template insert<0, kTo, 1>(w[0], bits);
  w[1] = V::template insert<1, kTo, 1>(w[1], bits);
  w[2] = V::template insert<2, kTo, 1>(w[2], bits);
  w[3] = V::template insert<3, kTo, 1>(w[3], bits);
  w[4] = V::template insert<4, kTo, 1>(w[4], bits);
  w[5] = V::template insert<5, kTo, 1>(w[5], bits);
  w[6] = V::template insert<6, kTo, 1>(w[6], bits);
  w[7] = V::template insert<7, kTo, 1>(w[7], bits);
}

template <class V, int kTo>
inline void add_pairs(const uint8_t* lines, typename V::Bytes (&w)[8]) {
#pragma GCC unroll 2
  for (int h = 0; h < 2; ++h) {
    const typename V::Bytes pairs = V::load_bytes(lines + h * kLine);
    w[4 * h] = V::template insert<0, kTo, 3>(w[4 * h], pairs);
    w[4 * h + 1] = V::template insert<2, kTo, 3>(w[4 * h + 1], pairs);
    w[4 * h + 2] = V::template insert<4, kTo, 3>(w[4 * h + 2], pairs);
    w[4 * h + 3] = V::template insert<6, kTo, 3>(w[4 * h + 3], pairs);
  }
}

template <class V>
inline void read_nibbles(const uint8_t* lines, typename V::Bytes (&w)[8]) {
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const typename V::Bytes both = V::load_bytes(lines + j * kLine);
    w[j] = V::template field<0, 15>(both);
    w[j + 4] = V::template field<4, 15>(both);
  }
}

template <class V>
inline void read_pairs(const uint8_t* lines, typename V::Bytes (&w)[8]) {
#pragma GCC unroll 2
  for (int h = 0; h < 2; ++h) {
    const typename V::Bytes pairs = V::load_bytes(lines + h * kLine);
    w[4 * h] = V::template field<0, 3>(pairs);
    w[4 * h + 1] = V::template field<2, 3>(pairs);
    w[4 * h + 2] = V::template field<4, 3>(pairs);
    w[4 * h + 3] = V::template field<6, 3>(pairs);
  }
}

// The codes of a block of 32 columns; w[g] is group g. `p` is the block's first plane.
template <class V, Planes kPlanes>
inline void read_codes(const uint8_t* p, typename V::Bytes (&w)[8]) {
  if constexpr (kPlanes == Planes::byte) {
#pragma GCC unroll 8
    for (int g = 0; g < 8; ++g) w[g] = V::load_bytes(p + g * kLine);
  } else if constexpr (kPlanes == Planes::pair || kPlanes == Planes::pair_bit) {
    read_pairs<V>(p, w);
    if constexpr (kPlanes == Planes::pair_bit) add_bits<V, 2>(p + 2 * kLine, w);
  } else {
    read_nibbles<V>(p, w);
    if constexpr (kPlanes == Planes::nibble_bit) add_bits<V, 4>(p + 4 * kLine, w);
    if constexpr (kPlanes == Planes::nibble_pair) add_pairs<V, 4>(p + 4 * kLine, w);
  }
}

// The table's values plus the offset: what the integer dot multiplies.
template <class Q>
struct CodeTable {
  alignas(16) uint8_t v[16];
  constexpr CodeTable() : v{} {
    for (int i = 0; i < 16; ++i) v[i] = static_cast<uint8_t>(Q::table[i] + (1 << Q::offset_log2));
  }
};
template <class Q>
inline constexpr CodeTable<Q> kCodeTable{};

template <class V, class Q>
inline void read_block(const uint8_t* p, typename V::Bytes (&w)[8]) {
  read_codes<V, Q::planes>(p, w);
  if constexpr (Q::has_table) {
    const typename V::Table table = V::load_table(kCodeTable<Q>.v);
#pragma GCC unroll 8
    for (int g = 0; g < 8; ++g) w[g] = V::lookup(table, w[g]);
  }
}

// Sixteen 6-bit values for each of 16 rows from three lines: value s of row r is byte 16 * s + r of `out`. Lines 0, 1
// and 2 hold values 0-3, 4-7 and 8-11 in their low six bits and the pieces of values 12-15 in the bits above.
template <class V>
inline void read_six_bit(const uint8_t* lines, uint8_t* out) {
  const typename V::Bytes a = V::load_bytes(lines), b = V::load_bytes(lines + kLine),
                          c = V::load_bytes(lines + 2 * kLine);
  V::store_bytes(out, V::template field<0, 63>(a));
  V::store_bytes(out + kLine, V::template field<0, 63>(b));
  V::store_bytes(out + 2 * kLine, V::template field<0, 63>(c));
  const typename V::Bytes low = V::template insert<6, 2, 3>(V::template field<6, 3>(a), b);
  V::store_bytes(out + 3 * kLine, V::template insert<6, 4, 3>(low, c));
}

// The scales of a unit, sixteen rows at a time; scale s belongs to the s-th 32 (or 16) columns. Each is one float:
// d * (block's own scale). The types with minima have them likewise.
template <class V, class Q>
struct UnitScales;

template <class V>
struct HalfScales {  // f16 for each block
  using Floats = typename V::Floats;
  const uint8_t* unit;

  explicit HalfScales(const uint8_t* p) : unit(p) {}
  Floats scale(int s) const { return V::from_f16(unit + 32 * s); }
};
template <class V>
struct UnitScales<V, Q4_0> : HalfScales<V> {
  using HalfScales<V>::HalfScales;
};
template <class V>
struct UnitScales<V, Q5_0> : HalfScales<V> {
  using HalfScales<V>::HalfScales;
};
template <class V>
struct UnitScales<V, Q8_0> : HalfScales<V> {
  using HalfScales<V>::HalfScales;
};
template <class V>
struct UnitScales<V, IQ4_NL> : HalfScales<V> {
  using HalfScales<V>::HalfScales;
};

template <class V>
struct HalfScalesMinima : HalfScales<V> {  // and f16 minima, negated at packing: value = scale * code - minimum
  using HalfScales<V>::HalfScales;
  typename V::Floats minimum(int s) const { return V::from_f16(this->unit + kLine + 32 * s); }
};
template <class V>
struct UnitScales<V, Q4_1> : HalfScalesMinima<V> {
  using HalfScalesMinima<V>::HalfScalesMinima;
};
template <class V>
struct UnitScales<V, Q5_1> : HalfScalesMinima<V> {
  using HalfScalesMinima<V>::HalfScalesMinima;
};

template <class V>
struct UnitScales<V, MXFP4> {  // a byte for each block
  const uint8_t* unit;

  explicit UnitScales(const uint8_t* p) : unit(p) {}
  typename V::Floats scale(int s) const { return V::from_e8m0_half(unit + 16 * s); }
};

template <class V>
struct SuperScalesMinima {  // f16 d, f16 dmin, eight 6-bit scales and eight 6-bit minima
  using Floats = typename V::Floats;
  alignas(kLine) uint8_t six[256];
  Floats d, dmin;

  explicit SuperScalesMinima(const uint8_t* unit) : d(V::from_f16(unit)), dmin(V::from_f16(unit + 32)) {
    read_six_bit<V>(unit + kLine, six);
  }
  Floats scale(int s) const { return V::mul(d, V::from_u8(six + 16 * s)); }
  Floats minimum(int s) const { return V::mul(dmin, V::from_u8(six + 128 + 16 * s)); }
};
template <class V>
struct UnitScales<V, Q4_K> : SuperScalesMinima<V> {
  using SuperScalesMinima<V>::SuperScalesMinima;
};
template <class V>
struct UnitScales<V, Q5_K> : SuperScalesMinima<V> {
  using SuperScalesMinima<V>::SuperScalesMinima;
};

template <class V>
struct UnitScales<V, Q2_K> {  // f16 d, f16 dmin, sixteen bytes: scale in the low, minimum in the high four bits
  using Floats = typename V::Floats;
  alignas(kLine) uint8_t low[256], high[256];
  Floats d, dmin;

  explicit UnitScales(const uint8_t* unit) : d(V::from_f16(unit)), dmin(V::from_f16(unit + 32)) {
#pragma GCC unroll 4
    for (int i = 0; i < 256; i += kLine) {
      const typename V::Bytes both = V::load_bytes(unit + kLine + i);
      V::store_bytes(low + i, V::template field<0, 15>(both));
      V::store_bytes(high + i, V::template field<4, 15>(both));
    }
  }
  Floats scale(int s) const { return V::mul(d, V::from_u8(low + 16 * s)); }
  Floats minimum(int s) const { return V::mul(dmin, V::from_u8(high + 16 * s)); }
};

template <class V>
struct UnitScales<V, Q3_K> {  // f16 d, sixteen 6-bit scales with offset 32
  using Floats = typename V::Floats;
  alignas(kLine) uint8_t six[256];
  Floats d;

  explicit UnitScales(const uint8_t* unit) : d(V::from_f16(unit)) { read_six_bit<V>(unit + kLine, six); }
  Floats scale(int s) const { return V::mul(d, V::sub(V::from_u8(six + 16 * s), V::broadcast(32.0f))); }
};

template <class V>
struct UnitScales<V, Q6_K> {  // f16 d, sixteen int8 scales
  using Floats = typename V::Floats;
  const uint8_t* scales;
  Floats d;

  explicit UnitScales(const uint8_t* unit) : scales(unit + kLine), d(V::from_f16(unit)) {}
  Floats scale(int s) const { return V::mul(d, V::from_i8(scales + 16 * s)); }
};

template <class V>
struct UnitScales<V, IQ4_XS> {  // f16 d; 32 bytes with the high two bits, then a line with the low four bits of eight
                                // scales
  using Floats = typename V::Floats;
  alignas(kLine) uint8_t six[128];  // with offset 32
  Floats d;

  explicit UnitScales(const uint8_t* unit) : d(V::from_f16(unit)) {
    const uint8_t *high = unit + 32, *low = unit + kLine;
#pragma GCC unroll 8
    for (int b = 0; b < 8; ++b) {
      for (int r = 0; r < 16; ++r) {
        const int top = high[16 * (b % 2) + r] >> b / 2 * 2 & 3;
        six[16 * b + r] = static_cast<uint8_t>((low[16 * (b % 4) + r] >> b / 4 * 4 & 15) | top << 4);
      }
    }
  }
  Floats scale(int s) const { return V::mul(d, V::sub(V::from_u8(six + 16 * s), V::broadcast(32.0f))); }
};

}  // namespace
}  // namespace shale

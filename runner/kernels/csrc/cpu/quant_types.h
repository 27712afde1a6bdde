// The facts of every tensor type that the matrix kernels read without conversion, as traits structs.
//
// A packed matrix is a row of panels of 16 output rows. A panel is a row of units; a unit is a header (the scales of
// its blocks) followed by the codes of its blocks of 32 columns. Codes are unsigned and lie in planes in which the 16
// rows are interleaved by 4 columns, so that a 64-byte line feeds one instruction: byte 4 * row + k of a line is column
// 4 * group + k. With w[g] the line of the 32 columns' group g = 0 ... 7 (each byte a whole code), the planes are
//   byte    8 lines   line g is w[g]
//   nibble  4 lines   line j holds w[j] in its low and w[j + 4] in its high four bits
//   pair    2 lines   line h holds w[4 * h + f] in bits 2 * f and 2 * f + 1
//   bit     1 line    bit g is w[g]
// and a code of 5, 6 or 3 bits is a nibble + bit, nibble + pair, pair + bit. Every line is aligned to 64 bytes.
// A value is scale * (code - offset) - minimum, or scale * table[code] for the types with a table.
#pragma once

#include <cstdint>

namespace shale {

inline constexpr int kPanelRows = 16;
inline constexpr int kBlock = 32;  // columns whose activations share one scale
inline constexpr int kLine = 64;   // bytes

enum class Planes { byte, nibble, nibble_bit, nibble_pair, pair, pair_bit };

constexpr int plane_bytes(Planes planes) {
  switch (planes) {
    case Planes::byte:
      return 8 * kLine;
    case Planes::nibble:
      return 4 * kLine;
    case Planes::nibble_bit:
      return 5 * kLine;
    case Planes::nibble_pair:
      return 6 * kLine;
    case Planes::pair:
      return 2 * kLine;
    case Planes::pair_bit:
      return 3 * kLine;
  }
  return 0;
}

inline constexpr int kNoOffset = 32;  // a left shift by 32 makes the offset's correction nothing

// What the codes of a type are and how its scales are shared. `columns` and `bytes` are those of a GGUF block, `header`
// the bytes before a unit's codes, `offset_log2` the offset's logarithm, `wide` whether codes need all eight bits.
template <int Id, int Columns, int Bytes, int UnitBlocks, int Header, Planes kCodes>
struct QuantType {
  static constexpr int id = Id, columns = Columns, bytes = Bytes, unit_blocks = UnitBlocks, header = Header;
  static constexpr int unit_columns = UnitBlocks * kBlock;
  static constexpr int unit_bytes = Header + UnitBlocks * plane_bytes(kCodes);
  static constexpr Planes planes = kCodes;
  static constexpr int scales = 1;  // scales (and minima) of a block of 32
  static constexpr bool has_minimum = false, has_table = false, wide = false;
  static constexpr int offset_log2 = kNoOffset;
};

struct Q4_0 : QuantType<2, 32, 18, 2, 64, Planes::nibble> {
  static constexpr const char* name = "Q4_0";
  static constexpr int offset_log2 = 3;
};
struct Q4_1 : QuantType<3, 32, 20, 2, 128, Planes::nibble> {
  static constexpr const char* name = "Q4_1";
  static constexpr bool has_minimum = true;
};
struct Q5_0 : QuantType<6, 32, 22, 2, 64, Planes::nibble_bit> {
  static constexpr const char* name = "Q5_0";
  static constexpr int offset_log2 = 4;
};
struct Q5_1 : QuantType<7, 32, 24, 2, 128, Planes::nibble_bit> {
  static constexpr const char* name = "Q5_1";
  static constexpr bool has_minimum = true;
};
struct Q8_0 : QuantType<8, 32, 34, 2, 64, Planes::byte> {
  static constexpr const char* name = "Q8_0";
  static constexpr int offset_log2 = 7;
  static constexpr bool wide = true;
};
struct Q2_K : QuantType<10, 256, 84, 8, 320, Planes::pair> {
  static constexpr const char* name = "Q2_K";
  static constexpr int scales = 2;
  static constexpr bool has_minimum = true;
};
struct Q3_K : QuantType<11, 256, 110, 8, 256, Planes::pair_bit> {
  static constexpr const char* name = "Q3_K";
  static constexpr int scales = 2, offset_log2 = 2;
};
struct Q4_K : QuantType<12, 256, 144, 8, 256, Planes::nibble> {
  static constexpr const char* name = "Q4_K";
  static constexpr bool has_minimum = true;
};
struct Q5_K : QuantType<13, 256, 176, 8, 256, Planes::nibble_bit> {
  static constexpr const char* name = "Q5_K";
  static constexpr bool has_minimum = true;
};
struct Q6_K : QuantType<14, 256, 210, 8, 320, Planes::nibble_pair> {
  static constexpr const char* name = "Q6_K";
  static constexpr int scales = 2, offset_log2 = 5;
};
struct IQ4_NL : QuantType<20, 32, 18, 2, 64, Planes::nibble> {
  static constexpr const char* name = "IQ4_NL";
  static constexpr bool has_table = true, wide = true;
  static constexpr int offset_log2 = 7;
  static constexpr int8_t table[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
};
struct IQ4_XS : QuantType<23, 256, 136, 8, 128, Planes::nibble> {
  static constexpr const char* name = "IQ4_XS";
  static constexpr bool has_table = true, wide = true;
  static constexpr int offset_log2 = 7;
  static constexpr const int8_t (&table)[16] = IQ4_NL::table;
};
struct MXFP4
    : QuantType<39, 32, 17, 4, 64, Planes::nibble> {  // OCP MX 1.0: E2M1 values, doubled, and an E8M0 scale, halved
  static constexpr const char* name = "MXFP4";
  static constexpr bool has_table = true;
  static constexpr int offset_log2 = 4;
  static constexpr int8_t table[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
};

// A float type has no blocks: a panel is 16 interleaved values per column, padded to whole lines.
template <int Id, int Bytes>
struct FloatType {
  static constexpr int id = Id, columns = 1, bytes = Bytes;
};
struct F32 : FloatType<0, 4> {
  static constexpr const char* name = "F32";
};
struct F16 : FloatType<1, 2> {
  static constexpr const char* name = "F16";
};
struct BF16 : FloatType<30, 2> {
  static constexpr const char* name = "BF16";
};

template <class... Q>
struct TypeList {
  static constexpr int size = sizeof...(Q);
};
using QuantTypes = TypeList<Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, MXFP4>;
using FloatTypes = TypeList<F32, F16, BF16>;
inline constexpr int kNumTypes = QuantTypes::size + FloatTypes::size;  // tables by type: the quantized ones come first

template <class Q>
inline constexpr bool is_quantized = requires { Q::planes; };

}  // namespace shale

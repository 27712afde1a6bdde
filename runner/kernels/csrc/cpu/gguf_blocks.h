// Blocks as GGUF files have them: the codes of 32 columns, and the scales and minima of a block as floats.
//
// A value is scale * (code - offset) - minimum, or scale * table[code]: with these roundings, one for each operation,
// it is what ggml's own dequantization gives. Blocks lie at any address; nothing past Q::bytes is read.
#pragma once

#include <cstdint>

#include "float_formats.h"
#include "quant_types.h"

namespace shale {
namespace {

using Codes = uint8_t[kBlock];

template <class Q>
struct GgufBlock;

struct Scales {
  float scale[16], minimum[16];  // of the block's 32 or 16 columns, ascending
};

inline void split_nibbles(const uint8_t* q, Codes& codes) {
  for (int l = 0; l < 16; ++l) {
    codes[l] = q[l] & 15;
    codes[l + 16] = q[l] >> 4;
  }
}

inline void add_fifth_bits(const uint8_t* q, Codes& codes) {
  const uint32_t bits = load_u32(q);
  for (int l = 0; l < kBlock; ++l) codes[l] = static_cast<uint8_t>(codes[l] | (bits >> l & 1) << 4);
}

// Eight 6-bit scales and eight minima from 12 bytes: the first four of each in the low bits of bytes 0-3 and 4-7, the
// others' low four bits in bytes 8-11, their high two on top of the first.
inline void read_super_scales(const uint8_t* p, uint8_t (&out)[16]) {
  for (int i = 0; i < 4; ++i) {
    out[i] = p[i] & 63;
    out[i + 8] = p[i + 4] & 63;
    out[i + 4] = static_cast<uint8_t>((p[i + 8] & 15) | p[i] >> 6 << 4);
    out[i + 12] = static_cast<uint8_t>(p[i + 8] >> 4 | p[i + 4] >> 6 << 4);
  }
}

template <>
struct GgufBlock<Q4_0> {
  static void codes(const uint8_t* block, int, Codes& out) { split_nibbles(block + 2, out); }
  static void scales(const uint8_t* block, Scales& out) { out.scale[0] = half_to_float(load_u16(block)); }
};
template <>
struct GgufBlock<IQ4_NL> : GgufBlock<Q4_0> {};

template <>
struct GgufBlock<Q4_1> {
  static void codes(const uint8_t* block, int, Codes& out) { split_nibbles(block + 4, out); }
  static void scales(const uint8_t* block, Scales& out) {
    out.scale[0] = half_to_float(load_u16(block));
    out.minimum[0] = -half_to_float(load_u16(block + 2));
  }
};

template <>
struct GgufBlock<Q5_0> {
  static void codes(const uint8_t* block, int, Codes& out) {
    split_nibbles(block + 6, out);
    add_fifth_bits(block + 2, out);
  }
  static void scales(const uint8_t* block, Scales& out) { out.scale[0] = half_to_float(load_u16(block)); }
};

template <>
struct GgufBlock<Q5_1> {
  static void codes(const uint8_t* block, int, Codes& out) {
    split_nibbles(block + 8, out);
    add_fifth_bits(block + 4, out);
  }
  static void scales(const uint8_t* block, Scales& out) { GgufBlock<Q4_1>::scales(block, out); }
};

template <>
struct GgufBlock<Q8_0> {
  static void codes(const uint8_t* block, int, Codes& out) {
    for (int l = 0; l < kBlock; ++l) out[l] = block[2 + l] ^ 0x80;
  }
  static void scales(const uint8_t* block, Scales& out) { out.scale[0] = half_to_float(load_u16(block)); }
};

template <>
struct GgufBlock<MXFP4> {
  static void codes(const uint8_t* block, int, Codes& out) { split_nibbles(block + 1, out); }
  static void scales(const uint8_t* block, Scales& out) { out.scale[0] = e8m0_half_to_float(block[0]); }
};

template <>
struct GgufBlock<Q2_K> {  // 16 scale and minimum nibbles, 64 bytes of codes, d, dmin
  static void codes(const uint8_t* block, int i, Codes& out) {
    const uint8_t* q = block + 16 + i / 4 * 32;
    for (int l = 0; l < kBlock; ++l) out[l] = q[l] >> i % 4 * 2 & 3;
  }
  static void scales(const uint8_t* block, Scales& out) {
    const float d = half_to_float(load_u16(block + 80)), dmin = half_to_float(load_u16(block + 82));
    for (int s = 0; s < 16; ++s) {
      out.scale[s] = d * static_cast<float>(block[s] & 15);
      out.minimum[s] = dmin * static_cast<float>(block[s] >> 4);
    }
  }
};

template <>
struct GgufBlock<Q3_K> {  // 32 bytes of third bits, 64 bytes of codes, 12 bytes of scales, d
  static void codes(const uint8_t* block, int i, Codes& out) {
    const uint8_t* q = block + 32 + i / 4 * 32;
    for (int l = 0; l < kBlock; ++l) {
      out[l] = static_cast<uint8_t>((q[l] >> i % 4 * 2 & 3) | (block[l] >> i & 1) << 2);
    }
  }
  static void six_bit(const uint8_t* block, uint8_t (&out)[16]) {  // with offset 32
    const uint8_t* p = block + 96;
    for (int s = 0; s < 16; ++s) {
      out[s] = static_cast<uint8_t>((p[s % 8] >> s / 8 * 4 & 15) | (p[8 + s % 4] >> s / 4 * 2 & 3) << 4);
    }
  }
  static void scales(const uint8_t* block, Scales& out) {
    uint8_t six[16];
    six_bit(block, six);
    const float d = half_to_float(load_u16(block + 108));
    for (int s = 0; s < 16; ++s) out.scale[s] = d * static_cast<float>(six[s] - 32);
  }
};

template <>
struct GgufBlock<Q4_K> {  // d, dmin, 12 bytes of scales and minima, 128 bytes of codes
  static void codes(const uint8_t* block, int i, Codes& out) {
    const uint8_t* q = block + 16 + i / 2 * 32;
    for (int l = 0; l < kBlock; ++l) out[l] = q[l] >> i % 2 * 4 & 15;
  }
  static void scales(const uint8_t* block, Scales& out) {
    uint8_t six[16];
    read_super_scales(block + 4, six);
    const float d = half_to_float(load_u16(block)), dmin = half_to_float(load_u16(block + 2));
    for (int s = 0; s < 8; ++s) {
      out.scale[s] = d * static_cast<float>(six[s]);
      out.minimum[s] = dmin * static_cast<float>(six[8 + s]);
    }
  }
};

template <>
struct GgufBlock<Q5_K> {  // as Q4_K, with 32 bytes of fifth bits before the codes
  static void codes(const uint8_t* block, int i, Codes& out) {
    const uint8_t *high = block + 16, *q = block + 48 + i / 2 * 32;
    for (int l = 0; l < kBlock; ++l) {
      out[l] = static_cast<uint8_t>((q[l] >> i % 2 * 4 & 15) | (high[l] >> i & 1) << 4);
    }
  }
  static void scales(const uint8_t* block, Scales& out) { GgufBlock<Q4_K>::scales(block, out); }
};

template <>
struct GgufBlock<Q6_K> {  // 128 bytes of low and 64 of high bits, 16 int8 scales, d
  static void codes(const uint8_t* block, int i, Codes& out) {
    const uint8_t* low = block + i / 4 * 64 + i % 2 * 32;
    const uint8_t* high = block + 128 + i / 4 * 32;
    const int low_shift = i % 4 / 2 * 4, high_shift = i % 4 * 2;
    for (int l = 0; l < kBlock; ++l) {
      out[l] = static_cast<uint8_t>((low[l] >> low_shift & 15) | (high[l] >> high_shift & 3) << 4);
    }
  }
  static void scales(const uint8_t* block, Scales& out) {
    const float d = half_to_float(load_u16(block + 208));
    for (int s = 0; s < 16; ++s) out.scale[s] = d * static_cast<float>(static_cast<int8_t>(block[192 + s]));
  }
};

template <>
struct GgufBlock<IQ4_XS> {  // d, the scales' high two bits in 16, their low four in 4 bytes, 128 bytes of codes
  static void codes(const uint8_t* block, int i, Codes& out) { split_nibbles(block + 8 + 16 * i, out); }
  static int six_bit(const uint8_t* block, int i) {  // with offset 32
    return (block[4 + i / 2] >> i % 2 * 4 & 15) | (load_u16(block + 2) >> 2 * i & 3) << 4;
  }
  static void scales(const uint8_t* block, Scales& out) {
    const float d = half_to_float(load_u16(block));
    for (int i = 0; i < 8; ++i) out.scale[i] = d * static_cast<float>(six_bit(block, i) - 32);
  }
};

}  // namespace
}  // namespace shale

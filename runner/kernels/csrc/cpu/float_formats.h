// Scalar conversions of the 16- and 8-bit float formats of GGUF to float, exact for every bit pattern.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

namespace shale {
namespace {

inline uint16_t load_u16(const uint8_t* p) {
  uint16_t out;
  std::memcpy(&out, p, sizeof(out));
  return out;
}

inline uint32_t load_u32(const uint8_t* p) {
  uint32_t out;
  std::memcpy(&out, p, sizeof(out));
  return out;
}

inline float half_to_float(uint16_t half) {
  const uint32_t sign = (half & 0x8000u) << 16, exponent = half >> 10 & 31, mantissa = half & 0x3ffu;
  if (exponent == 0) {  // zero and subnormals: mantissa * 2^-24
    return std::bit_cast<float>(std::bit_cast<uint32_t>(static_cast<float>(mantissa) * 0x1p-24f) | sign);
  }
  const uint32_t wide = exponent == 31 ? 255 : exponent + 112;
  return std::bit_cast<float>(sign | wide << 23 | mantissa << 13);
}

inline float bf16_to_float(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

// 2^(e - 128): the scale of MXFP4, halved because its values are doubled. The two smallest are subnormal.
inline float e8m0_half_to_float(uint32_t e) { return std::bit_cast<float>(e < 2 ? 0x00200000u << e : (e - 1) << 23); }

}  // namespace
}  // namespace shale

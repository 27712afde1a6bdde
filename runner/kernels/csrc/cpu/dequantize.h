// One GGUF row as float: the token embeddings.
//
// Computes out[c] = value(row, c) * factor, each operation rounded once as in ggml: (d * scale) * code - (dmin *
// minimum), then times factor. Bit for bit what gguf-py gives when factor is 1. Bytes: the row read once, 4 * cols
// written.
#pragma once

#include <cstdint>
#include <cstring>

#include "float_formats.h"
#include "gguf_blocks.h"

namespace shale {
namespace {

template <class Q>
constexpr int code_value(int code) {
  if constexpr (Q::has_table) return Q::table[code];
  return Q::offset_log2 == kNoOffset ? code : code - (1 << Q::offset_log2 % kNoOffset);
}

template <class Q>
void dequantize_block(const uint8_t* block, float factor, float* out) {
  constexpr int kShare = kBlock / Q::scales;  // columns of a scale
  Scales scales;
  GgufBlock<Q>::scales(block, scales);
  for (int i = 0; i < Q::columns / kBlock; ++i, out += kBlock) {
    Codes codes;
    GgufBlock<Q>::codes(block, i, codes);
    for (int l = 0; l < kBlock; ++l) {
      const int s = i * Q::scales + l / kShare;
      float value = scales.scale[s] * static_cast<float>(code_value<Q>(codes[l]));
      if constexpr (Q::has_minimum) value -= scales.minimum[s];
      out[l] = value * factor;
    }
  }
}

template <class Q>
float float_value(const uint8_t* p) {
  if constexpr (Q::id == F16::id) return half_to_float(load_u16(p));
  if constexpr (Q::id == BF16::id) return bf16_to_float(load_u16(p));
  if constexpr (Q::id == F32::id) return std::bit_cast<float>(load_u32(p));
}

template <class Q>
void dequantize_row(const uint8_t* row, int64_t cols, float factor, float* out) {
  for (int64_t c = 0; c < cols; c += Q::columns, row += Q::bytes) {
    if constexpr (is_quantized<Q>) {
      dequantize_block<Q>(row, factor, out + c);
    } else {
      out[c] = float_value<Q>(row) * factor;
    }
  }
}

}  // namespace
}  // namespace shale

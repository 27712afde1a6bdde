// Rows of cached values to and from float: the block formats of cache_types.h over one vector type.
//
// A row is n values: whole blocks for q8_0 (half d, 32 signed codes: d * code) and q4_0 (half d, 16 bytes; the low half
// of byte i is value i, the high half value 16 + i: d * (code - 8)). All products are exact.
// Rounding: to nearest, ties to even; q4_0's codes are min(15, floor(x / d + 8.5)). Codes are computed with the inverse
// of d in float, as ggml does, before d is rounded to half; where that inverse is not finite all codes are those of 0.
#pragma once

#include <cstdint>
#include <cstring>

#include "cache_types.h"
#include "float_formats.h"

namespace shale {

inline constexpr int64_t kQuantBlock = 32;

template <class V, CacheType kType>
struct CacheRows;

// load(row, i): values i ... i + 15 of a row; load_first: n of them, lanes beyond are zero.
template <class V>
struct CacheRows<V, CacheType::f32> {
  static V load(const uint8_t* row, int64_t i) { return V::load(at(row) + i); }
  static V load_first(const uint8_t* row, int64_t i, int n) { return V::load_first(at(row) + i, n); }
  static void store(const float* x, uint8_t* row, int64_t n) {
    std::memcpy(row, x, static_cast<std::size_t>(n) * sizeof(float));
  }

 private:
  static const float* at(const uint8_t* row) { return reinterpret_cast<const float*>(row); }
};

// Rows of words of two bytes; Rows is their CacheRows, which widens and narrows sixteen.
template <class V, class Rows>
struct WordRows {
  static V load(const uint8_t* row, int64_t i) { return Rows::widened(V::words(row + 2 * i)); }
  static V load_first(const uint8_t* row, int64_t i, int n) { return Rows::widened(V::words_first(row + 2 * i, n)); }
  static void store(const float* x, uint8_t* row, int64_t n) {
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) Rows::store_narrowed(V::load(x + i), row + 2 * i);
    if (i == n) return;
    uint8_t words[32];
    Rows::store_narrowed(V::load_first(x + i, static_cast<int>(n - i)), words);
    std::memcpy(row + 2 * i, words, 2 * static_cast<std::size_t>(n - i));
  }
};
template <class V>
struct CacheRows<V, CacheType::f16> : WordRows<V, CacheRows<V, CacheType::f16>> {
  static V widened(const typename V::Words& words) { return V::from_halves(words); }
  static void store_narrowed(V x, uint8_t* to) { x.store_halves(to); }
};
template <class V>
struct CacheRows<V, CacheType::bf16> : WordRows<V, CacheRows<V, CacheType::bf16>> {
  static V widened(const typename V::Words& words) { return V::from_bfloats(words); }
  static void store_narrowed(V x, uint8_t* to) { x.store_bfloats(to); }
};

// Blocks with a half as their scale.
template <class V>
inline V scale_of_block(const uint8_t* block) {
  return V::set_half(load_u16(block));
}
template <class V, class Rows>
inline V load_from_block(const uint8_t* row, int64_t i) {
  const uint8_t* block = row + i / kQuantBlock * Rows::kBlockBytes;
  const auto codes = i % kQuantBlock == 0 ? Rows::template codes<0>(block) : Rows::template codes<16>(block);
  return V::from_codes(codes) * scale_of_block<V>(block);
}
template <class V>
inline void store_scale(float scale, uint8_t* block) {
  const uint16_t half = V::half(scale);
  std::memcpy(block, &half, sizeof half);
}
template <class V>
inline float inverse_scale(float scale) {
  const float inverse = 1.0f / scale;
  return inverse - inverse == 0.0f ? inverse : 0.0f;
}

// codes<i>(block): those of values i ... i + 15 of a block.
template <class V>
struct CacheRows<V, CacheType::q8_0> {
  static constexpr int64_t kBlockBytes = 34;
  template <int i>
  static typename V::Codes codes(const uint8_t* block) {
    return V::Codes::load(block + 2 + i);
  }
  static V load(const uint8_t* row, int64_t i) { return load_from_block<V, CacheRows>(row, i); }
  static V load_first(const uint8_t* row, int64_t i, int) { return load(row, i); }
  static void store(const float* x, uint8_t* row, int64_t n) {
    for (int64_t i = 0; i < n; i += kQuantBlock, row += kBlockBytes) {
      const V a = V::load(x + i), b = V::load(x + i + 16);
      const float scale = V::max(V::abs(a), V::abs(b)).max() / 127.0f;
      const V inverse = V::set(inverse_scale<V>(scale));
      store_scale<V>(scale, row);
      V::round(a * inverse).store_codes(reinterpret_cast<int8_t*>(row) + 2);
      V::round(b * inverse).store_codes(reinterpret_cast<int8_t*>(row) + 18);
    }
  }
};

template <class V>
struct CacheRows<V, CacheType::q4_0> {
  static constexpr int64_t kBlockBytes = 18;
  template <int i>
  static typename V::Codes codes(const uint8_t* block) {
    return i == 0 ? V::Codes::low_nibbles(block + 2) : V::Codes::high_nibbles(block + 2);
  }
  static V load(const uint8_t* row, int64_t i) { return load_from_block<V, CacheRows>(row, i); }
  static V load_first(const uint8_t* row, int64_t i, int) { return load(row, i); }
  static void store(const float* x, uint8_t* row, int64_t n) {
    for (int64_t i = 0; i < n; i += kQuantBlock, row += kBlockBytes) {
      const V a = V::load(x + i), b = V::load(x + i + 16);
      const float scale = extreme(x + i, a, b) / -8.0f;
      const V inverse = V::set(inverse_scale<V>(scale));
      store_scale<V>(scale, row);
      int8_t low[16], high[16];
      rounded(a * inverse).store_codes(low);
      rounded(b * inverse).store_codes(high);
      for (int j = 0; j < 16; ++j) row[2 + j] = static_cast<uint8_t>(low[j] | high[j] << 4);
    }
  }

 private:
  // The value of greatest magnitude, the first of equals.
  static float extreme(const float* x, V a, V b) {
    const V greatest = V::set(V::max(V::abs(a), V::abs(b)).max());
    const uint32_t less = V::bits(V::less(V::abs(a), greatest)) | V::bits(V::less(V::abs(b), greatest)) << 16;
    return less == 0xffffffff ? x[0] : x[__builtin_ctz(~less)];
  }
  // min(15, floor(x + 8.5)) for x >= -8.5, as x + 8.5 rounded down: half of it is what a round would have to decide.
  static V rounded(V x) {
    const V shifted = x + V::set(8.5f), nearest = V::round(shifted);
    const V floor = V::select(V::less(shifted, nearest), nearest - V::set(1.0f), nearest);
    return V::select(V::less(floor, V::set(15.0f)), floor, V::set(15.0f));
  }
};

// f<CacheType>() for a type known at run time.
template <class F>
inline void with_cache_type(CacheType type, F&& f) {
  switch (type) {
    case CacheType::f32:
      return f.template operator()<CacheType::f32>();
    case CacheType::f16:
      return f.template operator()<CacheType::f16>();
    case CacheType::bf16:
      return f.template operator()<CacheType::bf16>();
    case CacheType::q8_0:
      return f.template operator()<CacheType::q8_0>();
    case CacheType::q4_0:
      return f.template operator()<CacheType::q4_0>();
  }
}

template <class V>
void store_cache_row(CacheType type, const float* x, uint8_t* row, int64_t n) {
  with_cache_type(type, [&]<CacheType kType>() { CacheRows<V, kType>::store(x, row, n); });
}

template <class V>
void load_cache_row(CacheType type, const uint8_t* row, float* x, int64_t n) {
  with_cache_type(type, [&]<CacheType kType>() {
    using Rows = CacheRows<V, kType>;
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) Rows::load(row, i).store(x + i);
    if (i < n) Rows::load_first(row, i, static_cast<int>(n - i)).store_first(x + i, static_cast<int>(n - i));
  });
}

}  // namespace shale

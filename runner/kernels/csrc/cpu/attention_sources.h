// Where attention reads keys and values from: cells of the cache, widened in registers, or a tile that was widened once
// for many query vectors. Both give the same numbers in the same order.
//
// Keys come four dimensions at a time for sixteen positions, in four vectors: lane 4 i + j of vector k holds dimension
// j of position 4 i + k. A score's sum over the dimensions then is four sums (dimension modulo 4) that lie side by
// side, and sixteen scores take four vectors: cells need no full transposition, and a tile of them is read in order.
#pragma once

#include <cstdint>
#include <cstring>

#include "cache_rows.h"
#include "register_tile.h"

namespace shale {

// The keys of four positions: load(rows, head, d) reads kStep dimensions from d on of rows[0], rows[4], rows[8],
// rows[12] (cells, in which the head lies `head` bytes from their start), get(s) is the vector of dimensions d + 4 s
// ... d + 4 s + 3. kVectors: how many of them fit into registers beside the sums. kStepsBetween: of four dimensions,
// from one call of `between` to the next (attention_products.h).
template <class V, CacheType kType>
struct CellKeys;

template <class V>
struct CellKeys<V, CacheType::f32> {
  static constexpr int kStep = 4, kStepsBetween = 1, kVectors = V::kTileVectors;
  V quads;
  SHALE_INLINE static CellKeys load(const uint8_t* const* rows, int64_t head, int64_t d) {
    const auto at = [&](int i) { return reinterpret_cast<const float*>(rows[i] + head) + d; };
    return {V::join(at(0), at(4), at(8), at(12))};
  }
  V get(int) const { return quads; }
};

// Keys of two bytes; Rows is their CacheRows.
template <class V, class Rows>
struct WordKeys {
  static constexpr int kStep = 16, kStepsBetween = 1, kVectors = V::kTileVectors;
  typename V::Words words[4];
  SHALE_INLINE static WordKeys load(const uint8_t* const* rows, int64_t head, int64_t d) {
    const int64_t at = head + 2 * d;
    WordKeys keys;
    V::join_words(rows[0] + at, rows[4] + at, rows[8] + at, rows[12] + at, keys.words);
    return keys;
  }
  V get(int s) const { return Rows::widened(words[s]); }
};
template <class V>
struct CellKeys<V, CacheType::f16> : WordKeys<V, CacheRows<V, CacheType::f16>> {};
template <class V>
struct CellKeys<V, CacheType::bf16> : WordKeys<V, CacheRows<V, CacheType::bf16>> {};

// Quantized keys, a block of each position at a time; Rows is their CacheRows.
template <class V, class Rows>
struct CodedKeys {
  static constexpr int kStep = kQuantBlock, kStepsBetween = 4, kVectors = V::kTileVectors < 2 ? 1 : 2;
  typename V::Codes low[4], high[4];
  V scale;
  SHALE_INLINE static CodedKeys load(const uint8_t* const* rows, int64_t head, int64_t d) {
    const int64_t at = head + d / kQuantBlock * Rows::kBlockBytes;
    CodedKeys keys;
    for (int i = 0; i < 4; ++i) {
      keys.low[i] = Rows::template codes<0>(rows[4 * i] + at);
      keys.high[i] = Rows::template codes<16>(rows[4 * i] + at);
    }
    V::Codes::transpose(keys.low);
    V::Codes::transpose(keys.high);
    keys.scale = V::join_halves(rows[0] + at, rows[4] + at, rows[8] + at, rows[12] + at);
    return keys;
  }
  V get(int s) const { return V::from_codes(s < 4 ? low[s] : high[s - 4]) * scale; }
};
template <class V>
struct CellKeys<V, CacheType::q8_0> : CodedKeys<V, CacheRows<V, CacheType::q8_0>> {};
template <class V>
struct CellKeys<V, CacheType::q4_0> : CodedKeys<V, CacheRows<V, CacheType::q4_0>> {};

// Keys of sixteen positions, out of the cells at `rows`. load(k, d): of vector k, from dimension d on.
template <class V, CacheType kType>
struct CellKeySource {
  using Keys = CellKeys<V, kType>;
  static constexpr int kStep = Keys::kStep, kStepsBetween = Keys::kStepsBetween, kVectors = Keys::kVectors;
  const uint8_t* const* rows;
  int64_t head;
  SHALE_INLINE auto load(int k, int64_t d) const { return Keys::load(rows + k, head, d); }
};

// The same out of a tile: [dimension / 4][vector][16] floats.
template <class V>
struct TileKeySource {
  static constexpr int kStep = 16, kStepsBetween = 4, kVectors = V::kTileVectors;
  struct Keys {
    const float* at;
    V get(int s) const { return V::load(at + 64 * s); }
  };
  const float* tile;
  Keys load(int k, int64_t d) const { return {tile + 16 * (d + k)}; }
};

// Values d ... d + 16 C - 1 of position p, out of the cells at `rows`, and out of a tile of rows of `stride` floats.
template <class V, CacheType kType>
struct CellValueSource {
  static constexpr bool kHasBetween = true;
  const uint8_t* const* rows;
  int64_t head;
  template <int C>
  SHALE_INLINE void load(int p, int64_t d, V (&values)[C]) const {
    using Rows = CacheRows<V, kType>;
    if constexpr (kCacheFormats[static_cast<int>(kType)].block_values == kQuantBlock && C % 2 == 0) {
      const uint8_t* block = rows[p] + head + d / kQuantBlock * Rows::kBlockBytes;  // a register tile begins with one
      unrolled<C / 2>([&](auto i) SHALE_INLINE {
        const uint8_t* at = block + i * Rows::kBlockBytes;
        const V scale = scale_of_block<V>(at);
        values[2 * i] = V::from_codes(Rows::template codes<0>(at)) * scale;
        values[2 * i + 1] = V::from_codes(Rows::template codes<16>(at)) * scale;
      });
    } else {
      unrolled<C>([&](auto c) SHALE_INLINE { values[c] = Rows::load(rows[p] + head, d + 16 * c); });
    }
  }
};
template <class V>
struct TileValueSource {
  static constexpr bool kHasBetween = false;
  const float* tile;
  int64_t stride;
  template <int C>
  SHALE_INLINE void load(int p, int64_t d, V (&values)[C]) const {
    unrolled<C>([&](auto c) SHALE_INLINE { values[c] = V::load(tile + p * stride + d + 16 * c); });
  }
};

// Copies sixteen heads of keys into a tile; keys are padded to a multiple of kKeyPad dimensions, with zeros.
inline constexpr int64_t kKeyPad = 16;

template <class V, CacheType kType>
void copy_keys(const uint8_t* const* cells, int64_t head, int64_t length, int64_t padded_length, float* tile) {
  using Keys = CellKeys<V, kType>;
  const auto copy = [tile](const uint8_t* const* rows, int64_t from_head, int64_t from, int64_t to) {
    for (int k = 0; k < 4; ++k) {
      const auto keys = Keys::load(rows + k, from_head, from);
      for (int s = 0; s < Keys::kStep / 4; ++s) keys.get(s).store(tile + 16 * (to + 4 * s + k));
    }
  };
  int64_t d = 0;
  for (; d + Keys::kStep <= length; d += Keys::kStep) copy(cells, head, d, d);
  if (d == padded_length) return;
  uint8_t padded[16][kKeyPad * sizeof(float)] = {};
  const uint8_t* rows[16];
  // A rest, that is: only types whose blocks are single values have one.
  constexpr int64_t kValueBytes = kCacheFormats[static_cast<int>(kType)].block_bytes;
  for (int i = 0; i < 16; ++i) {
    std::memcpy(padded[i], cells[i] + head + d * kValueBytes, static_cast<std::size_t>((length - d) * kValueBytes));
    rows[i] = padded[i];
  }
  for (int64_t rest = 0; d + rest < padded_length; rest += Keys::kStep) copy(rows, 0, rest, d + rest);
}

// Copies values of positions [first, end) into a tile.
template <class V, CacheType kType>
void copy_values(const uint8_t* const* cells, int64_t head, int64_t length, int first, int end, float* tile,
                 int64_t stride) {
  using Rows = CacheRows<V, kType>;
  for (int p = first; p < end; ++p) {
    float* to = tile + p * stride;
    int64_t d = 0;
    for (; d + 16 <= length; d += 16) Rows::load(cells[p] + head, d).store(to + d);
    if (d < length) Rows::load_first(cells[p] + head, d, static_cast<int>(length - d)).store(to + d);
  }
}

}  // namespace shale

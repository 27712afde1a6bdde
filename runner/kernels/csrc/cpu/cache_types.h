// The types in which a cache holds keys and values (runner/cache_types.py), and one layer's keys or values as the
// kernels see them. Plain data: it is shared by the translation units of all instruction sets (isa.h says why).
#pragma once

#include <cstdint>

namespace shale {

enum class CacheType { f32, f16, bf16, q8_0, q4_0 };

struct CacheFormat {
  const char* name;
  int64_t block_values, block_bytes, alignment;
};

// By CacheType.
inline constexpr CacheFormat kCacheFormats[] = {
    {"f32", 1, 4, 4}, {"f16", 1, 2, 2}, {"bf16", 1, 2, 2}, {"q8_0", 32, 34, 2}, {"q4_0", 32, 18, 2}};
inline constexpr int kNumCacheTypes = sizeof(kCacheFormats) / sizeof(kCacheFormats[0]);

// Cells of num_heads heads, one after the other; a head of `length` values takes head_bytes.
struct CacheView {
  uint8_t* data;
  CacheType type;
  int64_t num_heads, length, head_bytes;
};

}  // namespace shale

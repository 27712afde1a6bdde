// Attention of a batch over key and value caches whose cells are reached through a table: how the work is split.
// attention_kernel.h computes one span.
#pragma once

#include <cstdint>

#include "cache_types.h"

namespace shale {

// A tile is 64 positions and a chunk 16 tiles, both at fixed absolute positions: tile j holds positions 64 j ... 64 j
// + 63. The softmax runs over the tiles of a chunk; the chunks of a row, each begun afresh, are merged in ascending
// order. Chunks are what lets several threads share one long row and still give the bits that one thread gives.
inline constexpr int64_t kTile = 64;
inline constexpr int64_t kChunk = 16 * kTile;

// One call. T rows (tokens), grouped-query heads: head h reads key-value head h / group. Plain data, without functions:
// it is shared by the translation units of all instruction sets (isa.h says why).
struct AttentionTask {
  const float* q;  // (T, num_heads, key_length)
  CacheView keys, values;
  const int32_t* cells;  // position p of a row's sequence lies in cell cells[rows[t][0] + p]
  const int32_t* rows;   // (T, 3): offset into cells, first position seen, end of the positions seen
  int64_t num_rows, num_heads, num_kv_heads, key_length, value_length;
  float scale, softcap;  // softcap 0: none
  float* out;            // (T, num_heads, value_length)

  int64_t group;         // num_heads / num_kv_heads
  int64_t value_stride;  // of sums: value_length padded to whole vectors

  // Where spans of one chunk leave their share: [row][head][chunk - first_chunk] of maximum, sum of weights and
  // value_stride sums. Null: every span has all chunks of its rows.
  float* partials;
  int64_t first_chunk, num_chunks;
};

// A piece of the work: consecutive rows with one offset, consecutive key-value heads, chunks [first_chunk, end_chunk).
struct AttentionSpan {
  int64_t first_row, num_rows, first_kv_head, num_kv_heads, first_chunk, end_chunk;
};

// Runs the whole call on the pool. The caller fills the task up to and including `out`, and has checked every offset,
// position and cell.
void attention(AttentionTask task);

// Scratch memory of the calling thread, 64-byte aligned, valid until its next call.
float* attention_scratch(int64_t num_floats);

}  // namespace shale

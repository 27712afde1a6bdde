// Asks the memory for the next tile of keys and values while one is worked on: the rows of a head lie too far apart for
// the hardware to foresee them.
//
// Called often, for two lines (128 bytes) each time and evenly over the work on a tile: a core has few (10 to 16)
// requests under way, and stands still when more are made at once. (Lines of a tile of 64 positions, 8 heads of 64
// halves, one thread: two at a time 28 GB/s, four 15 to 22, sixteen 13.) Each head of the span asks for its share, in
// long runs over all heads.
#pragma once

#include <cstdint>

#include "attention.h"
#include "register_tile.h"

namespace shale {

template <class V>
class AttentionAhead {
 public:
  // `num_calls`: of fetch, for each head and tile.
  AttentionAhead(const AttentionTask& task, const AttentionSpan& span, const int32_t* cells, int64_t num_calls)
      : task_(task),
        span_(span),
        cells_(cells),
        end_(task.rows[3 * (span.first_row + span.num_rows - 1) + 2]),
        pairs_{num_pairs(task.keys), num_pairs(task.values)} {
    const int64_t pairs_of_head = kTile * (pairs_[0] + pairs_[1]) / span.num_kv_heads;
    calls_between_ = num_calls / pairs_of_head;
    fetches_four_ = num_calls < pairs_of_head;
  }

  // The tile that is next.
  void begin(int64_t tile) {
    next_row_ = num_rows_ = pairs_left_ = 0;
    for (int64_t p = tile; p < tile + kTile && p < end_; ++p) {
      rows_[num_rows_++] = row(task_.keys, p);
      rows_[num_rows_++] = row(task_.values, p);
    }
  }

  // Inlined without any call: a caller has all vector registers in use.
  SHALE_INLINE void fetch() {
    if (--calls_to_go_ > 0) return;
    calls_to_go_ = calls_between_;
    if (pairs_left_ <= 0) {
      if (next_row_ == num_rows_) return;
      at_ = rows_[next_row_];
      pairs_left_ = pairs_[next_row_ & 1];
      ++next_row_;
    }
    __builtin_prefetch(at_, 0, kLocality);
    __builtin_prefetch(at_ + 64, 0, kLocality);
    at_ += 128;
    --pairs_left_;
    if (!fetches_four_) return;
    __builtin_prefetch(at_, 0, kLocality);
    __builtin_prefetch(at_ + 64, 0, kLocality);
    at_ += 128;
    --pairs_left_;
  }

 private:
  // Into the L2 cache: the rows of a head lie a power of two apart, so they would evict one another from the L1 cache.
  static constexpr int kLocality = 2;

  int num_pairs(const CacheView& cache) const {
    return static_cast<int>((span_.num_kv_heads * cache.head_bytes + 127) / 128);
  }
  const uint8_t* row(const CacheView& cache, int64_t position) const {
    return cache.data + (cells_[position] * cache.num_heads + span_.first_kv_head) * cache.head_bytes;
  }

  const AttentionTask& task_;
  const AttentionSpan& span_;
  const int32_t* cells_;
  const int64_t end_;
  const int pairs_[2];  // of a row of keys, of values
  int64_t calls_between_;
  bool fetches_four_;
  int next_row_ = 0, num_rows_ = 0, pairs_left_ = 0;
  int64_t calls_to_go_ = 0;
  const uint8_t* at_ = nullptr;
  const uint8_t* rows_[2 * kTile];  // keys and values of each position in turn
};

}  // namespace shale

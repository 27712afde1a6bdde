// Attention of one span (attention.h): softmax(softcap(q k^T scale)) v over the positions that each row sees.
//
// Layout: as AttentionTask says; no alignment needed. Work goes tile by tile (64 positions): the tile's keys are
// transposed once to float [key_length][64], its values widened once to float [64][value_stride]; both serve every
// query vector of the span, that is all heads of the group times all rows. Bytes: each key and value of the cache is
// read once per span. Operations: 2 (key_length + value_length) a query vector and position, and an exponential.
//
// Rounding: a score is a chain of fused multiply-adds ascending over the key's dimension, in the lane of its position,
// then times scale, then the cap. Each tile: maximum of its visible scores; weights e^(score - running maximum); their
// sum as (v0 + v1) + (v2 + v3) over the tile's four vectors, lanes as a tree; sums = sums * e^(old - new maximum); then
// a chain of fused multiply-adds ascending over the visible positions. A row's operations depend on what the row sees
// and on nothing else in the call.
#pragma once

#include <cstdint>
#include <cstring>

#include "attention.h"
#include "attention_merge.h"
#include "cache_rows.h"
#include "register_tile.h"
#include "vector_math.h"

namespace shale {

inline constexpr int64_t kTileVectors = kTile / 16;
// Dimensions or positions of work between two calls of fetch_ahead.
inline constexpr int kAheadStep = 8;
// Into the L2 cache: the rows of a head lie a power of two apart, so they would evict one another from the L1 cache.
inline constexpr int kAheadLocality = 2;
inline constexpr float kInfinity = __builtin_inff();

// V is the instruction set's vector.
template <class V>
class SpanAttention {
 public:
  SpanAttention(const AttentionTask& task, const AttentionSpan& span)
      : task_(task),
        span_(span),
        group_(task.group),
        queries_per_head_(span.num_rows * group_),
        num_queries_(queries_per_head_ * span.num_kv_heads),
        key_padded_((task.key_length + 15) / 16 * 16),
        value_stride_(task.value_stride),
        cells_(task.cells + task.rows[3 * span.first_row]),
        ahead_lines_(lines_ahead(task)) {
    float* memory = attention_scratch(scratch_floats());
    const auto take = [&memory](int64_t n) {
      float* taken = memory;
      memory += (n + 15) / 16 * 16;
      return taken;
    };
    keys_ = take(key_padded_ * kTile);
    values_ = take(kTile * value_stride_);
    scores_ = take(queries_per_head_ * kTile);
    sums_ = take(num_queries_ * value_stride_);
    total_sums_ = take(num_queries_ * value_stride_);
    maxima_ = take(num_queries_);
    weights_ = take(num_queries_);
    total_maxima_ = take(num_queries_);
    total_weights_ = take(num_queries_);
  }

  void run() {
    for (int64_t chunk = span_.first_chunk; chunk < span_.end_chunk; ++chunk) {
      for (int64_t i = 0; i < num_queries_; ++i) {
        maxima_[i] = -kInfinity;
        weights_[i] = 0.0f;
      }
      std::memset(sums_, 0, static_cast<std::size_t>(num_queries_ * value_stride_) * sizeof(float));
      for (int64_t tile = chunk * kChunk; tile < (chunk + 1) * kChunk; tile += kTile) attend_tile(tile);
      task_.partials != nullptr ? save_chunk(chunk) : merge_chunk(chunk);
    }
    if (task_.partials == nullptr) write_rows();
  }

 private:
  // The positions [first, end) of one tile that a row sees, counted from the tile's start.
  struct Seen {
    int first, end;
    bool none() const { return first >= end; }
  };

  // Lines that each call of fetch_ahead asks for, by the number of calls that a head of the span makes for a tile.
  static int64_t lines_ahead(const AttentionTask& task) {
    const int64_t num_lines = (task.keys.head_bytes + task.values.head_bytes) * kTile / 64;
    const int64_t num_calls =
        kTileVectors * (task.key_length / 16) + task.key_length / kAheadStep + 2 * kTile / kAheadStep;
    return num_lines / num_calls + 1;
  }
  int64_t scratch_floats() const {
    const int64_t tile = (key_padded_ + value_stride_) * kTile;
    return tile + queries_per_head_ * kTile + num_queries_ * (2 * value_stride_ + 4) + 8 * 16;
  }
  const int32_t* row(int64_t r) const { return task_.rows + 3 * (span_.first_row + r); }
  // Query vectors are numbered by key-value head, row, head of the group. Inside a tile, they are those of the
  // key-value head that is being worked on, kv_head_, and the vector's number of all is base_ more.
  int64_t row_of(int64_t i) const { return i % queries_per_head_ / group_; }
  int64_t head_of(int64_t i) const {
    return (span_.first_kv_head + i / queries_per_head_) * group_ + i % queries_per_head_ % group_;
  }
  const float* query(int64_t i) const {
    const int64_t r = span_.first_row + i / group_, head = kv_head_ * group_ + i % group_;
    return task_.q + (r * task_.num_heads + head) * task_.key_length;
  }
  float* sums_of(int64_t i) const { return sums_ + (base_ + i) * value_stride_; }
  Seen seen(int64_t r, int64_t tile) const {
    const int64_t first = row(r)[1] - tile, end = row(r)[2] - tile;
    return {static_cast<int>(first < 0 ? 0 : first), static_cast<int>(end > kTile ? kTile : end)};
  }

  void attend_tile(int64_t tile) {
    int64_t first_row = -1, end_row = 0;
    Seen any{kTile, 0};  // what some row of the span sees of this tile
    for (int64_t r = 0; r < span_.num_rows; ++r) {
      const Seen s = seen(r, tile);
      if (s.none()) continue;
      if (first_row < 0) first_row = r;
      end_row = r + 1;
      if (s.first < any.first) any.first = s.first;
      if (s.end > any.end) any.end = s.end;
    }
    if (first_row < 0) return;
    ahead_tile_ = tile + kTile;
    num_rows_ahead_ = 0;
    ahead_ = ahead_end_ = nullptr;
    for (int64_t h = 0; h < span_.num_kv_heads; ++h) {
      kv_head_ = span_.first_kv_head + h;
      base_ = h * queries_per_head_;
      with_cache_type(task_.keys.type, [&]<CacheType kType>() { load_keys<CacheRows<V, kType>>(tile, any); });
      with_cache_type(task_.values.type, [&]<CacheType kType>() { load_values<CacheRows<V, kType>>(tile, any); });
      attend_head(tile, first_row * group_, (end_row - first_row) * group_);
    }
  }

  void attend_head(int64_t tile, int64_t first, int64_t count) {
    for_row_groups<V>(
        count, [&](int64_t at, int n) { with_constant<V::kTileRows>(n, [&]<int R>() { score<R>(first + at); }); });
    for (int64_t i = first; i < first + count; ++i) {
      const Seen s = seen(i / group_, tile);
      if (!s.none()) weigh(i, s);
    }
    for_row_groups<V>(count, [&](int64_t at, int n) { accumulate_group(first + at, n, tile); });
  }

  const uint8_t* cell_row(const CacheView& cache, int64_t position, int64_t kv_head) const {
    return cache.data + (cells_[position] * cache.num_heads + kv_head) * cache.head_bytes;
  }

  // Asks the memory for the next tile while this one is worked on: rows lie too far apart for the hardware to foresee
  // them. Called often, for a few lines each time, because a core has few (10 to 16) requests under way; each head of
  // the span asks for its share of the lines, in long runs over all heads. (Not split further: GCC 12 takes a function
  // that only prefetches for one without effects, and drops its calls.)
  void fetch_ahead() {
    for (int64_t line = 0; line < ahead_lines_; ++line, ahead_ += 64) {
      if (ahead_ >= ahead_end_ && !next_row_ahead()) return;
      __builtin_prefetch(ahead_, 0, kAheadLocality);
    }
  }

  // Moves on to the next row of the next tile: keys and values of each position in turn. False at the end.
  bool next_row_ahead() {
    const int64_t position = ahead_tile_ + num_rows_ahead_ / 2;
    if (num_rows_ahead_ == 2 * kTile || position >= row(span_.num_rows - 1)[2]) return false;
    const CacheView& cache = num_rows_ahead_++ % 2 == 0 ? task_.keys : task_.values;
    ahead_ = cell_row(cache, position, span_.first_kv_head);
    ahead_end_ = ahead_ + span_.num_kv_heads * cache.head_bytes;
    return true;
  }

  template <class Rows>
  void load_keys(int64_t tile, Seen any) {
    const int64_t length = task_.key_length;
    for (int column = 0; column < kTile; column += 16) {
      if (column + 16 <= any.first || column >= any.end) {
        for (int64_t d = 0; d < key_padded_; ++d) V::zero().store(keys_ + d * kTile + column);
        continue;
      }
      const uint8_t* rows[16];
      for (int i = 0; i < 16; ++i) {  // an unseen position repeats a seen one: its cell may hold anything
        const int p = column + i < any.first ? any.first : column + i >= any.end ? any.end - 1 : column + i;
        rows[i] = cell_row(task_.keys, tile + p, kv_head_);
      }
      for (int64_t d = 0; d < length; d += 16) {
        fetch_ahead();
        alignas(64) float square[16][16];
        const float* parts[16];
        for (int i = 0; i < 16; ++i) {
          const V part =
              d + 16 <= length ? Rows::load(rows[i], d) : Rows::load_first(rows[i], d, static_cast<int>(length - d));
          part.store(square[i]);
          parts[i] = square[i];
        }
        V::transpose(parts, keys_ + d * kTile + column, kTile);
      }
    }
  }

  template <class Rows>
  void load_values(int64_t tile, Seen any) {
    const int64_t length = task_.value_length;
    for (int p = any.first; p < any.end; ++p) {
      if (p % kAheadStep == 0) fetch_ahead();
      const uint8_t* from = cell_row(task_.values, tile + p, kv_head_);
      float* to = values_ + p * value_stride_;
      int64_t d = 0;
      for (; d + 16 <= length; d += 16) Rows::load(from, d).store(to + d);
      if (d < length) Rows::load_first(from, d, static_cast<int>(length - d)).store(to + d);
    }
  }

  // Scores, not yet scaled, of R query vectors against the tile.
  template <int R>
  void score(int64_t first) {
    constexpr int C = V::kTileVectors;
    const float* queries[R];
    for (int r = 0; r < R; ++r) queries[r] = query(first + r);
    for (int column = 0; column < kTile; column += 16 * C) {
      V sums[R][C];
      for (int r = 0; r < R; ++r) {
        for (int c = 0; c < C; ++c) sums[r][c] = V::zero();
      }
      const float* keys = keys_ + column;
      for (int64_t begin = 0; begin < task_.key_length; begin += kAheadStep) {
        fetch_ahead();
        const int64_t end = begin + kAheadStep < task_.key_length ? begin + kAheadStep : task_.key_length;
        for (int64_t d = begin; d < end; ++d, keys += kTile) {
          V key[C];
          for (int c = 0; c < C; ++c) key[c] = V::load(keys + 16 * c);
          for (int r = 0; r < R; ++r) {
            const V x = V::set(queries[r][d]);
            for (int c = 0; c < C; ++c) sums[r][c] = V::fma(x, key[c], sums[r][c]);
          }
        }
      }
      for (int r = 0; r < R; ++r) {
        for (int c = 0; c < C; ++c) sums[r][c].store(scores_ + (first + r) * kTile + column + 16 * c);
      }
    }
  }

  // Turns the scores of one query vector into weights and rescales its sums to the new maximum.
  void weigh(int64_t i, Seen s) {
    float* scores = scores_ + i * kTile;
    V x[kTileVectors];
    for (int c = 0; c < kTileVectors; ++c) {
      x[c] = V::load(scores + 16 * c) * V::set(task_.scale);
      if (task_.softcap != 0.0f) x[c] = V::set(task_.softcap) * tanh(x[c] / V::set(task_.softcap));
    }
    if (s.first > 0 || s.end < kTile) hide_unseen(x, s);
    const float before = maxima_[base_ + i];
    const float tile_maximum = V::max(V::max(x[0], x[1]), V::max(x[2], x[3])).max();
    const float maximum = tile_maximum > before ? tile_maximum : before;
    for (V& value : x) value = exp_nonpositive(value - V::set(maximum));
    for (int c = 0; c < kTileVectors; ++c) x[c].store(scores + 16 * c);
    const float weight = ((x[0] + x[1]) + (x[2] + x[3])).sum();
    if (maximum == before) {
      weights_[base_ + i] += weight;
      return;
    }
    maxima_[base_ + i] = maximum;
    const V fade = exp_nonpositive(V::set(before - maximum));
    weights_[base_ + i] = weights_[base_ + i] * fade.max() + weight;
    float* sums = sums_of(i);
    for (int64_t d = 0; d < value_stride_; d += 16) (V::load(sums + d) * fade).store(sums + d);
  }

  static void hide_unseen(V (&x)[kTileVectors], Seen s) {
    const V never = V::set(-kInfinity);
    for (int c = 0; c < kTileVectors; ++c) {
      const V position = V::iota() + V::set(static_cast<float>(16 * c));
      x[c] = V::select(V::less(position, V::set(static_cast<float>(s.first))), never, x[c]);
      x[c] = V::select(V::less(position, V::set(static_cast<float>(s.end))), x[c], never);
    }
  }

  // Adds the weighted values to the sums of n query vectors: together where all their rows see, alone before and after,
  // so that a value that a row must not see is not even multiplied by zero.
  void accumulate_group(int64_t first, int n, int64_t tile) {
    Seen common{0, kTile};
    for (int r = 0; r < n; ++r) {
      const Seen s = seen((first + r) / group_, tile);
      if (s.first > common.first) common.first = s.first;
      if (s.end < common.end) common.end = s.end;
    }
    if (common.none()) {
      for (int r = 0; r < n; ++r) accumulate<1>(first + r, seen((first + r) / group_, tile));
      return;
    }
    for (int r = 0; r < n; ++r) accumulate<1>(first + r, {seen((first + r) / group_, tile).first, common.first});
    with_constant<V::kTileRows>(n, [&]<int R>() { accumulate<R>(first, common); });
    for (int r = 0; r < n; ++r) accumulate<1>(first + r, {common.end, seen((first + r) / group_, tile).end});
  }

  template <int R>
  void accumulate(int64_t first, Seen range) {
    if (range.none()) return;
    int64_t column = 0;
    for (; column + 16 * V::kTileVectors <= value_stride_; column += 16 * V::kTileVectors) {
      accumulate_columns<R, V::kTileVectors>(first, range, column);
    }
    for (; column < value_stride_; column += 16) accumulate_columns<R, 1>(first, range, column);
  }

  template <int R, int C>
  void accumulate_columns(int64_t first, Seen range, int64_t column) {
    float* at = sums_of(first) + column;
    V sums[R][C];
    for (int r = 0; r < R; ++r) {
      for (int c = 0; c < C; ++c) sums[r][c] = V::load(at + r * value_stride_ + 16 * c);
    }
    const float* weights = scores_ + first * kTile;
    const float* values = values_ + range.first * value_stride_ + column;
    for (int begin = range.first; begin < range.end; begin += kAheadStep) {
      fetch_ahead();
      const int end = begin + kAheadStep < range.end ? begin + kAheadStep : range.end;
      for (int p = begin; p < end; ++p, values += value_stride_) {
        V value[C];
        for (int c = 0; c < C; ++c) value[c] = V::load(values + 16 * c);
        for (int r = 0; r < R; ++r) {
          const V weight = V::set(weights[r * kTile + p]);
          for (int c = 0; c < C; ++c) sums[r][c] = V::fma(weight, value[c], sums[r][c]);
        }
      }
    }
    for (int r = 0; r < R; ++r) {
      for (int c = 0; c < C; ++c) sums[r][c].store(at + r * value_stride_ + 16 * c);
    }
  }

  void save_chunk(int64_t chunk) {
    for (int64_t i = 0; i < num_queries_; ++i) {
      float* to = partial_of<V>(task_, span_.first_row + row_of(i), head_of(i), chunk);
      to[0] = maxima_[i];
      to[1] = weights_[i];
      std::memcpy(to + 2, sums_ + i * value_stride_, static_cast<std::size_t>(value_stride_) * sizeof(float));
    }
  }
  void merge_chunk(int64_t chunk);
  void write_rows();

  const AttentionTask& task_;
  const AttentionSpan& span_;
  const int64_t group_, queries_per_head_, num_queries_, key_padded_, value_stride_;
  const int32_t* cells_;
  int64_t kv_head_ = 0, base_ = 0;
  int64_t ahead_tile_ = 0, num_rows_ahead_ = 0;
  const int64_t ahead_lines_;  // of each call
  const uint8_t *ahead_ = nullptr, *ahead_end_ = nullptr;
  // Scratch. "sums" are weighted sums of values, "weights" the sums of weights, both relative to e^maximum; those of
  // the current chunk and, as total, those of the chunks before it.
  float *keys_, *values_, *scores_, *sums_, *total_sums_, *maxima_, *weights_, *total_maxima_, *total_weights_;
};

template <class V>
void SpanAttention<V>::merge_chunk(int64_t chunk) {
  for (int64_t i = 0; i < num_queries_; ++i) {
    const int32_t* seen_row = row(row_of(i));
    const int64_t first = seen_row[1], end = seen_row[2];
    if (first >= end || first >= (chunk + 1) * kChunk || end <= chunk * kChunk) continue;
    float* total = total_sums_ + i * value_stride_;
    const float* sums = sums_ + i * value_stride_;
    if (first >= chunk * kChunk) {  // the row's first chunk
      total_maxima_[i] = maxima_[i];
      total_weights_[i] = weights_[i];
      std::memcpy(total, sums, static_cast<std::size_t>(value_stride_) * sizeof(float));
    } else {
      merge_share<V>(total_maxima_[i], total_weights_[i], total, maxima_[i], weights_[i], sums, value_stride_);
    }
  }
}

template <class V>
void SpanAttention<V>::write_rows() {
  for (int64_t i = 0; i < num_queries_; ++i) {
    const int64_t r = row_of(i);
    float* out = task_.out + ((span_.first_row + r) * task_.num_heads + head_of(i)) * task_.value_length;
    if (row(r)[1] >= row(r)[2]) {
      std::memset(out, 0, static_cast<std::size_t>(task_.value_length) * sizeof(float));
    } else {
      write_quotient<V>(total_sums_ + i * value_stride_, total_weights_[i], out, task_.value_length);
    }
  }
}

template <class V>
void attend(const AttentionTask& task, const AttentionSpan& span) {
  SpanAttention<V>(task, span).run();
}

}  // namespace shale

// Attention of one span (attention.h): softmax(softcap(q k^T scale)) v over the positions that each row sees.
//
// Layout: as AttentionTask says; no alignment needed. Work goes tile by tile (64 positions), head by head. Where few
// query vectors see a tile, keys and values are widened in registers as they are read from the cells; otherwise once
// for all, to float in scratch memory. Bytes: each key and value of the cache is read once per span. Operations:
// 2 (key_length + value_length) a query vector and position, and an exponential.
//
// Rounding: scores and sums as attention_products.h says; a score that is capped is multiplied by scale first. Each
// tile: maximum of its visible scores; weights e^(score * scale - running maximum), fused; their sum as (v0 + v1) + (v2
// + v3) over the tile's four vectors, lanes as a tree; sums = sums * e^(old - new maximum); then the visible values. A
// row's operations depend on what the row sees and on nothing else in the call.
#pragma once

#include <cstdint>
#include <cstring>

#include "attention.h"
#include "attention_ahead.h"
#include "attention_merge.h"
#include "attention_products.h"
#include "attention_sources.h"
#include "register_tile.h"
#include "vector_math.h"

namespace shale {

inline constexpr int64_t kTileVectors = kTile / 16;
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
        key_padded_((task.key_length + kKeyPad - 1) / kKeyPad * kKeyPad),
        value_stride_(task.value_stride),
        cells_(task.cells + task.rows[3 * span.first_row]),
        ahead_(task, span, cells_, num_ahead_calls()) {
    float* memory = attention_scratch(scratch_floats());
    const auto take = [&memory](int64_t n) {
      float* taken = memory;
      memory += (n + 15) / 16 * 16;
      return taken;
    };
    queries_ = take(num_queries_ * key_padded_);
    keys_ = take(key_padded_ * kTile);
    values_ = take(kTile * value_stride_);
    scores_ = take(queries_per_head_ * kTile);
    sums_ = take(num_queries_ * value_stride_);
    total_sums_ = take(num_queries_ * value_stride_);
    maxima_ = take(num_queries_);
    weights_ = take(num_queries_);
    total_maxima_ = take(num_queries_);
    total_weights_ = take(num_queries_);
    copy_queries();
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
    bool operator==(const Seen&) const = default;
  };

  // Calls of ahead_.fetch for a head of a tile that all rows see.
  int64_t num_ahead_calls() const {
    const int64_t num_tiles = (queries_per_head_ + V::kTileRows - 1) / V::kTileRows, num_quads = key_padded_ / 4;
    if (!reads_cells(span_.num_rows)) return num_tiles * kTileVectors * (num_quads / TileKeySource<V>::kStepsBetween);
    int64_t calls = kTile * (task_.value_length / 16 + V::kTileVectors - 1) / V::kTileVectors;
    with_cache_type(task_.keys.type, [&]<CacheType kType>() {
      using Source = CellKeySource<V, kType>;
      calls += kTileVectors * (4 / Source::kVectors) * (num_quads / Source::kStepsBetween);
    });
    return calls;
  }
  // Whether keys and values that this many rows see are read from the cells as they are needed.
  bool reads_cells(int64_t num_rows) const {
    return num_rows * group_ <= V::kTileRows && task_.key_length % kKeyPad == 0 && task_.value_length % 16 == 0;
  }
  int64_t scratch_floats() const {
    const int64_t tile = (key_padded_ + value_stride_) * kTile;
    return tile + queries_per_head_ * kTile + num_queries_ * (key_padded_ + 2 * value_stride_ + 4) + 10 * 16;
  }
  const int32_t* row(int64_t r) const { return task_.rows + 3 * (span_.first_row + r); }
  // Query vectors are numbered by key-value head, row, head of the group. Inside a tile, they are those of the
  // key-value head that is being worked on, and the vector's number of all is base_ more.
  int64_t row_of(int64_t i) const { return i % queries_per_head_ / group_; }
  int64_t head_of(int64_t i) const {
    return (span_.first_kv_head + i / queries_per_head_) * group_ + i % queries_per_head_ % group_;
  }
  float* sums_of(int64_t i) const { return sums_ + (base_ + i) * value_stride_; }
  Seen seen(int64_t r) const {
    const int64_t first = row(r)[1] - tile_, end = row(r)[2] - tile_;
    return {static_cast<int>(first < 0 ? 0 : first), static_cast<int>(end > kTile ? kTile : end)};
  }

  void copy_queries() {
    const auto bytes = static_cast<std::size_t>(task_.key_length) * sizeof(float);
    for (int64_t i = 0; i < num_queries_; ++i) {
      const int64_t r = span_.first_row + row_of(i);
      float* to = queries_ + i * key_padded_;
      std::memcpy(to, task_.q + (r * task_.num_heads + head_of(i)) * task_.key_length, bytes);
      for (int64_t d = task_.key_length; d < key_padded_; ++d) to[d] = 0.0f;
    }
  }

  void attend_tile(int64_t tile) {
    first_row_ = -1;
    any_ = {kTile, 0};
    tile_ = tile;
    bool is_even = true;
    for (int64_t r = 0; r < span_.num_rows; ++r) {
      const Seen s = seen(r);
      if (s.none()) continue;
      is_even = is_even && (first_row_ < 0 || (s == any_ && r == end_row_));
      if (first_row_ < 0) first_row_ = r;
      end_row_ = r + 1;
      if (s.first < any_.first) any_.first = s.first;
      if (s.end > any_.end) any_.end = s.end;
    }
    if (first_row_ < 0) return;
    is_even_ = is_even;
    find_cells();
    ahead_.begin(tile + kTile);
    const bool from_cells = reads_cells(end_row_ - first_row_);
    for (int64_t h = 0; h < span_.num_kv_heads; ++h) {
      base_ = h * queries_per_head_;
      key_head_ = (span_.first_kv_head + h) * task_.keys.head_bytes;
      value_head_ = (span_.first_kv_head + h) * task_.values.head_bytes;
      from_cells ? attend_cells() : attend_copy();
    }
  }

  // Where the cells of the tile's positions lie. An unseen one repeats a seen one: its cell may hold anything.
  void find_cells() {
    const int64_t key_bytes = task_.keys.num_heads * task_.keys.head_bytes;
    const int64_t value_bytes = task_.values.num_heads * task_.values.head_bytes;
    for (int i = any_.first / 16 * 16; i < (any_.end + 15) / 16 * 16; ++i) {
      const int p = i < any_.first ? any_.first : i >= any_.end ? any_.end - 1 : i;
      const int64_t cell = cells_[tile_ + p];
      key_cells_[i] = task_.keys.data + cell * key_bytes;
      value_cells_[i] = task_.values.data + cell * value_bytes;
    }
  }

  // f(block) for each sixteen positions of which some row sees one.
  template <class F>
  void for_blocks(F&& f) const {
    for (int block = any_.first / 16 * 16; block < any_.end; block += 16) f(block);
  }

  // Straight from the cells.
  void attend_cells() {
    with_cache_type(task_.keys.type, [&]<CacheType kType>() {
      for_blocks([&](int block) { score_block(CellKeySource<V, kType>{key_cells_ + block, key_head_}, block); });
    });
    weigh_rows();
    with_cache_type(task_.values.type,
                    [&]<CacheType kType>() { accumulate_rows(CellValueSource<V, kType>{value_cells_, value_head_}); });
  }

  // By way of a tile in scratch memory.
  void attend_copy() {
    with_cache_type(task_.keys.type, [&]<CacheType kType>() {
      for_blocks([&](int block) {
        copy_keys<V, kType>(key_cells_ + block, key_head_, task_.key_length, key_padded_, keys_ + block * key_padded_);
      });
    });
    with_cache_type(task_.values.type, [&]<CacheType kType>() {
      copy_values<V, kType>(value_cells_, value_head_, task_.value_length, any_.first, any_.end, values_,
                            value_stride_);
    });
    for_blocks([&](int block) { score_block(TileKeySource<V>{keys_ + block * key_padded_}, block); });
    weigh_rows();
    accumulate_rows(TileValueSource<V>{values_, value_stride_});
  }

  // Calls f(first, count) for the query vectors of the rows that see the tile, cut into register tiles.
  template <class F>
  void for_queries(F&& f) const {
    const int64_t first = first_row_ * group_;
    for_row_groups<V>((end_row_ - first_row_) * group_, [&](int64_t at, int n) { f(first + at, n); });
  }

  // Scores, not yet scaled, of the query vectors against sixteen positions from `block` on.
  template <class Source>
  void score_block(const Source& source, int block) {
    for_queries([&](int64_t i, int n) {
      with_constant<V::kTileRows>(n, [&]<int R>() {
        score<V, R>(source, queries_ + (base_ + i) * key_padded_, key_padded_, key_padded_, scores_ + i * kTile + block,
                    kTile, [this] { ahead_.fetch(); });
      });
    });
  }

  void weigh_rows() {
    for (int64_t r = first_row_; r < end_row_; ++r) {
      const Seen s = is_even_ ? any_ : seen(r);
      if (s.none()) continue;
      for (int64_t i = r * group_; i < (r + 1) * group_; ++i) weigh(i, s);
    }
  }

  // Turns the scores of one query vector into weights and rescales its sums to the new maximum.
  void weigh(int64_t i, Seen s) {
    float* scores = scores_ + i * kTile;
    V x[kTileVectors];
    for (int c = 0; c < kTileVectors; ++c) x[c] = V::load(scores + 16 * c);
    float scale = task_.scale;
    if (task_.softcap != 0.0f || !(scale > 0.0f)) {
      for (V& score : x) score = score * V::set(scale);
      if (task_.softcap != 0.0f) cap(x, V::set(task_.softcap));
      scale = 1.0f;
    }
    if (s.first > 0 || s.end < kTile) hide_unseen(x, s);
    const float before = maxima_[base_ + i];
    const float tile_maximum = V::max(V::max(x[0], x[1]), V::max(x[2], x[3])).max() * scale;
    const float maximum = tile_maximum > before ? tile_maximum : before;
    for (V& score : x) score = exp_nonpositive(V::fma(score, V::set(scale), V::set(-maximum)));
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

  static void cap(V (&x)[kTileVectors], V limit) {
    for (V& score : x) score = limit * tanh(score / limit);
  }

  static void hide_unseen(V (&x)[kTileVectors], Seen s) {
    const V never = V::set(-kInfinity);
    for (int c = 0; c < kTileVectors; ++c) {
      const V position = V::iota() + V::set(static_cast<float>(16 * c));
      x[c] = V::select(V::less(position, V::set(static_cast<float>(s.first))), never, x[c]);
      x[c] = V::select(V::less(position, V::set(static_cast<float>(s.end))), x[c], never);
    }
  }

  template <class Source>
  void accumulate_rows(const Source& source) {
    for_queries([&](int64_t i, int n) {
      if (!is_even_) return accumulate_group(source, i, n);
      with_constant<V::kTileRows>(n, [&]<int R>() { add_values<R>(source, i, any_); });
    });
  }

  // Adds the weighted values to the sums of n query vectors: together where all their rows see, alone before and after,
  // so that a value that a row must not see is not even multiplied by zero.
  template <class Source>
  void accumulate_group(const Source& source, int64_t first, int n) {
    Seen common{0, kTile};
    for (int r = 0; r < n; ++r) {
      const Seen s = seen((first + r) / group_);
      if (s.first > common.first) common.first = s.first;
      if (s.end < common.end) common.end = s.end;
    }
    if (common.none()) {
      for (int r = 0; r < n; ++r) add_values<1>(source, first + r, seen((first + r) / group_));
      return;
    }
    for (int r = 0; r < n; ++r) add_values<1>(source, first + r, {seen((first + r) / group_).first, common.first});
    with_constant<V::kTileRows>(n, [&]<int R>() { add_values<R>(source, first, common); });
    for (int r = 0; r < n; ++r) add_values<1>(source, first + r, {common.end, seen((first + r) / group_).end});
  }

  template <int R, class Source>
  void add_values(const Source& source, int64_t i, Seen range) {
    if (range.none()) return;
    const auto fetch = [this] { ahead_.fetch(); };
    const float* weights = scores_ + i * kTile;
    constexpr int C = V::kTileVectors;
    int64_t d = 0;
    for (; d + 16 * C <= value_stride_; d += 16 * C) {
      accumulate<V, R, C>(source, weights, kTile, range.first, range.end, d, sums_of(i), value_stride_, fetch);
    }
    for (; d < value_stride_; d += 16) {
      accumulate<V, R, 1>(source, weights, kTile, range.first, range.end, d, sums_of(i), value_stride_, fetch);
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
  AttentionAhead<V> ahead_;
  // Of the tile: rows [first_row_, end_row_) see it, any_ is what some row sees; even: they all see that.
  int64_t tile_ = 0, first_row_ = 0, end_row_ = 0;
  Seen any_{0, 0};
  bool is_even_ = false;
  int64_t base_ = 0, key_head_ = 0, value_head_ = 0;  // of the head: its first query vector, its place in a cell
  const uint8_t *key_cells_[kTile], *value_cells_[kTile];
  // Scratch. "sums" are weighted sums of values, "weights" the sums of weights, both relative to e^maximum; those of
  // the current chunk and, as total, those of the chunks before it.
  float *queries_, *keys_, *values_, *scores_, *sums_, *total_sums_, *maxima_, *weights_, *total_maxima_,
      *total_weights_;
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

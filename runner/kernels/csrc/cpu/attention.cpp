#include "attention.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "ops.h"
#include "pool.h"

namespace shale {
namespace {

// Query vectors (rows x heads of a group) that share one copy of a tile. More amortise the copy better, until queries,
// scores and sums leave the L2 cache: 256 vectors of 64 take 260 KiB. (512 rows, GFLOPS: 8192 floats 169 and 187 for
// heads of 64 and 128, 16384: 175 and 194, 32768: 172 and 182.)
constexpr int64_t kBlockFloats = 16384;
// Below this many multiply-adds the whole call takes less than about 5 us, what waking a thread costs.
constexpr int64_t kMinParallelProducts = 1 << 18;
// A block with at most this many query vectors for each key-value head waits for memory rather than for arithmetic.
constexpr int64_t kFewQueries = 32;
// Pieces for each thread without which the last ones leave threads idle.
constexpr int64_t kPiecesPerThread = 4;

struct Row {
  int64_t offset, first, end;
  bool empty() const { return first >= end; }
};

Row row_at(const AttentionTask& task, int64_t t) {
  const int32_t* row = task.rows + 3 * t;
  return {row[0], row[1], row[2]};
}

struct Block {
  int64_t first_row, num_rows, first_chunk, end_chunk;
  int64_t num_chunks() const { return end_chunk - first_chunk; }
};

// Consecutive rows of one offset, as many as a block may have.
std::vector<Block> blocks_of(const AttentionTask& task) {
  const int64_t floats_per_row = task.group * std::max(task.key_length, task.value_length);
  const int64_t max_rows = std::max<int64_t>(1, kBlockFloats / floats_per_row);
  std::vector<Block> blocks;
  for (int64_t begin = 0; begin < task.num_rows;) {
    const int64_t offset = row_at(task, begin).offset;
    int64_t first = INT64_MAX, end = 0, t = begin;
    for (; t < task.num_rows && t - begin < max_rows && row_at(task, t).offset == offset; ++t) {
      const Row row = row_at(task, t);
      if (row.empty()) continue;
      first = std::min(first, row.first);
      end = std::max(end, row.end);
    }
    first = std::min(first, end);
    blocks.push_back({begin, t - begin, first / kChunk, (end + kChunk - 1) / kChunk});
    begin = t;
  }
  return blocks;
}

int64_t num_products(const AttentionTask& task) {
  int64_t positions = 0;
  for (int64_t t = 0; t < task.num_rows; ++t) {
    const Row row = row_at(task, t);
    if (!row.empty()) positions += row.end - row.first;
  }
  return positions * task.num_heads * (task.key_length + task.value_length);
}

// Whether whole rows would leave threads idle.
bool should_split_chunks(const AttentionTask& task, const std::vector<Block>& blocks, int64_t wanted_pieces) {
  int64_t num_pieces = 0, most_chunks = 0;
  for (const Block& block : blocks) {
    num_pieces += block.num_rows * task.group <= kFewQueries ? 1 : task.num_kv_heads;
    most_chunks = std::max(most_chunks, block.num_chunks());
  }
  return num_pieces < wanted_pieces && most_chunks > 1;
}

// Makes room for the shares of single chunks, from the first to the last that any block sees.
void prepare_partials(AttentionTask& task, const std::vector<Block>& blocks, std::vector<float>& partials) {
  int64_t first = INT64_MAX, end = 0;
  for (const Block& block : blocks) {
    if (block.num_chunks() == 0) continue;
    first = std::min(first, block.first_chunk);
    end = std::max(end, block.end_chunk);
  }
  task.first_chunk = first;
  task.num_chunks = end - first;
  const int64_t num_partials = task.num_rows * task.num_heads * task.num_chunks;
  partials.resize(static_cast<std::size_t>(num_partials * (task.value_stride + 2)));
  task.partials = partials.data();
}

// Spans of a block of few rows have as many heads as leave enough pieces: the caches are then read in long runs, at
// twice the speed of rows of single heads. With many rows the work hides the memory, and one head fills the L2 cache.
std::vector<AttentionSpan> spans_of(const AttentionTask& task, const std::vector<Block>& blocks, bool by_chunk,
                                    int64_t num_pieces) {
  int64_t num_units = 0;
  for (const Block& block : blocks) num_units += by_chunk ? block.num_chunks() : 1;
  const int64_t shared_heads = std::clamp<int64_t>(num_units * task.num_kv_heads / num_pieces, 1, task.num_kv_heads);
  std::vector<AttentionSpan> spans;
  // Last rows first: under a causal mask they see most, and a long piece at the end would run alone.
  for (auto block = blocks.rbegin(); block != blocks.rend(); ++block) {
    const int64_t num_heads = block->num_rows * task.group <= kFewQueries ? shared_heads : 1;
    const int64_t step = by_chunk ? 1 : std::max<int64_t>(1, block->num_chunks());
    for (int64_t chunk = block->first_chunk; chunk < std::max(block->end_chunk, block->first_chunk + 1);
         chunk += step) {
      for (int64_t head = 0; head < task.num_kv_heads; head += num_heads) {
        spans.push_back({block->first_row, block->num_rows, head, std::min(num_heads, task.num_kv_heads - head), chunk,
                         std::min(chunk + step, block->end_chunk)});
      }
    }
  }
  return spans;
}

template <class F>
void run_pieces(int64_t num_pieces, bool parallel, F&& f) {
  if (parallel) return Pool::instance().run(num_pieces, [&](int64_t piece, int) { f(piece); });
  for (int64_t piece = 0; piece < num_pieces; ++piece) f(piece);
}

}  // namespace

void attention(AttentionTask task) {
  task.group = task.num_heads / task.num_kv_heads;
  task.value_stride = (task.value_length + 15) / 16 * 16;
  task.partials = nullptr;
  const OpTable& table = ops();
  const Pool& pool = Pool::instance();
  const bool parallel = pool.size() > 1 && num_products(task) >= kMinParallelProducts;
  const int64_t wanted_pieces = parallel ? kPiecesPerThread * pool.size() : 1;
  const std::vector<Block> blocks = blocks_of(task);
  const bool by_chunk = should_split_chunks(task, blocks, wanted_pieces);
  std::vector<float> partials;
  if (by_chunk) prepare_partials(task, blocks, partials);

  const std::vector<AttentionSpan> spans = spans_of(task, blocks, by_chunk, wanted_pieces);
  run_pieces(static_cast<int64_t>(spans.size()), parallel,
             [&](int64_t piece) { table.attend(task, spans[static_cast<std::size_t>(piece)]); });
  if (!by_chunk) return;
  run_pieces(task.num_rows * task.num_kv_heads, parallel, [&](int64_t piece) {
    const int64_t row = piece / task.num_kv_heads, first_head = piece % task.num_kv_heads * task.group;
    for (int64_t i = 0; i < task.group; ++i) table.merge_chunks(task, row, first_head + i);
  });
}

float* attention_scratch(int64_t num_floats) {
  struct Free {
    void operator()(float* memory) const { ::operator delete[](memory, std::align_val_t(64)); }
  };
  thread_local std::unique_ptr<float[], Free> memory;
  thread_local int64_t capacity = 0;
  if (num_floats > capacity) {
    memory.reset(static_cast<float*>(
        ::operator new[](static_cast<std::size_t>(num_floats) * sizeof(float), std::align_val_t(64))));
    capacity = num_floats;
  }
  return memory.get();
}

}  // namespace shale

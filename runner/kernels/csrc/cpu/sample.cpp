#include "sample.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <functional>
#include <vector>

#include "ops.h"
#include "pool.h"

namespace shale {
namespace {

// Larger is better: the float's order in the high half (NaN lowest, -0 and 0 equal), the lower id first in the low
// half.
uint64_t rank_of(float value, int64_t id) {
  uint32_t bits;
  value += 0.0f;  // -0 becomes 0
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t order = std::isnan(value) ? 0 : (bits & 0x80000000) != 0 ? ~bits : bits | 0x80000000;
  return static_cast<uint64_t>(order) << 32 | static_cast<uint32_t>(~static_cast<uint32_t>(id));
}

int32_t id_of(uint64_t rank) { return static_cast<int32_t>(~static_cast<uint32_t>(rank)); }

// Sorts descending by the high half, keeping the order of equals: three rounds of counting by 11 bits. A vocabulary of
// 128k takes a fifth of what std::sort takes.
void sort_ranks(std::vector<uint64_t>& ranks) {
  constexpr int kDigitBits = 11, kNumDigits = 3, kBuckets = 1 << kDigitBits;
  std::vector<uint64_t> sorted(ranks.size());
  for (int digit = 0; digit < kNumDigits; ++digit) {
    const int shift = 32 + digit * kDigitBits;
    const auto bucket = [shift](uint64_t rank) { return (~rank >> shift) & (kBuckets - 1); };
    std::array<std::size_t, kBuckets + 1> begin{};
    for (const uint64_t rank : ranks) ++begin[bucket(rank) + 1];
    for (std::size_t b = 1; b < begin.size(); ++b) begin[b] += begin[b - 1];
    for (const uint64_t rank : ranks) sorted[begin[bucket(rank)]++] = rank;
    ranks.swap(sorted);
  }
}

void write_best(const std::vector<uint64_t>& ranks, const float* logits, int64_t k, int32_t* ids, float* values) {
  for (int64_t i = 0; i < k; ++i) {
    ids[i] = id_of(ranks[static_cast<std::size_t>(i)]);
    values[i] = logits[ids[i]];
  }
}

void top_k_by_sorting(const float* logits, int64_t n, int64_t k, int32_t* ids, float* values) {
  std::vector<uint64_t> ranks(static_cast<std::size_t>(n));
  for (int64_t id = 0; id < n; ++id) ranks[static_cast<std::size_t>(id)] = rank_of(logits[id], id);
  sort_ranks(ranks);
  write_best(ranks, logits, k, ids, values);
}

// Values read before the first threshold is set, and the least number of candidates between two thresholds.
constexpr int64_t kMinCandidates = 4096;

// Values of one partial sum of log_sum_exp: fixed, so that the order of the whole sum is.
constexpr int64_t kPart = 16384;

}  // namespace

// Keeps the k best so far; their worst is a threshold that a vector pass compares with, so that few values are looked
// at twice. Of equal values the first read has the lower id, so only strictly greater ones count.
void top_k(const float* logits, int64_t n, int64_t k, int32_t* ids, float* values) {
  const int64_t room = std::max(3 * k, kMinCandidates);
  if (k + room > n) return top_k_by_sorting(logits, n, k, ids, values);
  std::vector<uint64_t> best(static_cast<std::size_t>(k + room));
  std::vector<int32_t> found(static_cast<std::size_t>(room));
  int64_t count = room, position = room;
  for (int64_t id = 0; id < room; ++id) best[static_cast<std::size_t>(id)] = rank_of(logits[id], id);
  for (;;) {
    std::nth_element(best.begin(), best.begin() + (k - 1), best.begin() + count, std::greater<>());
    const float threshold = logits[id_of(best[static_cast<std::size_t>(k - 1)])];
    if (std::isnan(threshold)) return top_k_by_sorting(logits, n, k, ids, values);
    if (position == n) break;
    const int64_t num_found = ops().find_greater(logits, &position, n, threshold, found.data(), room);
    count = k;
    for (int64_t i = 0; i < num_found; ++i) {
      const int32_t id = found[static_cast<std::size_t>(i)];
      best[static_cast<std::size_t>(count++)] = rank_of(logits[id], id);
    }
  }
  std::sort(best.begin(), best.begin() + k, std::greater<>());
  write_best(best, logits, k, ids, values);
}

double log_sum_exp(const float* logits, int64_t n) {
  const OpTable& table = ops();
  const int64_t num_parts = (n + kPart - 1) / kPart;
  const auto part_size = [n](int64_t part) { return std::min(kPart, n - part * kPart); };
  std::vector<float> maxima(static_cast<std::size_t>(num_parts));
  std::vector<double> sums(static_cast<std::size_t>(num_parts));
  Pool& pool = Pool::instance();
  pool.run(num_parts, [&](int64_t part, int) {
    maxima[static_cast<std::size_t>(part)] = table.max_value(logits + part * kPart, part_size(part));
  });
  float highest = maxima[0];
  for (const float maximum : maxima) highest = maximum > highest || std::isnan(highest) ? maximum : highest;
  if (std::isinf(highest)) return highest;
  pool.run(num_parts, [&](int64_t part, int) {
    sums[static_cast<std::size_t>(part)] = table.sum_exp(logits + part * kPart, part_size(part), highest);
  });
  double total = 0.0;
  for (const double sum : sums) total += sum;
  return static_cast<double>(highest) + std::log(total);
}

}  // namespace shale

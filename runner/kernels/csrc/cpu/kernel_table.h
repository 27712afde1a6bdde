// What an instruction set offers to the matrix products: one table of functions per translation unit.
#pragma once

#include <cstdint>
#include <span>

#include "isa.h"
#include "quant_types.h"

namespace shale {

// Activations of `width` tokens, quantized to int8 by blocks of 32: scale = max|x| / 127, q = rint(x * (127 / max|x|)).
// Only `num_tokens` of them are real, the others are zero and their results are not stored. Every array is ordered
// (block, token), so that a tile is read as one stream; columns are padded with zero blocks to a multiple of 256.
struct Tile {
  int num_tokens, width;
  int64_t first_token;  // row of x and of the outputs
  int64_t num_blocks;   // of 32, without the padding
  int32_t* q;           // (block, width, 8): four int8 a word
  float* scale;         // (block, width)
  float* sum;           // (block, width): scale * (sum of q)
  float* half_sum;      // (block, 2, width): the same of each 16
  int32_t* count;       // (block, width): -(sum of q)
  int32_t* half_count;  // (block, 2, width)
};

constexpr int64_t num_padded_blocks(int64_t cols) { return (cols + 255) / 256 * 8; }

// One matrix product: out[t][r] = sum over c of w[r][c] * x[t][c], plus bias[r]. x and out are row-major.
struct Product {
  const uint8_t* panels;  // packed weights, 64-byte aligned
  int64_t panel_bytes, rows, cols;
  int64_t prefetch_bytes;  // ahead of the reader that weights are asked for
  const Tile* tiles;       // for quantized types
  int num_tiles;
  const float* x;                  // for float types
  int64_t first_token, end_token;  // the tiles' tokens; x, out and the tiles count from 0
  const float* bias;               // or null
  float* out;                      // (tokens, rows)
};

// Multiplies the panels [begin, end). scratch: kScratchBytes of this thread's own, 64-byte aligned.
using Multiply = void (*)(const Product& product, int64_t begin, int64_t end, uint8_t* scratch);

// Panels unpacked together, and columns of them at a time, so that codes and scales stay in a second-level cache of 1
// MiB and a tile's activations are read once for all of them.
inline constexpr int kPanelsPerPass = 8;
inline constexpr int64_t kColumnsPerPass = 2048;
inline constexpr int64_t kScratchBytes =
    kPanelsPerPass * kColumnsPerPass / kBlock * (kPanelRows * kBlock + 2 * 2 * kPanelRows * int64_t{sizeof(float)});

// One of the two forms of a product, which give the same bytes.
struct FormTable {
  std::span<const int> widths;  // of tiles, ascending
  void (*quantize)(const float* x, int64_t cols, const Tile& tile);
  Multiply multiply[kNumTypes];  // by the type's place in QuantTypes, then FloatTypes
};

struct KernelTable {
  FormTable direct;  // unpacks in registers
  FormTable panel;   // unpacks into scratch, once for all tiles
};

inline constexpr int kDirectWidths[] = {1, 2, 3, 4, 6, 8};
inline constexpr int kPanelWidths[] = {4, 5, 6};

extern const KernelTable kPortableKernels, kAvx2Kernels, kAvxVnniKernels, kAvx512VnniKernels;
extern const FormTable kAmxPanelKernels;  // the direct form is kAvx512VnniKernels's

}  // namespace shale

// Packing GGUF rows into panels (layout: quant_types.h), and the run-time table of the types that can be packed.
#pragma once

#include <cstdint>
#include <string>

namespace shale {

struct StoredType {
  const char* name;
  int id;              // in GGUF
  int columns, bytes;  // of a GGUF block
  bool is_quantized;
  int64_t (*panel_bytes)(int64_t cols);  // a multiple of 64
  // rows (1 ... 16) of `row_bytes` bytes to one panel; missing rows become zero.
  void (*pack_panel)(const uint8_t* source, int64_t row_bytes, int rows, int64_t cols, uint8_t* panel);
  // one GGUF row as float, each value times `factor`
  void (*dequantize_row)(const uint8_t* row, int64_t cols, float factor, float* out);

  int64_t row_bytes(int64_t cols) const { return cols / columns * bytes; }
};

inline constexpr int64_t num_panels(int64_t rows) { return (rows + 15) / 16; }

// The type's place in the kernels' tables, or -1.
int find_type(int id) noexcept;
const StoredType& stored_type(int index) noexcept;
std::string known_types();  // "Q4_0 (2), …"

// Packs all rows, in parallel. `storage` holds num_panels(rows) * panel_bytes(cols) bytes, aligned to 64.
void pack_rows(const StoredType& type, int64_t rows, int64_t cols, const uint8_t* source, uint8_t* storage);

// out[t] = row ids[t] of the raw rows, times factor. Every id must lie within the rows.
void embed_rows(const StoredType& type, const uint8_t* source, int64_t cols, const int32_t* ids, int64_t num_ids,
                float factor, float* out);

}  // namespace shale

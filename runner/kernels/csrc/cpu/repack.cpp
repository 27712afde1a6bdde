// GGUF rows to panels. Reads every byte of the source once and writes every byte of the panel once, unit by unit, so
// that a unit of 16 rows stays in the first-level cache while its rows are woven into each other.
#include "repack.h"

#include <array>
#include <cstring>
#include <utility>

#include "dequantize.h"
#include "gguf_blocks.h"
#include "pool.h"
#include "quant_types.h"

namespace shale {
namespace {

void store_u32(uint8_t* p, uint32_t value) { std::memcpy(p, &value, sizeof(value)); }

// The codes of 32 columns of one row into that row's places in the planes. Four columns are one word, as in the panel.
template <Planes kPlanes>
void store_codes(const Codes& codes, uint8_t* planes, int row) {
  constexpr bool has_nibbles =
      kPlanes == Planes::nibble || kPlanes == Planes::nibble_bit || kPlanes == Planes::nibble_pair;
  constexpr bool has_pairs = kPlanes == Planes::pair || kPlanes == Planes::pair_bit || kPlanes == Planes::nibble_pair;
  constexpr bool has_bits = kPlanes == Planes::nibble_bit || kPlanes == Planes::pair_bit;
  uint32_t word[8];
  std::memcpy(word, codes, sizeof(word));
  planes += 4 * row;
  if constexpr (kPlanes == Planes::byte) {
    for (int g = 0; g < 8; ++g) store_u32(planes + g * kLine, word[g]);
  }
  if constexpr (has_nibbles) {
    for (int j = 0; j < 4; ++j, planes += kLine) {
      store_u32(planes, (word[j] & 0x0f0f0f0f) | (word[j + 4] & 0x0f0f0f0f) << 4);
    }
    for (uint32_t& w : word) w >>= 4;  // what is left are the high bits; those that cross bytes are masked below
  }
  if constexpr (has_pairs) {
    for (int h = 0; h < 2; ++h, planes += kLine) {
      uint32_t pairs = 0;
      for (int f = 0; f < 4; ++f) pairs |= (word[4 * h + f] & 0x03030303) << 2 * f;
      store_u32(planes, pairs);
    }
    for (uint32_t& w : word) w >>= 2;
  }
  if constexpr (has_bits) {
    uint32_t bits = 0;
    for (int g = 0; g < 8; ++g) bits |= (word[g] & 0x01010101) << g;
    store_u32(planes, bits);
  }
}

void copy_half(const uint8_t* from, uint8_t* to, int row) { std::memcpy(to + 2 * row, from, 2); }

// The inverse of read_six_bit in unpack.h, for one row.
void store_six_bit(const uint8_t (&six)[16], uint8_t* lines, int row) {
  for (int j = 0; j < 4; ++j) {
    for (int line = 0; line < 3; ++line) {
      const int piece = six[12 + j] >> 2 * line & 3;
      lines[line * kLine + 16 * j + row] = static_cast<uint8_t>(six[4 * line + j] | piece << 6);
    }
  }
}

// One GGUF block's scales into the unit's header; `index` is the block's place in the unit. UnitScales in unpack.h
// reads it.
template <class Q>
void store_scales(const uint8_t* block, int index, int row, uint8_t* header) {
  if constexpr (Q::id == MXFP4::id) {
    header[16 * index + row] = block[0];
  } else if constexpr (Q::id == Q4_1::id || Q::id == Q5_1::id) {
    copy_half(block, header + 32 * index, row);
    const uint8_t negated[2] = {block[2], static_cast<uint8_t>(block[3] ^ 0x80)};
    copy_half(negated, header + kLine + 32 * index, row);
  } else if constexpr (Q::id == Q2_K::id) {
    copy_half(block + 80, header, row);
    copy_half(block + 82, header + 32, row);
    for (int s = 0; s < 16; ++s) header[kLine + 16 * s + row] = block[s];
  } else if constexpr (Q::id == Q3_K::id) {
    copy_half(block + 108, header, row);
    uint8_t six[16];
    GgufBlock<Q3_K>::six_bit(block, six);
    store_six_bit(six, header + kLine, row);
  } else if constexpr (Q::id == Q4_K::id || Q::id == Q5_K::id) {
    copy_half(block, header, row);
    copy_half(block + 2, header + 32, row);
    uint8_t six[16];
    read_super_scales(block + 4, six);
    store_six_bit(six, header + kLine, row);
  } else if constexpr (Q::id == Q6_K::id) {
    copy_half(block + 208, header, row);
    for (int s = 0; s < 16; ++s) header[kLine + 16 * s + row] = block[192 + s];
  } else if constexpr (Q::id == IQ4_XS::id) {
    copy_half(block, header, row);
    for (int i = 0; i < 8; ++i) {
      const int six = GgufBlock<IQ4_XS>::six_bit(block, i);
      uint8_t &high = header[32 + 16 * (i % 2) + row], &low = header[kLine + 16 * (i % 4) + row];
      high = static_cast<uint8_t>(high | six >> 4 << i / 2 * 2);
      low = static_cast<uint8_t>(low | (six & 15) << i / 4 * 4);
    }
  } else {
    copy_half(block, header + 32 * index, row);
  }
}

template <class Q>
void pack_block(const uint8_t* block, int index, int row, uint8_t* unit) {
  store_scales<Q>(block, index, row, unit);
  for (int i = 0; i < Q::columns / kBlock; ++i) {
    Codes codes;
    GgufBlock<Q>::codes(block, i, codes);
    store_codes<Q::planes>(codes, unit + Q::header + (index + i) * plane_bytes(Q::planes), row);
  }
}

template <class Q>
void pack_quantized(const uint8_t* source, int64_t row_bytes, int rows, int64_t cols, uint8_t* panel) {
  constexpr int kUnitBlocks = Q::unit_columns / Q::columns;  // GGUF blocks
  const int64_t num_blocks = cols / Q::columns;
  for (int64_t first = 0; first < num_blocks; first += kUnitBlocks, panel += Q::unit_bytes) {
    const int count = static_cast<int>(num_blocks - first < kUnitBlocks ? num_blocks - first : kUnitBlocks);
    std::memset(panel, 0, Q::unit_bytes);
    for (int r = 0; r < rows; ++r) {
      for (int i = 0; i < count; ++i) pack_block<Q>(source + r * row_bytes + (first + i) * Q::bytes, i, r, panel);
    }
  }
}

template <class Q>
int64_t quantized_panel_bytes(int64_t cols) {
  return (cols + Q::unit_columns - 1) / Q::unit_columns * Q::unit_bytes;
}

template <class Q>
int64_t float_panel_bytes(int64_t cols) {
  return (cols * kPanelRows * Q::bytes + kLine - 1) / kLine * kLine;
}

template <class Q>
void pack_float(const uint8_t* source, int64_t row_bytes, int rows, int64_t cols, uint8_t* panel) {
  constexpr int64_t kColumns =
      64;  // at a time: 16 rows of them are a few lines each, so that reads and writes both stay close
  std::memset(panel, 0, static_cast<std::size_t>(float_panel_bytes<Q>(cols)));
  for (int64_t first = 0; first < cols; first += kColumns) {
    const int64_t end = cols - first < kColumns ? cols : first + kColumns;
    for (int r = 0; r < rows; ++r) {
      for (int64_t c = first; c < end; ++c) {
        std::memcpy(panel + (c * kPanelRows + r) * Q::bytes, source + r * row_bytes + c * Q::bytes, Q::bytes);
      }
    }
  }
}

template <class Q>
constexpr StoredType row_of_table() {
  StoredType row{Q::name, Q::id, Q::columns, Q::bytes, is_quantized<Q>, nullptr, nullptr, dequantize_row<Q>};
  if constexpr (is_quantized<Q>) {
    row.panel_bytes = quantized_panel_bytes<Q>;
    row.pack_panel = pack_quantized<Q>;
  } else {
    row.panel_bytes = float_panel_bytes<Q>;
    row.pack_panel = pack_float<Q>;
  }
  return row;
}

template <class... Q, class... F>
constexpr std::array<StoredType, kNumTypes> make_types(TypeList<Q...>, TypeList<F...>) {
  return {row_of_table<Q>()..., row_of_table<F>()...};
}
constexpr std::array<StoredType, kNumTypes> kTypes = make_types(QuantTypes{}, FloatTypes{});

}  // namespace

int find_type(int id) noexcept {
  for (int i = 0; i < kNumTypes; ++i) {
    if (kTypes[static_cast<std::size_t>(i)].id == id) return i;
  }
  return -1;
}

const StoredType& stored_type(int index) noexcept { return kTypes[static_cast<std::size_t>(index)]; }

std::string known_types() {
  std::string names;
  for (const StoredType& type : kTypes) {
    names += (names.empty() ? "" : ", ") + std::string(type.name) + " (" + std::to_string(type.id) + ")";
  }
  return names;
}

void pack_rows(const StoredType& type, int64_t rows, int64_t cols, const uint8_t* source, uint8_t* storage) {
  const int64_t row_bytes = type.row_bytes(cols), panel_bytes = type.panel_bytes(cols);
  Pool::instance().run(num_panels(rows), [&](int64_t panel, int) {
    const int64_t row = panel * kPanelRows;
    const int count = static_cast<int>(rows - row < kPanelRows ? rows - row : kPanelRows);
    type.pack_panel(source + row * row_bytes, row_bytes, count, cols, storage + panel * panel_bytes);
  });
}

void embed_rows(const StoredType& type, const uint8_t* source, int64_t cols, const int32_t* ids, int64_t num_ids,
                float factor, float* out) {
  const int64_t row_bytes = type.row_bytes(cols);
  const auto embed = [&](int64_t t, int) {
    type.dequantize_row(source + ids[t] * row_bytes, cols, factor, out + t * cols);
  };
  constexpr int64_t kShared = 8;  // a row takes a microsecond or two, about as much as waking a thread
  if (num_ids >= kShared) return Pool::instance().run(num_ids, embed);
  for (int64_t t = 0; t < num_ids; ++t) embed(t, 0);
}

}  // namespace shale

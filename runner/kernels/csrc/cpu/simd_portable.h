// Sixteen output rows as plain arrays: the vocabulary of the kernels in portable C++.
//
// Bytes: 64 bytes, row r has bytes 4r ... 4r+3. Word: four int8 activations, the same for all rows. Ints, Floats: a row
// each. No fused multiply-add: it would be a library call on machines without the instruction.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "float_formats.h"

namespace shale {
namespace {

struct Portable {
  struct Bytes {
    uint8_t v[64];
  };
  struct Word {
    int8_t v[4];
  };
  struct Ints {
    int32_t v[16];
  };
  struct Floats {
    float v[16];
  };
  static constexpr bool signed_wide = false;
  static constexpr int rows_per_step = 1;
  static constexpr int float_width = 4;

  // Out of line: the kernels unroll everything, which suits registers and would make megabytes of these loops.
  template <class Out, class F>
  [[gnu::noinline]] static Out each(F&& f) {
    Out out;
    for (int i = 0; i < static_cast<int>(sizeof(out.v) / sizeof(out.v[0])); ++i) out.v[i] = f(i);
    return out;
  }

  static Bytes load_bytes(const uint8_t* p) {
    Bytes out;
    std::memcpy(out.v, p, 64);
    return out;
  }
  static void store_bytes(uint8_t* p, const Bytes& a) { std::memcpy(p, a.v, 64); }
  template <int kShift, int kMask>
  static Bytes field(const Bytes& a) {
    return each<Bytes>([&](int i) { return static_cast<uint8_t>(a.v[i] >> kShift & kMask); });
  }
  // codes | ((plane >> kFrom) & kMask) << kTo
  template <int kFrom, int kTo, int kMask>
  static Bytes insert(const Bytes& codes, const Bytes& plane) {
    return each<Bytes>([&](int i) { return static_cast<uint8_t>(codes.v[i] | (plane.v[i] >> kFrom & kMask) << kTo); });
  }
  struct Table {
    uint8_t v[16];
  };
  static Table load_table(const uint8_t* p) {
    Table out;
    std::memcpy(out.v, p, 16);
    return out;
  }
  static Bytes lookup(const Table& table, const Bytes& codes) {
    return each<Bytes>([&](int i) { return table.v[codes.v[i]]; });
  }

  static Ints zero_ints() {
    return each<Ints>([](int) { return 0; });
  }
  static Ints broadcast_shifted(const int32_t* p, int shift) {
    const int32_t value = shift < 32 ? *p * (1 << shift) : 0;
    return each<Ints>([&](int) { return value; });
  }
  static Word broadcast_word(const int32_t* p) {
    Word out;
    std::memcpy(out.v, p, 4);
    return out;
  }
  template <bool kWide>
  static Ints dot(const Ints& sum, const Bytes& w, const Word& x) {
    return each<Ints>([&](int r) {
      const uint8_t* a = w.v + 4 * r;
      return sum.v[r] + (a[0] * x.v[0] + a[1] * x.v[1] + a[2] * x.v[2] + a[3] * x.v[3]);
    });
  }

  static Floats zero() {
    return each<Floats>([](int) { return 0.0f; });
  }
  static Floats broadcast(float value) {
    return each<Floats>([&](int) { return value; });
  }
  static Floats load(const float* p) {
    return each<Floats>([&](int i) { return p[i]; });
  }
  static void store(float* p, const Floats& a) { std::memcpy(p, a.v, sizeof(a.v)); }
  static Floats load_rows(const float* p, int64_t n) {
    return each<Floats>([&](int i) { return i < n ? p[i] : 0.0f; });
  }
  static void store_rows(float* p, const Floats& a, int64_t n) {
    std::memcpy(p, a.v, static_cast<std::size_t>(n) * sizeof(float));
  }
  static Floats to_float(const Ints& a) {
    return each<Floats>([&](int i) { return static_cast<float>(a.v[i]); });
  }
  static Floats add(const Floats& a, const Floats& b) {
    return each<Floats>([&](int i) { return a.v[i] + b.v[i]; });
  }
  static Floats sub(const Floats& a, const Floats& b) {
    return each<Floats>([&](int i) { return a.v[i] - b.v[i]; });
  }
  static Floats mul(const Floats& a, const Floats& b) {
    return each<Floats>([&](int i) { return a.v[i] * b.v[i]; });
  }
  static Floats add_product(const Floats& a, const Floats& b, const Floats& c) {
    return each<Floats>([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
  }
  static Floats sub_product(const Floats& a, const Floats& b, const Floats& c) {
    return each<Floats>([&](int i) { return c.v[i] - a.v[i] * b.v[i]; });
  }

  static Floats from_u8(const uint8_t* p) {
    return each<Floats>([&](int i) { return static_cast<float>(p[i]); });
  }
  static Floats from_i8(const uint8_t* p) {
    return each<Floats>([&](int i) { return static_cast<float>(static_cast<int8_t>(p[i])); });
  }
  static Floats from_f16(const uint8_t* p) {
    return each<Floats>([&](int i) { return half_to_float(load_u16(p + 2 * i)); });
  }
  static Floats from_bf16(const uint8_t* p) {
    return each<Floats>([&](int i) { return bf16_to_float(load_u16(p + 2 * i)); });
  }
  static Floats from_f32(const uint8_t* p) {
    Floats out;
    std::memcpy(out.v, p, 64);
    return out;
  }
  static Floats from_e8m0_half(const uint8_t* p) {
    return each<Floats>([&](int i) { return e8m0_half_to_float(p[i]); });
  }

  // Of 32 floats: the largest magnitude as the bits of a float (so that NaN wins), and int8 with the sums of both
  // halves.
  static uint32_t max_magnitude(const Floats& low, const Floats& high) {
    uint32_t largest = 0;
    for (int i = 0; i < 16; ++i) {
      const uint32_t a = std::bit_cast<uint32_t>(low.v[i]) & 0x7fffffff,
                     b = std::bit_cast<uint32_t>(high.v[i]) & 0x7fffffff;
      const uint32_t larger = a > b ? a : b;
      largest = larger > largest ? larger : largest;
    }
    return largest;
  }
  static void quantize(const Floats& low, const Floats& high, float inverse_scale, int8_t* q, int32_t (&sums)[2]) {
    sums[0] = sums[1] = 0;
    for (int i = 0; i < 32; ++i) {
      const float value = i < 16 ? low.v[i] : high.v[i - 16];
      q[i] = static_cast<int8_t>(std::lrint(value * inverse_scale));
      sums[i / 16] += q[i];
    }
  }
};

}  // namespace
}  // namespace shale

// F32x16: sixteen floats, the one vector type in which the kernels of norm, rope, attention, activation and sample are
// written. Each instruction set has a type of this name and shape in a namespace of its own; a kernel is a template
// over it. All lanes are independent and every reduction is the same tree, so two instruction sets with a hardware
// fused multiply-add give the same bits. This one is plain C++ for any target; its fma rounds twice where the target
// has none.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "float_formats.h"

namespace shale::portable {

// IEEE half to float and back (to nearest, ties to even), on integers.
inline float float_from_half(uint16_t half) {
  const uint32_t sign = (uint32_t)(half & 0x8000) << 16, magnitude = half & 0x7fff;
  uint32_t bits = (magnitude << 13) + 0x38000000;  // exponent 15 -> 127
  if (magnitude >= 0x7c00) bits += 0x38000000;     // infinity, NaN
  if (magnitude > 0x7c00) bits |= 0x00400000;      // a signalling NaN becomes quiet, as in hardware
  if (magnitude < 0x0400) {                        // zero, subnormal: magnitude * 2^-24
    const float value = (float)magnitude * 5.9604644775390625e-8f;
    std::memcpy(&bits, &value, 4);
  }
  bits |= sign;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline uint16_t half_from_float(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return (uint16_t)(sign | 0x7e00 | (bits >> 13 & 0x1ff));  // NaN
  if (bits >= 0x477ff000) return (uint16_t)(sign | 0x7c00);                        // rounds to 2^16 or more
  if (bits < 0x38800000) {  // below 2^-14: adding 0.5 rounds the value to a multiple of 2^-24
    float magnitude;
    std::memcpy(&magnitude, &bits, 4);
    magnitude += 0.5f;
    std::memcpy(&bits, &magnitude, 4);
    return (uint16_t)(sign | (bits - 0x3f000000));
  }
  bits += 0x0fff + (bits >> 13 & 1);
  return (uint16_t)(sign | ((bits - 0x38000000) >> 13));
}

inline uint16_t bfloat_from_float(float value) {  // to nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)(bits >> 16 | 0x40);  // NaN
  return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

struct F32x16 {
  float v[16];
  struct Mask {
    bool v[16];
  };

  // Shape of the register tile of the attention products: query rows, and vectors of 16 columns.
  static constexpr int kTileRows = 2;
  static constexpr int kTileVectors = 1;

  template <class F>
  static F32x16 each(F&& f) {
    F32x16 r;
    for (int i = 0; i < 16; ++i) r.v[i] = f(i);
    return r;
  }
  static F32x16 zero() { return set(0.0f); }
  static F32x16 set(float x) {
    return each([&](int) { return x; });
  }
  static F32x16 iota() {
    return each([](int i) { return (float)i; });
  }

  // The forms with `first` touch n < 16 values only; lanes that were not loaded are zero.
  static F32x16 load(const float* p) {
    return each([&](int i) { return p[i]; });
  }
  static F32x16 load_first(const float* p, int n) {
    return each([&](int i) { return i < n ? p[i] : 0.0f; });
  }
  void store(float* p) const { std::memcpy(p, v, sizeof v); }
  void store_first(float* p, int n) const { std::memcpy(p, v, sizeof(float) * (unsigned)n); }
  // A half is an IEEE half, a bfloat the upper half of a float.
  static F32x16 set_half(uint16_t half) { return set(float_from_half(half)); }
  static uint16_t half(float x) { return half_from_float(x); }
  void store_halves(uint8_t* p) const { store_words(half_from_float, p); }
  void store_bfloats(uint8_t* p) const { store_words(bfloat_from_float, p); }
  // Rounded to nearest, in one byte each; NaN becomes -128.
  void store_codes(int8_t* p) const {
    const F32x16 whole = round(*this);
    for (int i = 0; i < 16; ++i) {
      const float x = whole.v[i];
      p[i] = x > -128.0f ? x < 127.0f ? (int8_t)x : (int8_t)127 : (int8_t)-128;
    }
  }

  friend F32x16 operator+(F32x16 a, F32x16 b) {
    return each([&](int i) { return a.v[i] + b.v[i]; });
  }
  friend F32x16 operator-(F32x16 a, F32x16 b) {
    return each([&](int i) { return a.v[i] - b.v[i]; });
  }
  friend F32x16 operator*(F32x16 a, F32x16 b) {
    return each([&](int i) { return a.v[i] * b.v[i]; });
  }
  friend F32x16 operator/(F32x16 a, F32x16 b) {
    return each([&](int i) { return a.v[i] / b.v[i]; });
  }
  static F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
#ifdef __FP_FAST_FMAF
    return each([&](int i) { return std::fma(a.v[i], b.v[i], c.v[i]); });
#else
    return each([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
#endif
  }
  static F32x16 max(F32x16 a, F32x16 b) {  // b where a lane is not a number
    return each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
  }
  static F32x16 abs(F32x16 a) {
    return each([&](int i) { return std::fabs(a.v[i]); });
  }
  static F32x16 with_sign(F32x16 magnitude, F32x16 sign) {
    return each([&](int i) { return std::copysign(magnitude.v[i], sign.v[i]); });
  }
  // To the nearest integer, ties to even, for |a| < 2^22.
  static F32x16 round(F32x16 a) {
    constexpr float kShift = 12582912.0f;  // 1.5 * 2^23: no fraction bits are left
    return each([&](int i) { return (a.v[i] + kShift) - kShift; });
  }
  // a * 2^n for whole n; the result must be a normal number.
  static F32x16 scale2(F32x16 a, F32x16 n) {
    return each([&](int i) {
      uint32_t bits;
      std::memcpy(&bits, &a.v[i], 4);
      bits += (uint32_t)(n.v[i] > -1000.0f && n.v[i] < 1000.0f ? (int32_t)n.v[i] : 0) << 23;
      float r;
      std::memcpy(&r, &bits, 4);
      return r;
    });
  }
  static F32x16 swap_pairs(F32x16 a) {  // lanes 0 and 1, 2 and 3, ...
    return each([&](int i) { return a.v[i ^ 1]; });
  }
  static Mask less(F32x16 a, F32x16 b) {  // false where a lane is not a number
    Mask r;
    for (int i = 0; i < 16; ++i) r.v[i] = a.v[i] < b.v[i];
    return r;
  }
  static F32x16 select(Mask mask, F32x16 yes, F32x16 no) {
    return each([&](int i) { return mask.v[i] ? yes.v[i] : no.v[i]; });
  }
  static uint32_t bits(Mask mask) {
    uint32_t r = 0;
    for (int i = 0; i < 16; ++i) r |= (uint32_t)mask.v[i] << i;
    return r;
  }

  // Trees: halves are combined, then quarters, eighths and the last pair.
  float sum() const {
    return fold([](float a, float b) { return a + b; });
  }
  float max() const {
    return fold([](float a, float b) { return a > b ? a : b; });
  }
  void add_to(double* sums) const {
    for (int i = 0; i < 16; ++i) sums[i] += (double)v[i];
  }

  // Four floats in each quarter of the lanes.
  static F32x16 repeat(const float* p) {
    return each([&](int i) { return p[i % 4]; });
  }
  // Lane 4 i + k is the sum of quarter i of vector k: (0 + 1) + (2 + 3).
  static F32x16 sum_quarters(F32x16 a, F32x16 b, F32x16 c, F32x16 d) {
    const F32x16* vectors[4] = {&a, &b, &c, &d};
    return each([&](int i) {
      const float* quad = vectors[i % 4]->v + i / 4 * 4;
      return (quad[0] + quad[1]) + (quad[2] + quad[3]);
    });
  }
  // Four floats of each pointer, a quarter each.
  static F32x16 join(const float* p0, const float* p1, const float* p2, const float* p3) {
    const float* from[4] = {p0, p1, p2, p3};
    return each([&](int i) { return from[i / 4][i % 4]; });
  }

  // Words: sixteen halves or bfloats. Of sixteen words of each pointer four by four, a quarter each.
  struct Words {
    uint16_t v[16];
  };
  static void join_words(const uint8_t* p0, const uint8_t* p1, const uint8_t* p2, const uint8_t* p3, Words (&out)[4]) {
    const uint8_t* from[4] = {p0, p1, p2, p3};
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < 4; ++j) std::memcpy(out[j].v + 4 * i, from[i] + 8 * j, 8);
    }
  }
  static Words words(const uint8_t* p) {
    Words r;
    for (int i = 0; i < 16; ++i) r.v[i] = load_u16(p + 2 * i);
    return r;
  }
  static Words words_first(const uint8_t* p, int n) {
    Words r = {};
    std::memcpy(r.v, p, sizeof(uint16_t) * (unsigned)n);
    return r;
  }
  static F32x16 from_halves(const Words& words) {
    return each([&](int i) { return float_from_half(words.v[i]); });
  }
  static F32x16 from_bfloats(const Words& words) {
    return each([&](int i) { return bf16_to_float(words.v[i]); });
  }
  // The half at each pointer, in a quarter each.
  static F32x16 join_halves(const uint8_t* p0, const uint8_t* p1, const uint8_t* p2, const uint8_t* p3) {
    const uint8_t* from[4] = {p0, p1, p2, p3};
    F32x16 r;
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < 4; ++j) r.v[4 * i + j] = float_from_half(load_u16(from[i]));
    }
    return r;
  }

  // Codes: sixteen whole numbers of one byte. Nibbles are those of 16 bytes, less 8.
  struct Codes {
    int8_t v[16];

    static Codes load(const uint8_t* p) {
      Codes r;
      std::memcpy(r.v, p, sizeof r.v);
      return r;
    }
    static Codes low_nibbles(const uint8_t* p) {
      Codes r;
      for (int i = 0; i < 16; ++i) r.v[i] = (int8_t)((p[i] & 15) - 8);
      return r;
    }
    static Codes high_nibbles(const uint8_t* p) {
      Codes r;
      for (int i = 0; i < 16; ++i) r.v[i] = (int8_t)((p[i] >> 4) - 8);
      return r;
    }
    // Codes 4 j ... 4 j + 3 of row i become codes 4 i ... 4 i + 3 of row j.
    static void transpose(Codes (&rows)[4]) {
      Codes r[4];
      for (int i = 0; i < 4; ++i) {
        for (int j = 0; j < 4; ++j) std::memcpy(r[j].v + 4 * i, rows[i].v + 4 * j, 4);
      }
      std::memcpy(rows, r, sizeof r);
    }
  };
  static F32x16 from_codes(const Codes& codes) {
    return each([&](int i) { return (float)codes.v[i]; });
  }

 private:
  template <class F>
  void store_words(F&& narrow, uint8_t* p) const {
    for (int i = 0; i < 16; ++i) {
      const uint16_t word = narrow(v[i]);
      std::memcpy(p + 2 * i, &word, sizeof word);
    }
  }
  template <class F>
  float fold(F&& f) const {
    float t[16];
    std::memcpy(t, v, sizeof v);
    for (int half = 8; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) t[i] = f(t[i], t[i + half]);
    }
    return t[0];
  }
};

}  // namespace shale::portable

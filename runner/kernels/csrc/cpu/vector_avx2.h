// F32x16 for AVX2, FMA and F16C: sixteen floats in two registers. vector_portable.h says what each operation means.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace shale::avx2 {

struct F32x16 {
  __m256 a, b;
  struct Mask {
    __m256 a, b;
  };

  // 12 sums, 2 columns and a broadcast of 16 registers.
  static constexpr int kTileRows = 6;
  static constexpr int kTileVectors = 1;

  static F32x16 zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static F32x16 set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
  static F32x16 iota() {
    return {_mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7), _mm256_setr_ps(8, 9, 10, 11, 12, 13, 14, 15)};
  }
  static F32x16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static F32x16 load_first(const float* p, int n) {
    alignas(32) float lanes[16] = {};
    std::memcpy(lanes, p, sizeof(float) * (unsigned)n);
    return load(lanes);
  }
  void store(float* p) const {
    _mm256_storeu_ps(p, a);
    _mm256_storeu_ps(p + 8, b);
  }
  void store_first(float* p, int n) const {
    alignas(32) float lanes[16];
    store(lanes);
    std::memcpy(p, lanes, sizeof(float) * (unsigned)n);
  }
  static F32x16 load(const uint16_t* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)),
            _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p + 1))};
  }
  static F32x16 load_first(const uint16_t* p, int n) {
    alignas(32) uint16_t lanes[16] = {};
    std::memcpy(lanes, p, sizeof(uint16_t) * (unsigned)n);
    return load(lanes);
  }
  void store(uint16_t* p) const {
    _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    _mm_storeu_si128((__m128i*)p + 1, _mm256_cvtps_ph(b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  void store_first(uint16_t* p, int n) const {
    alignas(32) uint16_t lanes[16];
    store(lanes);
    std::memcpy(p, lanes, sizeof(uint16_t) * (unsigned)n);
  }
  static F32x16 set_half(uint16_t half) { return set(_cvtsh_ss(half)); }
  static F32x16 load_bfloat(const uint16_t* p) {
    return {float_from_bfloat(_mm_loadu_si128((const __m128i*)p)),
            float_from_bfloat(_mm_loadu_si128((const __m128i*)p + 1))};
  }
  void store_bfloat(uint16_t* p) const {
    const __m256i words = _mm256_packus_epi32(bfloat_words(a), bfloat_words(b));
    _mm256_storeu_si256((__m256i*)p, _mm256_permute4x64_epi64(words, 0xd8));
  }
  static F32x16 load_codes(const int8_t* p) {
    const __m128i codes = _mm_loadu_si128((const __m128i*)p);
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes)),
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(codes, codes)))};
  }
  void store_codes(int8_t* p) const {
    const __m256i words =
        _mm256_permute4x64_epi64(_mm256_packs_epi32(_mm256_cvtps_epi32(a), _mm256_cvtps_epi32(b)), 0xd8);
    _mm_storeu_si128((__m128i*)p, _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
  }

  friend F32x16 operator+(F32x16 x, F32x16 y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
  friend F32x16 operator-(F32x16 x, F32x16 y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
  friend F32x16 operator*(F32x16 x, F32x16 y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
  friend F32x16 operator/(F32x16 x, F32x16 y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
  static F32x16 fma(F32x16 x, F32x16 y, F32x16 z) {
    return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
  }
  static F32x16 max(F32x16 x, F32x16 y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
  static F32x16 abs(F32x16 x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
  }
  static F32x16 with_sign(F32x16 x, F32x16 y) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_or_ps(x.a, _mm256_and_ps(sign, y.a)), _mm256_or_ps(x.b, _mm256_and_ps(sign, y.b))};
  }
  static F32x16 round(F32x16 x) {
    return {_mm256_round_ps(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
            _mm256_round_ps(x.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
  }
  static F32x16 scale2(F32x16 x, F32x16 n) { return {scale2(x.a, n.a), scale2(x.b, n.b)}; }
  static F32x16 swap_pairs(F32x16 x) { return {_mm256_permute_ps(x.a, 0xb1), _mm256_permute_ps(x.b, 0xb1)}; }
  static Mask less(F32x16 x, F32x16 y) {
    return {_mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ)};
  }
  static F32x16 select(Mask mask, F32x16 yes, F32x16 no) {
    return {_mm256_blendv_ps(no.a, yes.a, mask.a), _mm256_blendv_ps(no.b, yes.b, mask.b)};
  }
  static uint32_t bits(Mask mask) {
    return (uint32_t)_mm256_movemask_ps(mask.a) | (uint32_t)_mm256_movemask_ps(mask.b) << 8;
  }

  float sum() const {
    const __m256 s8 = _mm256_add_ps(a, b);
    const __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
    const __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
    return _mm_cvtss_f32(_mm_add_ss(s2, _mm_movehdup_ps(s2)));
  }
  float max() const {
    const __m256 s8 = _mm256_max_ps(a, b);
    const __m128 s4 = _mm_max_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
    const __m128 s2 = _mm_max_ps(s4, _mm_movehl_ps(s4, s4));
    return _mm_cvtss_f32(_mm_max_ss(s2, _mm_movehdup_ps(s2)));
  }
  void add_to(double* sums) const {
    const __m128 quarters[4] = {_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1), _mm256_castps256_ps128(b),
                                _mm256_extractf128_ps(b, 1)};
    for (int i = 0; i < 4; ++i) {
      _mm256_storeu_pd(sums + 4 * i, _mm256_add_pd(_mm256_loadu_pd(sums + 4 * i), _mm256_cvtps_pd(quarters[i])));
    }
  }
  static void transpose(const float* const (&rows)[16], float* out, int64_t stride);
  static void transpose(const uint16_t* const (&rows)[16], float* out, int64_t stride);

 private:
  static __m256 float_from_bfloat(__m128i words) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(words), 16));
  }
  static __m256i bfloat_words(__m256 x) {  // in the low halves of the lanes
    const __m256i bits = _mm256_castps_si256(x), high = _mm256_srli_epi32(bits, 16);
    const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    const __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
    return _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
  }
  static __m256 scale2(__m256 x, __m256 n) {
    const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), exponent));
  }
};

// Eight by eight, four times. Rows r and r + 4 share a register from the start, so that no lane is crossed later.
inline void F32x16::transpose(const float* const (&rows)[16], float* out, int64_t stride) {
  for (int top = 0; top < 16; top += 8) {
    for (int left = 0; left < 16; left += 4) {
      __m256 r[4];
      for (int i = 0; i < 4; ++i) {
        r[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(rows[top + i] + left)),
                                    _mm_loadu_ps(rows[top + 4 + i] + left), 1);
      }
      const __m256 lo01 = _mm256_unpacklo_ps(r[0], r[1]), hi01 = _mm256_unpackhi_ps(r[0], r[1]);
      const __m256 lo23 = _mm256_unpacklo_ps(r[2], r[3]), hi23 = _mm256_unpackhi_ps(r[2], r[3]);
      float* to = out + left * stride + top;
      _mm256_storeu_ps(to, _mm256_shuffle_ps(lo01, lo23, 0x44));
      _mm256_storeu_ps(to + stride, _mm256_shuffle_ps(lo01, lo23, 0xee));
      _mm256_storeu_ps(to + 2 * stride, _mm256_shuffle_ps(hi01, hi23, 0x44));
      _mm256_storeu_ps(to + 3 * stride, _mm256_shuffle_ps(hi01, hi23, 0xee));
    }
  }
}

// Transposed as 16-bit words, which halves the work, and converted at the end. Rows r and r + 8 share a register.
inline void F32x16::transpose(const uint16_t* const (&rows)[16], float* out, int64_t stride) {
  for (int part = 0; part < 2; ++part) {  // columns 8 * part ... 8 * part + 7
    __m256i x[8], y[8];
    for (int i = 0; i < 8; ++i) {
      const __m128i low = _mm_loadu_si128((const __m128i*)(rows[i] + 8 * part));
      x[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(low),
                                     _mm_loadu_si128((const __m128i*)(rows[i + 8] + 8 * part)), 1);
    }
    for (int i = 0; i < 4; ++i) {
      y[2 * i] = _mm256_unpacklo_epi16(x[2 * i], x[2 * i + 1]);
      y[2 * i + 1] = _mm256_unpackhi_epi16(x[2 * i], x[2 * i + 1]);
    }
    for (int i = 0; i < 2; ++i) {
      for (int h = 0; h < 2; ++h) {
        x[4 * i + 2 * h] = _mm256_unpacklo_epi32(y[4 * i + h], y[4 * i + 2 + h]);
        x[4 * i + 2 * h + 1] = _mm256_unpackhi_epi32(y[4 * i + h], y[4 * i + 2 + h]);
      }
    }
    for (int i = 0; i < 4; ++i) {
      const __m256i even = _mm256_unpacklo_epi64(x[i], x[4 + i]), odd = _mm256_unpackhi_epi64(x[i], x[4 + i]);
      float* to = out + (8 * part + 2 * i) * stride;
      _mm256_storeu_ps(to, _mm256_cvtph_ps(_mm256_castsi256_si128(even)));
      _mm256_storeu_ps(to + 8, _mm256_cvtph_ps(_mm256_extracti128_si256(even, 1)));
      _mm256_storeu_ps(to + stride, _mm256_cvtph_ps(_mm256_castsi256_si128(odd)));
      _mm256_storeu_ps(to + stride + 8, _mm256_cvtph_ps(_mm256_extracti128_si256(odd, 1)));
    }
  }
}

}  // namespace shale::avx2

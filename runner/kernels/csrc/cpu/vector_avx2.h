// F32x16 for AVX2, FMA and F16C: sixteen floats in two registers. vector_portable.h says what each operation means.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "float_formats.h"
#include "vector_codes.h"

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
  static F32x16 set_half(uint16_t half) {
    const __m256 all = _mm256_cvtph_ps(_mm_set1_epi16((short)half));
    return {all, all};
  }
  static uint16_t half(float x) { return _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  void store_halves(uint8_t* p) const {
    _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    _mm_storeu_si128((__m128i*)p + 1, _mm256_cvtps_ph(b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  void store_bfloats(uint8_t* p) const {
    const __m256i words = _mm256_packus_epi32(bfloat_words(a), bfloat_words(b));
    _mm256_storeu_si256((__m256i*)p, _mm256_permute4x64_epi64(words, 0xd8));
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
  static F32x16 repeat(const float* p) {
    const __m256 quad = _mm256_broadcast_ps((const __m128*)p);
    return {quad, quad};
  }
  static F32x16 sum_quarters(F32x16 x, F32x16 y, F32x16 z, F32x16 w) {
    const __m256 low = _mm256_hadd_ps(_mm256_hadd_ps(x.a, y.a), _mm256_hadd_ps(z.a, w.a));
    return {low, _mm256_hadd_ps(_mm256_hadd_ps(x.b, y.b), _mm256_hadd_ps(z.b, w.b))};
  }
  static F32x16 join(const float* p0, const float* p1, const float* p2, const float* p3) {
    return {_mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p0)), _mm_loadu_ps(p1), 1),
            _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p2)), _mm_loadu_ps(p3), 1)};
  }

  struct Words {
    __m128i a, b;
  };
  static void join_words(const uint8_t* p0, const uint8_t* p1, const uint8_t* p2, const uint8_t* p3, Words (&out)[4]) {
    for (int half = 0; half < 2; ++half) {
      const __m128i w0 = words8(p0 + 16 * half), w1 = words8(p1 + 16 * half);
      const __m128i w2 = words8(p2 + 16 * half), w3 = words8(p3 + 16 * half);
      out[2 * half] = {_mm_unpacklo_epi64(w0, w1), _mm_unpacklo_epi64(w2, w3)};
      out[2 * half + 1] = {_mm_unpackhi_epi64(w0, w1), _mm_unpackhi_epi64(w2, w3)};
    }
  }
  static Words words(const uint8_t* p) { return {words8(p), words8(p + 16)}; }
  static Words words_first(const uint8_t* p, int n) {
    alignas(32) uint8_t lanes[32] = {};
    std::memcpy(lanes, p, sizeof(uint16_t) * (unsigned)n);
    return words(lanes);
  }
  static F32x16 from_halves(Words words) { return {_mm256_cvtph_ps(words.a), _mm256_cvtph_ps(words.b)}; }
  static F32x16 from_bfloats(Words words) { return {float_from_bfloat(words.a), float_from_bfloat(words.b)}; }
  static F32x16 join_halves(const uint8_t* p0, const uint8_t* p1, const uint8_t* p2, const uint8_t* p3) {
    const __m128 low = _mm_cvtph_ps(two_words(p0, p1)), high = _mm_cvtph_ps(two_words(p2, p3));
    return {_mm256_set_m128(_mm_permute_ps(low, 0x55), _mm_permute_ps(low, 0x00)),
            _mm256_set_m128(_mm_permute_ps(high, 0x55), _mm_permute_ps(high, 0x00))};
  }

  using Codes = RegisterCodes<F32x16>;
  static F32x16 from_codes(Codes codes) {
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes.v)),
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(codes.v, codes.v)))};
  }

 private:
  static __m128i words8(const uint8_t* p) { return _mm_loadu_si128((const __m128i*)p); }
  static __m128i two_words(const uint8_t* p0, const uint8_t* p1) {
    return _mm_insert_epi16(_mm_cvtsi32_si128(load_u16(p0)), load_u16(p1), 1);
  }
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

}  // namespace shale::avx2

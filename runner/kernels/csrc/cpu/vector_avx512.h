// F32x16 for AVX-512: sixteen floats in one register. vector_portable.h says what each operation means.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "float_formats.h"
#include "vector_codes.h"

namespace shale::avx512 {

struct F32x16 {
  __m512 v;
  using Mask = __mmask16;

  // Query rows and vectors of 16 columns of one register tile: 24 sums, 4 columns and a broadcast of 32 registers.
  static constexpr int kTileRows = 6;
  static constexpr int kTileVectors = 4;

  static F32x16 zero() { return {_mm512_setzero_ps()}; }
  static F32x16 set(float x) { return {_mm512_set1_ps(x)}; }
  static F32x16 iota() { return {_mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)}; }
  static F32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static F32x16 load_first(const float* p, int n) { return {_mm512_maskz_loadu_ps(first(n), p)}; }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
  void store_first(float* p, int n) const { _mm512_mask_storeu_ps(p, first(n), v); }
  static F32x16 set_half(uint16_t half) { return {_mm512_cvtph_ps(_mm256_set1_epi16((short)half))}; }
  static uint16_t half(float x) { return _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  void store_halves(uint8_t* p) const {
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  void store_bfloats(uint8_t* p) const {
    const __m512i bits = _mm512_castps_si512(v), high = _mm512_srli_epi32(bits, 16);
    const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    const __mmask16 is_nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    const __m512i words = _mm512_mask_or_epi32(rounded, is_nan, high, _mm512_set1_epi32(0x40));
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(words));
  }
  void store_codes(int8_t* p) const { _mm_storeu_si128((__m128i*)p, _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(v))); }

  friend F32x16 operator+(F32x16 a, F32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
  friend F32x16 operator-(F32x16 a, F32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
  friend F32x16 operator*(F32x16 a, F32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
  friend F32x16 operator/(F32x16 a, F32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
  static F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  static F32x16 max(F32x16 a, F32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
  static F32x16 abs(F32x16 a) { return {_mm512_abs_ps(a.v)}; }
  static F32x16 with_sign(F32x16 magnitude, F32x16 sign) {
    return {_mm512_or_ps(magnitude.v, _mm512_and_ps(sign.v, _mm512_set1_ps(-0.0f)))};
  }
  static F32x16 round(F32x16 a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
  static F32x16 scale2(F32x16 a, F32x16 n) { return {_mm512_scalef_ps(a.v, n.v)}; }
  static F32x16 swap_pairs(F32x16 a) { return {_mm512_permute_ps(a.v, 0xb1)}; }
  static Mask less(F32x16 a, F32x16 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ); }
  static F32x16 select(Mask mask, F32x16 yes, F32x16 no) { return {_mm512_mask_blend_ps(mask, no.v, yes.v)}; }
  static uint32_t bits(Mask mask) { return mask; }

  float sum() const {
    const __m256 s8 = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    const __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
    const __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
    return _mm_cvtss_f32(_mm_add_ss(s2, _mm_movehdup_ps(s2)));
  }
  float max() const {
    const __m256 s8 = _mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    const __m128 s4 = _mm_max_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
    const __m128 s2 = _mm_max_ps(s4, _mm_movehl_ps(s4, s4));
    return _mm_cvtss_f32(_mm_max_ss(s2, _mm_movehdup_ps(s2)));
  }

  static F32x16 repeat(const float* p) { return {_mm512_broadcast_f32x4(_mm_loadu_ps(p))}; }
  static F32x16 sum_quarters(F32x16 a, F32x16 b, F32x16 c, F32x16 d) {
    const F32x16 ab = add_pairs(a, b), cd = add_pairs(c, d);
    return add_pairs(ab, cd);
  }
  static F32x16 join(const float* p0, const float* p1, const float* p2, const float* p3) {
    const __m256 low = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p0)), _mm_loadu_ps(p1), 1);
    const __m256 high = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p2)), _mm_loadu_ps(p3), 1);
    return {_mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1)};
  }

  using Words = __m256i;
  static void join_words(const uint8_t* p0, const uint8_t* p1, const uint8_t* p2, const uint8_t* p3, Words (&out)[4]) {
    const __m256i w0 = words(p0), w1 = words(p1), w2 = words(p2), w3 = words(p3);
    const __m256i even01 = _mm256_unpacklo_epi64(w0, w1), odd01 = _mm256_unpackhi_epi64(w0, w1);
    const __m256i even23 = _mm256_unpacklo_epi64(w2, w3), odd23 = _mm256_unpackhi_epi64(w2, w3);
    out[0] = _mm256_permute2x128_si256(even01, even23, 0x20);
    out[1] = _mm256_permute2x128_si256(odd01, odd23, 0x20);
    out[2] = _mm256_permute2x128_si256(even01, even23, 0x31);
    out[3] = _mm256_permute2x128_si256(odd01, odd23, 0x31);
  }
  static Words words(const uint8_t* p) { return _mm256_loadu_si256((const __m256i*)p); }
  static Words words_first(const uint8_t* p, int n) { return _mm256_maskz_loadu_epi16(first(n), p); }
  static F32x16 from_halves(Words words) { return {_mm512_cvtph_ps(words)}; }
  static F32x16 from_bfloats(Words words) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16))};
  }
  static F32x16 join_halves(const uint8_t* p0, const uint8_t* p1, const uint8_t* p2, const uint8_t* p3) {
    const __m128 four = _mm_cvtph_ps(four_words(p0, p1, p2, p3));
    const __m512i quarters = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    return {_mm512_permutexvar_ps(quarters, _mm512_castps128_ps512(four))};
  }

  using Codes = RegisterCodes<F32x16>;
  static F32x16 from_codes(Codes codes) { return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes.v))}; }

  // sums[0..15] += lanes 0..15, in double.
  void add_to(double* sums) const {
    _mm512_storeu_pd(sums, _mm512_add_pd(_mm512_loadu_pd(sums), _mm512_cvtps_pd(_mm512_castps512_ps256(v))));
    const __m512d high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1));
    _mm512_storeu_pd(sums + 8, _mm512_add_pd(_mm512_loadu_pd(sums + 8), high));
  }

 private:
  static __m128i four_words(const uint8_t* p0, const uint8_t* p1, const uint8_t* p2, const uint8_t* p3) {
    __m128i words = _mm_cvtsi32_si128(load_u16(p0));
    words = _mm_insert_epi16(words, load_u16(p1), 1);
    words = _mm_insert_epi16(words, load_u16(p2), 2);
    return _mm_insert_epi16(words, load_u16(p3), 3);
  }
  // In each quarter a0 + a1, a2 + a3, b0 + b1, b2 + b3.
  static F32x16 add_pairs(F32x16 a, F32x16 b) {
    return {_mm512_add_ps(_mm512_shuffle_ps(a.v, b.v, 0x88), _mm512_shuffle_ps(a.v, b.v, 0xdd))};
  }
  static __mmask16 first(int n) { return (__mmask16)((1u << n) - 1); }
};

}  // namespace shale::avx512

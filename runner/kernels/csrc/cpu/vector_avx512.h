// F32x16 for AVX-512: sixteen floats in one register. vector_portable.h says what each operation means.
#pragma once

#include <immintrin.h>

#include <cstdint>

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
  static F32x16 load(const uint16_t* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))}; }
  static F32x16 load_first(const uint16_t* p, int n) {
    return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p))};
  }
  void store(uint16_t* p) const { _mm256_storeu_si256((__m256i*)p, half()); }
  void store_first(uint16_t* p, int n) const { _mm256_mask_storeu_epi16(p, first(n), half()); }
  static F32x16 set_half(uint16_t half) { return {_mm512_set1_ps(_cvtsh_ss(half))}; }
  static F32x16 load_bfloat(const uint16_t* p) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16))};
  }
  void store_bfloat(uint16_t* p) const {
    const __m512i bits = _mm512_castps_si512(v), high = _mm512_srli_epi32(bits, 16);
    const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    const __mmask16 is_nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    const __m512i words = _mm512_mask_or_epi32(rounded, is_nan, high, _mm512_set1_epi32(0x40));
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(words));
  }
  static F32x16 load_codes(const int8_t* p) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)))};
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
  static F32x16 scale2(F32x16 a, F32x16 n) {
    const __m512i exponent = _mm512_slli_epi32(_mm512_cvtps_epi32(n.v), 23);
    return {_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a.v), exponent))};
  }
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
  // sums[0..15] += lanes 0..15, in double.
  void add_to(double* sums) const {
    _mm512_storeu_pd(sums, _mm512_add_pd(_mm512_loadu_pd(sums), _mm512_cvtps_pd(_mm512_castps512_ps256(v))));
    const __m512d high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1));
    _mm512_storeu_pd(sums + 8, _mm512_add_pd(_mm512_loadu_pd(sums + 8), high));
  }
  static void transpose(const float* const (&rows)[16], float* out, int64_t stride);
  static void transpose(const uint16_t* const (&rows)[16], float* out, int64_t stride);

 private:
  static __mmask16 first(int n) { return (__mmask16)((1u << n) - 1); }
  __m256i half() const { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
};

// Four rounds of shuffles: 32-bit pairs, 64-bit pairs, then 128-bit quarters twice.
inline void F32x16::transpose(const float* const (&rows)[16], float* out, int64_t stride) {
  __m512 a[16], b[16];
  for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_ps(rows[i]);
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {  // a[i + c]: column 4q + c of rows i ... i+3 in quarter q
    for (int h = 0; h < 2; ++h) {
      a[i + 2 * h] = _mm512_shuffle_ps(b[i + h], b[i + 2 + h], 0x44);
      a[i + 2 * h + 1] = _mm512_shuffle_ps(b[i + h], b[i + 2 + h], 0xee);
    }
  }
  for (int c = 0; c < 4; ++c) {
    const __m512 lo01 = _mm512_shuffle_f32x4(a[c], a[4 + c], 0x44), hi01 = _mm512_shuffle_f32x4(a[c], a[4 + c], 0xee);
    const __m512 lo23 = _mm512_shuffle_f32x4(a[8 + c], a[12 + c], 0x44);
    const __m512 hi23 = _mm512_shuffle_f32x4(a[8 + c], a[12 + c], 0xee);
    _mm512_storeu_ps(out + c * stride, _mm512_shuffle_f32x4(lo01, lo23, 0x88));
    _mm512_storeu_ps(out + (4 + c) * stride, _mm512_shuffle_f32x4(lo01, lo23, 0xdd));
    _mm512_storeu_ps(out + (8 + c) * stride, _mm512_shuffle_f32x4(hi01, hi23, 0x88));
    _mm512_storeu_ps(out + (12 + c) * stride, _mm512_shuffle_f32x4(hi01, hi23, 0xdd));
  }
}

// Transposed as 16-bit words, which halves the work, and converted at the end. Rows r and r + 8 share a register.
inline void F32x16::transpose(const uint16_t* const (&rows)[16], float* out, int64_t stride) {
  for (int part = 0; part < 2; ++part) {  // columns 8 * part ... 8 * part + 7
    __m256i a[8], b[8];
    for (int i = 0; i < 8; ++i) {
      const __m128i low = _mm_loadu_si128((const __m128i*)(rows[i] + 8 * part));
      a[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(low),
                                     _mm_loadu_si128((const __m128i*)(rows[i + 8] + 8 * part)), 1);
    }
    for (int i = 0; i < 4; ++i) {
      b[2 * i] = _mm256_unpacklo_epi16(a[2 * i], a[2 * i + 1]);
      b[2 * i + 1] = _mm256_unpackhi_epi16(a[2 * i], a[2 * i + 1]);
    }
    for (int i = 0; i < 2; ++i) {
      for (int h = 0; h < 2; ++h) {
        a[4 * i + 2 * h] = _mm256_unpacklo_epi32(b[4 * i + h], b[4 * i + 2 + h]);
        a[4 * i + 2 * h + 1] = _mm256_unpackhi_epi32(b[4 * i + h], b[4 * i + 2 + h]);
      }
    }
    for (int i = 0; i < 4; ++i) {
      float* to = out + (8 * part + 2 * i) * stride;
      _mm512_storeu_ps(to, _mm512_cvtph_ps(_mm256_unpacklo_epi64(a[i], a[4 + i])));
      _mm512_storeu_ps(to + stride, _mm512_cvtph_ps(_mm256_unpackhi_epi64(a[i], a[4 + i])));
    }
  }
}

}  // namespace shale::avx512

// Sixteen output rows as one 512-bit register: the vocabulary of the kernels with AVX-512 F BW DQ VL VNNI.
//
// Bytes: 64 bytes, row r has bytes 4r ... 4r+3. Word: four int8 activations in every 32-bit lane. Ints, Floats: a lane
// a row.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace shale {
namespace {

struct Avx512Vnni {
  using Bytes = __m512i;
  using Word = __m512i;
  using Table = __m512i;
  using Ints = __m512i;
  using Floats = __m512;
  static constexpr bool signed_wide = false;  // vpdpbusd takes codes of all eight bits
  static constexpr int rows_per_step =
      2;  // panels in the microkernel: 2 x 6 sums of ints and of floats fill 24 of 32 registers
  static constexpr int float_width = 6;  // tokens: 4 x 6 partial sums fill 24 registers

  static Bytes load_bytes(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static void store_bytes(uint8_t* p, Bytes a) { _mm512_store_si512(p, a); }
  template <int kShift, int kMask>
  static Bytes field(Bytes a) {
    return _mm512_and_si512(kShift == 0 ? a : _mm512_srli_epi16(a, kShift), _mm512_set1_epi8(static_cast<char>(kMask)));
  }
  // codes | ((plane >> kFrom) & kMask) << kTo
  template <int kFrom, int kTo, int kMask>
  static Bytes insert(Bytes codes, Bytes plane) {
    constexpr int kOrAnd = 0xf8;  // a | (b & c)
    if constexpr (kFrom > kTo) plane = _mm512_srli_epi16(plane, kFrom - kTo);
    if constexpr (kFrom < kTo) plane = _mm512_slli_epi16(plane, kTo - kFrom);
    return _mm512_ternarylogic_epi32(codes, plane, _mm512_set1_epi8(static_cast<char>(kMask << kTo)), kOrAnd);
  }
  // codes - 2^kOffsetLog2 as int8
  template <int kOffsetLog2>
  static Bytes without_offset(Bytes codes) {
    return _mm512_sub_epi8(codes, _mm512_set1_epi8(static_cast<char>(1 << kOffsetLog2)));
  }
  static Table load_table(const uint8_t* p) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static Bytes lookup(Table table, Bytes codes) { return _mm512_shuffle_epi8(table, codes); }

  static Ints zero_ints() { return _mm512_setzero_si512(); }
  static Ints broadcast_shifted(const int32_t* p, int shift) {
    return _mm512_sll_epi32(_mm512_set1_epi32(*p), _mm_cvtsi32_si128(shift));  // a shift by 32 gives zero
  }
  static Ints load_ints(const int32_t* p) { return _mm512_load_si512(p); }
  static Word broadcast_word(const int32_t* p) { return _mm512_set1_epi32(*p); }
  template <bool kWide>
  static Ints dot(Ints sum, Bytes w, Word x) {
    return _mm512_dpbusd_epi32(sum, w, x);
  }

  static Floats zero() { return _mm512_setzero_ps(); }
  static Floats broadcast(float value) { return _mm512_set1_ps(value); }
  static Floats load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, Floats a) { _mm512_storeu_ps(p, a); }
  static __mmask16 first_rows(int64_t n) { return n >= 16 ? 0xffff : static_cast<__mmask16>((1u << n) - 1); }
  static Floats load_rows(const float* p, int64_t n) { return _mm512_maskz_loadu_ps(first_rows(n), p); }
  static void store_rows(float* p, Floats a, int64_t n) { _mm512_mask_storeu_ps(p, first_rows(n), a); }
  static Floats to_float(Ints a) { return _mm512_cvtepi32_ps(a); }
  static Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
  static Floats sub(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
  static Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
  static Floats add_product(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
  static Floats sub_product(Floats a, Floats b, Floats c) { return _mm512_fnmadd_ps(a, b, c); }

  static __m128i load16(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
  static __m256i load32(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static Floats from_u8(const uint8_t* p) { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(load16(p))); }
  static Floats from_i8(const uint8_t* p) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load16(p))); }
  static Floats from_f16(const uint8_t* p) { return _mm512_maskz_cvtph_ps(0xffff, load32(p)); }
  static Floats from_bf16(const uint8_t* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load32(p)), 16));
  }
  static Floats from_f32(const uint8_t* p) { return _mm512_loadu_ps(p); }
  static Floats from_e8m0_half(const uint8_t* p) {  // 2^(e - 128); the two smallest are subnormal
    const __m512i e = _mm512_cvtepu8_epi32(load16(p)), one = _mm512_set1_epi32(1);
    const __m512i normal = _mm512_slli_epi32(_mm512_sub_epi32(e, one), 23);
    const __m512i subnormal = _mm512_sllv_epi32(_mm512_set1_epi32(0x00200000), e);
    return _mm512_castsi512_ps(_mm512_mask_mov_epi32(normal, _mm512_cmple_epu32_mask(e, one), subnormal));
  }

  // Of 32 floats: the largest magnitude as the bits of a float (so that NaN wins), and int8 with the sums of both
  // halves.
  static uint32_t max_magnitude(Floats low, Floats high) {
    const __m512i mask = _mm512_set1_epi32(0x7fffffff);
    const __m512i a = _mm512_and_si512(_mm512_castps_si512(low), mask);
    return _mm512_reduce_max_epu32(_mm512_max_epu32(a, _mm512_and_si512(_mm512_castps_si512(high), mask)));
  }
  static __m128i to_int8(Floats a, Floats inverse_scale) {
    return _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(a, inverse_scale)));
  }
  static void quantize(Floats low, Floats high, float inverse_scale, int8_t* q, int32_t (&sums)[2]) {
    const __m512 factor = _mm512_set1_ps(inverse_scale);
    const __m256i bytes = _mm256_set_m128i(to_int8(high, factor), to_int8(low, factor));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(q), bytes);
    // Sums of bytes that are made unsigned, eight at a time: 16 * 128 too much for each half.
    const __m256i unsigned_bytes = _mm256_xor_si256(bytes, _mm256_set1_epi8(-128));
    const __m256i eights = _mm256_sad_epu8(unsigned_bytes, _mm256_setzero_si256());
    const __m256i halves = _mm256_add_epi32(eights, _mm256_unpackhi_epi64(eights, eights));
    sums[0] = _mm256_cvtsi256_si32(halves) - 16 * 128;
    sums[1] = _mm256_extract_epi32(halves, 4) - 16 * 128;
  }
};

}  // namespace
}  // namespace shale

// Sixteen output rows as two 256-bit registers: the vocabulary of the kernels with AVX2, FMA, F16C and perhaps
// AVX-VNNI.
//
// Bytes: 64 bytes, row r has bytes 4r ... 4r+3. Word: four int8 activations in every 32-bit lane. Ints, Floats: a lane
// a row. Without VNNI the dot is vpmaddubsw, which saturates pairs at 16 bits: codes below 128 stay below 127 * 127 * 2
// = 32258, and wide codes are taken as signed (code - 128), their sign moved to the activations: 128 * 127 * 2 = 32512.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace shale {
namespace {

template <bool kVnni>
struct Avx2 {
  struct Bytes {
    __m256i low, high;
  };
  using Word = __m256i;
  using Table = __m256i;
  using Ints = Bytes;
  struct Floats {
    __m256 low, high;
  };
  static constexpr bool signed_wide = !kVnni;
  static constexpr int rows_per_step = 1;
  static constexpr int float_width = 2;

  static __m256i load32(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static Bytes load_bytes(const uint8_t* p) { return {load32(p), load32(p + 32)}; }
  static void store_bytes(uint8_t* p, Bytes a) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(p), a.low);
    _mm256_store_si256(reinterpret_cast<__m256i*>(p + 32), a.high);
  }
  template <int kShift, int kMask>
  static __m256i field(__m256i a) {
    return _mm256_and_si256(kShift == 0 ? a : _mm256_srli_epi16(a, kShift), _mm256_set1_epi8(static_cast<char>(kMask)));
  }
  template <int kShift, int kMask>
  static Bytes field(Bytes a) {
    return {field<kShift, kMask>(a.low), field<kShift, kMask>(a.high)};
  }
  // codes | ((plane >> kFrom) & kMask) << kTo
  template <int kFrom, int kTo, int kMask>
  static __m256i insert(__m256i codes, __m256i plane) {
    if constexpr (kFrom > kTo) plane = _mm256_srli_epi16(plane, kFrom - kTo);
    if constexpr (kFrom < kTo) plane = _mm256_slli_epi16(plane, kTo - kFrom);
    return _mm256_or_si256(codes, _mm256_and_si256(plane, _mm256_set1_epi8(static_cast<char>(kMask << kTo))));
  }
  template <int kFrom, int kTo, int kMask>
  static Bytes insert(Bytes codes, Bytes plane) {
    return {insert<kFrom, kTo, kMask>(codes.low, plane.low), insert<kFrom, kTo, kMask>(codes.high, plane.high)};
  }
  static Table load_table(const uint8_t* p) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static Bytes lookup(Table table, Bytes codes) {
    return {_mm256_shuffle_epi8(table, codes.low), _mm256_shuffle_epi8(table, codes.high)};
  }

  static Ints zero_ints() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
  static Ints broadcast_shifted(const int32_t* p, int shift) {
    const __m256i v = _mm256_sll_epi32(_mm256_set1_epi32(*p), _mm_cvtsi32_si128(shift));  // a shift by 32 gives zero
    return {v, v};
  }
  static Word broadcast_word(const int32_t* p) { return _mm256_set1_epi32(*p); }
  // Assembly, because GCC's own descriptions of the two instructions are so large that its combiner takes 40 s over
  // this file. w: u8, x: s8; sums of four products that fit 16 bits in pairs.
  static __m256i multiply_fours(__m256i w, __m256i x) {
    __m256i sums;
    asm("vpmaddubsw %2, %1, %0\n\tvpmaddwd %3, %0, %0" : "=&x"(sums) : "x"(w), "xm"(x), "x"(_mm256_set1_epi16(1)));
    return sums;
  }
  template <bool kWide>
  static __m256i dot(__m256i sum, __m256i w, __m256i x) {
    if constexpr (kVnni) {
#if defined(__AVXVNNI__)
      return _mm256_dpbusd_avx_epi32(sum, w, x);
#endif
    } else {
      if constexpr (kWide) {
        const __m256i s = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
        w = _mm256_abs_epi8(s);
        x = _mm256_sign_epi8(x, s);
      }
      return _mm256_add_epi32(sum, multiply_fours(w, x));
    }
  }
  template <bool kWide>
  static Ints dot(Ints sum, Bytes w, Word x) {
    return {dot<kWide>(sum.low, w.low, x), dot<kWide>(sum.high, w.high, x)};
  }

  static Floats zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static Floats broadcast(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
  static Floats load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static void store(float* p, Floats a) {
    _mm256_storeu_ps(p, a.low);
    _mm256_storeu_ps(p + 8, a.high);
  }
  static __m256i first_lanes(int64_t n) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), lane);
  }
  static Floats load_rows(const float* p, int64_t n) {
    if (n >= 16) return load(p);
    return {_mm256_maskload_ps(p, first_lanes(n)), _mm256_maskload_ps(p + 8, first_lanes(n - 8))};
  }
  static void store_rows(float* p, Floats a, int64_t n) {
    if (n >= 16) return store(p, a);
    _mm256_maskstore_ps(p, first_lanes(n), a.low);
    _mm256_maskstore_ps(p + 8, first_lanes(n - 8), a.high);
  }
  static Floats to_float(Ints a) { return {_mm256_cvtepi32_ps(a.low), _mm256_cvtepi32_ps(a.high)}; }
  static Floats add(Floats a, Floats b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
  static Floats sub(Floats a, Floats b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
  static Floats mul(Floats a, Floats b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
  static Floats add_product(Floats a, Floats b, Floats c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
  }
  static Floats sub_product(Floats a, Floats b, Floats c) {
    return {_mm256_fnmadd_ps(a.low, b.low, c.low), _mm256_fnmadd_ps(a.high, b.high, c.high)};
  }

  static __m128i load8(const uint8_t* p) { return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)); }
  static __m128i load16(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
  static Floats from_u8(const uint8_t* p) {
    return to_float({_mm256_cvtepu8_epi32(load8(p)), _mm256_cvtepu8_epi32(load8(p + 8))});
  }
  static Floats from_i8(const uint8_t* p) {
    return to_float({_mm256_cvtepi8_epi32(load8(p)), _mm256_cvtepi8_epi32(load8(p + 8))});
  }
  static Floats from_f16(const uint8_t* p) { return {_mm256_cvtph_ps(load16(p)), _mm256_cvtph_ps(load16(p + 16))}; }
  static __m256 widen_bf16(const uint8_t* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load16(p)), 16));
  }
  static Floats from_bf16(const uint8_t* p) { return {widen_bf16(p), widen_bf16(p + 16)}; }
  static Floats from_f32(const uint8_t* p) {
    return {_mm256_castsi256_ps(load32(p)), _mm256_castsi256_ps(load32(p + 32))};
  }
  static __m256 widen_e8m0_half(const uint8_t* p) {  // 2^(e - 128); the two smallest are subnormal
    const __m256i e = _mm256_cvtepu8_epi32(load8(p)), one = _mm256_set1_epi32(1);
    const __m256i normal = _mm256_slli_epi32(_mm256_sub_epi32(e, one), 23);
    const __m256i subnormal = _mm256_sllv_epi32(_mm256_set1_epi32(0x00200000), e);
    return _mm256_castsi256_ps(_mm256_blendv_epi8(subnormal, normal, _mm256_cmpgt_epi32(e, one)));
  }
  static Floats from_e8m0_half(const uint8_t* p) { return {widen_e8m0_half(p), widen_e8m0_half(p + 8)}; }

  // Of 32 floats: the largest magnitude as the bits of a float (so that NaN wins), and int8 with the sums of both
  // halves.
  static __m256i magnitude(Floats a) {
    const __m256i mask = _mm256_set1_epi32(0x7fffffff);
    return _mm256_max_epi32(_mm256_and_si256(_mm256_castps_si256(a.low), mask),
                            _mm256_and_si256(_mm256_castps_si256(a.high), mask));
  }
  static uint32_t max_magnitude(Floats low, Floats high) {
    const __m256i both = _mm256_max_epi32(magnitude(low), magnitude(high));
    __m128i m = _mm_max_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
    return static_cast<uint32_t>(_mm_cvtsi128_si32(_mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1))));
  }
  static __m256i to_int16(Floats a, __m256 inverse_scale) {
    const __m256i low = _mm256_cvtps_epi32(_mm256_mul_ps(a.low, inverse_scale));
    const __m256i high = _mm256_cvtps_epi32(_mm256_mul_ps(a.high, inverse_scale));
    return _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8);
  }
  static void quantize(Floats low, Floats high, float inverse_scale, int8_t* q, int32_t (&sums)[2]) {
    const __m256 factor = _mm256_set1_ps(inverse_scale);
    const __m256i first = to_int16(low, factor), second = to_int16(high, factor);
    const __m256i bytes = _mm256_permute4x64_epi64(_mm256_packs_epi16(first, second), 0xd8);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(q), bytes);
    const __m256i one = _mm256_set1_epi16(1);
    __m256i pairs = _mm256_hadd_epi32(_mm256_madd_epi16(first, one), _mm256_madd_epi16(second, one));
    pairs = _mm256_hadd_epi32(pairs, pairs);  // each 128 bits: first, second
    const __m128i both = _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
    sums[0] = _mm_cvtsi128_si32(both);
    sums[1] = _mm_extract_epi32(both, 1);
  }
};

}  // namespace
}  // namespace shale

// The codes of F32x16 in a register of 128 bits: what AVX2 and AVX-512 share. V is the vector type of the instruction
// set, so that each has functions of its own (isa.h says why). vector_portable.h says what each operation means.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace shale {

template <class V>
struct RegisterCodes {
  __m128i v;

  static RegisterCodes load(const uint8_t* p) { return {_mm_loadu_si128((const __m128i*)p)}; }
  static RegisterCodes low_nibbles(const uint8_t* p) { return {nibbles(load(p).v)}; }
  static RegisterCodes high_nibbles(const uint8_t* p) { return {nibbles(_mm_srli_epi16(load(p).v, 4))}; }
  static void transpose(RegisterCodes (&rows)[4]) {
    const __m128i low01 = _mm_unpacklo_epi32(rows[0].v, rows[1].v), high01 = _mm_unpackhi_epi32(rows[0].v, rows[1].v);
    const __m128i low23 = _mm_unpacklo_epi32(rows[2].v, rows[3].v), high23 = _mm_unpackhi_epi32(rows[2].v, rows[3].v);
    rows[0] = {_mm_unpacklo_epi64(low01, low23)};
    rows[1] = {_mm_unpackhi_epi64(low01, low23)};
    rows[2] = {_mm_unpacklo_epi64(high01, high23)};
    rows[3] = {_mm_unpackhi_epi64(high01, high23)};
  }

 private:
  static __m128i nibbles(__m128i v) { return _mm_sub_epi8(_mm_and_si128(v, _mm_set1_epi8(15)), _mm_set1_epi8(8)); }
};

}  // namespace shale

// The two inner loops that are written for one instruction set: sums of looked-up codes over a block of 32
// items, and inner products of 16 lists' 8-bit centres with an 8-bit query.
#pragma once
#include <immintrin.h>
#include <stdint.h>

namespace {

// codes, lookup: two sub-quantisers in 32 bytes after two, `pairs` times, an even number
// sums: of 32 items, aligned   least: 0 or more   -> which of the sums are at least that
#if defined(__AVX512VNNI__)

inline __m128i add_quarters(__m512i value) {
  __m256i half = _mm256_add_epi16(_mm512_castsi512_si256(value), _mm512_extracti64x4_epi64(value, 1));
  return _mm_add_epi16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

// A byte of each 16-bit sum is added for one item and spoils it for another: taken off at the end.
inline uint32_t scan_block(const uint8_t *codes, const uint8_t *lookup, int pairs, int16_t least,
                           int16_t *sums) {
  const __m512i low_half = _mm512_set1_epi8(15);
  __m512i even_low = _mm512_setzero_si512(), odd_low = even_low, even_high = even_low, odd_high = even_low;
  for (int pair = 0; pair < pairs; pair += 2) {
    __m512i code = _mm512_load_si512(codes + 32 * pair);
    __m512i table = _mm512_load_si512(lookup + 32 * pair);
    __m512i low = _mm512_shuffle_epi8(table, _mm512_and_si512(code, low_half));
    __m512i high = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(code, 4), low_half));
    even_low = _mm512_add_epi16(even_low, low);
    odd_low = _mm512_add_epi16(odd_low, _mm512_srli_epi16(low, 8));
    even_high = _mm512_add_epi16(even_high, high);
    odd_high = _mm512_add_epi16(odd_high, _mm512_srli_epi16(high, 8));
  }
  even_low = _mm512_sub_epi16(even_low, _mm512_slli_epi16(odd_low, 8));
  even_high = _mm512_sub_epi16(even_high, _mm512_slli_epi16(odd_high, 8));
  __m256i low = _mm256_set_m128i(add_quarters(odd_low), add_quarters(even_low));
  __m256i high = _mm256_set_m128i(add_quarters(odd_high), add_quarters(even_high));
  __m512i all = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
  _mm512_store_si512(sums, all);
  return _mm512_cmpge_epi16_mask(all, _mm512_set1_epi16(least));
}

// Which of 16 values are at least `least`.
inline uint32_t at_least(const float *values, float least) {
  return _mm512_cmp_ps_mask(_mm512_loadu_ps(values), _mm512_set1_ps(least), _CMP_GE_OQ);
}

// centres: quads of (16 lists, 4 dimensions) 0..255   query: (4 * quads) -127..127   -> (16)
inline void dot_lists(const uint8_t *centres, const int8_t *query, int quads, int32_t *dots) {
  __m512i first = _mm512_setzero_si512(), second = first;
  for (int quad = 0; quad < quads; ++quad) {
    int32_t four;
    __builtin_memcpy(&four, query + 4 * quad, 4);
    __m512i &sum = quad & 1 ? second : first;
    sum = _mm512_dpbusd_epi32(sum, _mm512_load_si512(centres + 64 * quad), _mm512_set1_epi32(four));
  }
  _mm512_storeu_si512(dots, _mm512_add_epi32(first, second));
}

#else

inline __m128i add_halves(__m256i value) {
  return _mm_add_epi16(_mm256_castsi256_si128(value), _mm256_extracti128_si256(value, 1));
}

inline uint32_t scan_block(const uint8_t *codes, const uint8_t *lookup, int pairs, int16_t least,
                           int16_t *sums) {
  const __m256i low_half = _mm256_set1_epi8(15);
  __m256i even_low = _mm256_setzero_si256(), odd_low = even_low, even_high = even_low, odd_high = even_low;
  for (int pair = 0; pair < pairs; ++pair) {
    __m256i code = _mm256_load_si256((const __m256i *)(codes + 32 * pair));
    __m256i table = _mm256_load_si256((const __m256i *)(lookup + 32 * pair));
    __m256i low = _mm256_shuffle_epi8(table, _mm256_and_si256(code, low_half));
    __m256i high = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(code, 4), low_half));
    even_low = _mm256_add_epi16(even_low, low);
    odd_low = _mm256_add_epi16(odd_low, _mm256_srli_epi16(low, 8));
    even_high = _mm256_add_epi16(even_high, high);
    odd_high = _mm256_add_epi16(odd_high, _mm256_srli_epi16(high, 8));
  }
  even_low = _mm256_sub_epi16(even_low, _mm256_slli_epi16(odd_low, 8));
  even_high = _mm256_sub_epi16(even_high, _mm256_slli_epi16(odd_high, 8));
  __m256i low = _mm256_set_m128i(add_halves(odd_low), add_halves(even_low));
  __m256i high = _mm256_set_m128i(add_halves(odd_high), add_halves(even_high));
  _mm256_store_si256((__m256i *)sums, low);
  _mm256_store_si256((__m256i *)(sums + 16), high);
  const __m256i below = _mm256_set1_epi16((int16_t)(least - 1));
  __m256i good = _mm256_packs_epi16(_mm256_cmpgt_epi16(low, below), _mm256_cmpgt_epi16(high, below));
  return (uint32_t)_mm256_movemask_epi8(_mm256_permute4x64_epi64(good, 0xd8));
}

inline uint32_t at_least(const float *values, float least) {
  const __m256 limit = _mm256_set1_ps(least);
  const int low = _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(values), limit, _CMP_GE_OQ));
  const int high = _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(values + 8), limit, _CMP_GE_OQ));
  return (uint32_t)(low | high << 8);
}

// Four lists at a time, in 16 bits: two products of bytes may not fit into one.
inline void dot_lists(const uint8_t *centres, const int8_t *query, int quads, int32_t *dots) {
  __m256i sums[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(),
                     _mm256_setzero_si256()};
  for (int quad = 0; quad < quads; ++quad) {
    int32_t four;
    __builtin_memcpy(&four, query + 4 * quad, 4);
    __m256i wide = _mm256_broadcastq_epi64(_mm_cvtepi8_epi16(_mm_cvtsi32_si128(four)));
    for (int part = 0; part < 4; ++part) {
      __m128i bytes = _mm_loadu_si128((const __m128i *)(centres + 64 * quad + 16 * part));
      sums[part] = _mm256_add_epi32(sums[part], _mm256_madd_epi16(_mm256_cvtepu8_epi16(bytes), wide));
    }
  }
  for (int part = 0; part < 4; part += 2) {
    __m256i added = _mm256_permute4x64_epi64(_mm256_hadd_epi32(sums[part], sums[part + 1]), 0xd8);
    _mm256_storeu_si256((__m256i *)(dots + 4 * part), added);
  }
}

#endif

}  // namespace

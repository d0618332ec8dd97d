// Vectors as wide as the instruction set this file is compiled for, and the few operations on them.
// Everything stands in a namespace named after the variant: the same templates compiled for another
// instruction set must never be taken for these by the linker.
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

#ifndef T2_VARIANT
#error "compile with -DT2_VARIANT=name"
#endif

#define T2_INLINE static inline __attribute__((always_inline))

namespace T2_VARIANT {

#if defined(__AVX512F__)
constexpr int W = 16;  // floats in a vector
#elif defined(__AVX2__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif

typedef float Floats __attribute__((vector_size(W * 4)));
typedef int32_t Ints __attribute__((vector_size(W * 4)));
typedef uint32_t Words __attribute__((vector_size(W * 4)));
typedef uint64_t Longs __attribute__((vector_size(W * 4)));
typedef float LooseFloats __attribute__((vector_size(W * 4), aligned(4), may_alias));

T2_INLINE Floats load(const float *from) { return *(const LooseFloats *)from; }
T2_INLINE void store(float *to, Floats values) { *(LooseFloats *)to = values; }
T2_INLINE Floats all(float value) { return value - Floats{}; }
T2_INLINE Floats magnitude(Floats x) { return (Floats)((Ints)x & 0x7fffffff); }

// 0, 1, 2 ... in 64-bit lanes.
T2_INLINE Longs lanes() {
  Longs result = {};
  for (int lane = 0; lane < W / 2; ++lane) result[lane] = lane;
  return result;
}

T2_INLINE float sum(Floats values) {
  float total = 0;
  for (int lane = 0; lane < W; ++lane) total += values[lane];
  return total;
}

// To the nearest whole number, halves to even.
T2_INLINE Floats nearest(Floats x) {
#if defined(__AVX512F__)
  return (Floats)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__AVX2__)
  return (Floats)_mm256_round_ps((__m256)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  const Floats magic = all(12582912.0f);  // 1.5 * 2^23; no -ffast-math, so this is not simplified away
  return (x + magic) - magic;
#endif
}

T2_INLINE Ints whole(Floats x) { return __builtin_convertvector(x, Ints); }

T2_INLINE Floats root(Floats x) {
#if defined(__AVX512F__)
  return (Floats)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX2__)
  return (Floats)_mm256_sqrt_ps((__m256)x);
#else
  Floats result;
  for (int lane = 0; lane < W; ++lane) result[lane] = sqrtf(x[lane]);
  return result;
#endif
}

// x * 2^power, for whole powers in -126..126.
T2_INLINE Floats scale_by_power(Floats x, Floats power) {
#if defined(__AVX512F__)
  return (Floats)_mm512_scalef_ps((__m512)x, (__m512)power);
#else
  return x * (Floats)((whole(power) + 127) << 23);
#endif
}

// 1 / x to rounding; `exact` false: to 14 bits where that is cheaper.
template <bool exact>
T2_INLINE Floats reciprocal(Floats x) {
#if defined(__AVX512F__)
  Floats guess = (Floats)_mm512_rcp14_ps((__m512)x);
  return exact ? guess * (2.0f - x * guess) : guess;
#else
  return 1.0f / x;
#endif
}

// Products of the low halves of 64-bit lanes.
T2_INLINE Longs multiply_low(Longs a, Longs b) {
#if defined(__AVX512F__)
  return (Longs)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (Longs)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return (Longs)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
  return (a & 0xffffffff) * (b & 0xffffffff);
#endif
}

// a0 b0 a1 b1 ... -> to[0..2W)
T2_INLINE void store_interleaved(float *to, Floats a, Floats b) {
#if defined(__AVX512F__)
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
  store(to, (Floats)_mm512_permutex2var_ps((__m512)a, low, (__m512)b));
  store(to + W, (Floats)_mm512_permutex2var_ps((__m512)a, high, (__m512)b));
#elif defined(__AVX2__)
  __m256 low = _mm256_unpacklo_ps((__m256)a, (__m256)b), high = _mm256_unpackhi_ps((__m256)a, (__m256)b);
  store(to, (Floats)_mm256_permute2f128_ps(low, high, 0x20));
  store(to + W, (Floats)_mm256_permute2f128_ps(low, high, 0x31));
#else
  for (int lane = 0; lane < W; ++lane) {
    to[2 * lane] = a[lane];
    to[2 * lane + 1] = b[lane];
  }
#endif
}

T2_INLINE int round_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

// Hands out aligned pieces of one block of memory; without a block it only adds up what is needed.
struct Arena {
  char *base;
  size_t used;
  template <class T>
  T *take(size_t count) {
    T *piece = (T *)(base ? base + used : NULL);
    used += (count * sizeof(T) + 63) / 64 * 64 + 64;
    return piece;
  }
};

// (rows, columns) with the columns padded by zeros.
static const float *padded_copy(Arena &arena, const float *from, int rows, int columns, int padded) {
  float *to = arena.take<float>((size_t)rows * padded);
  if (to)
    for (int row = 0; row < rows; ++row)
      for (int column = 0; column < padded; ++column)
        to[row * padded + column] = column < columns ? from[row * columns + column] : 0;
  return to;
}

}  // namespace T2_VARIANT

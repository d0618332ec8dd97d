// SiLU, GELU, softmax's exponential and the logarithm and circle functions of Box-Muller. The polynomials
// are least-maximum-error fits over the reduced ranges; the errors beside them are relative.
#pragma once
#include "simd.h"

namespace T2_VARIANT {

// e^x for x up to 87. exact: 1e-7, else 8e-5. NaN stays NaN.
template <bool exact>
T2_INLINE Floats exponential(Floats x) {
  Floats power = x * 1.44269504f;
  power = power < -126.0f ? all(-126.0f) : power;
  power = power > 126.0f ? all(126.0f) : power;
  Floats whole_power = nearest(power), rest = power - whole_power;
  Floats fraction;
  if (exact) {
    fraction = 9.675541333e-03f + rest * 1.327647187e-03f;
    fraction = 5.550713274e-02f + rest * fraction;
    fraction = 2.402211972e-01f + rest * fraction;
    fraction = 6.931469671e-01f + rest * fraction;
    fraction = 1.0f + rest * fraction;
  } else {
    fraction = 2.426111221e-01f + rest * 5.517166802e-02f;
    fraction = 6.932609857e-01f + rest * fraction;
    fraction = 9.999280735e-01f + rest * fraction;
  }
  return scale_by_power(fraction, whole_power);
}

template <bool exact>
T2_INLINE Floats silu(Floats x) {
  return x * reciprocal<exact>(1.0f + exponential<exact>(-x));
}

// x Φ(x); erf to 3e-8.
T2_INLINE Floats gelu(Floats x) {
  Floats size = magnitude(x) * 0.707106781f;
  Floats t = reciprocal<true>(1.0f + 0.4f * size);
  Floats tail = 7.091495230e-01f - t * 2.002597819e-01f;
  tail = -3.709114991e-01f + t * tail;
  tail = 4.682770384e-01f + t * tail;
  tail = 1.618224151e-01f + t * tail;
  tail = 2.319222769e-01f + t * tail;
  tail = t * tail * exponential<true>(-size * size);  // erfc(|x| / √2)
  Floats erf = x < 0.0f ? tail - 1.0f : 1.0f - tail;
  return 0.5f * x * (1.0f + erf);
}

// ln(x / 2^shift) for normal x > 0; 3e-8 before rounding, near 1 as well.
T2_INLINE Floats logarithm(Floats x, int shift) {
  Ints bits = (Ints)x;
  Ints power = (bits - 0x3f3504f3) >> 23;  // the mantissa is brought to √½ .. √2
  Floats m = (Floats)(bits - (power << 23)) - 1.0f;
  Floats tail = -1.426748697e-01f + m * 8.700435915e-02f;
  tail = 1.491476788e-01f + m * tail;
  tail = -1.657758467e-01f + m * tail;
  tail = 1.996306380e-01f + m * tail;
  tail = -2.500133704e-01f + m * tail;
  tail = 3.333391074e-01f + m * tail;
  Floats of_mantissa = m + m * m * (m * tail - 0.5f);
  return __builtin_convertvector(power - shift, Floats) * 0.693147181f + of_mantissa;
}

// cos and sin of a turn of word / 2^32, whose quadrant and rest the word's own bits are.
T2_INLINE void circle(Words word, Floats &cosine, Floats &sine) {
  Floats rest = __builtin_convertvector((Ints)(word << 2), Floats) * 2.3283064365386963e-10f;
  Floats square = rest * rest;  // rest in ±½ of a quarter turn
  Floats s = 7.968003277e-02f - square * 4.601657887e-03f;
  s = -6.459634602e-01f + square * s;
  s = rest * (1.570796322e+00f + square * s);
  Floats c = 2.535949467e-01f - square * 2.039858178e-02f;
  c = -1.233696662e+00f + square * c;
  c = 1.0f + square * c;
  Words quadrant = word + 0x20000000;  // in its two highest bits
  Ints odd = (Ints)(quadrant << 1) >> 31;
  cosine = (Floats)((((Ints)s & odd) | ((Ints)c & ~odd)) ^ ((Ints)(quadrant + 0x40000000) & (int)0x80000000));
  sine = (Floats)((((Ints)c & odd) | ((Ints)s & ~odd)) ^ ((Ints)quadrant & (int)0x80000000));
}

}  // namespace T2_VARIANT

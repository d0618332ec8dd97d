// The noise of model/noise.py: Philox4x32-10 of counters (block, step, 0, 0), then Box-Muller.
#pragma once

// Four words of one block of a request's step.
T2_DEVICE Quad philox(Key key, Word step, Word block) {
  Quad counter = {block, step, 0, 0};
  Word k0 = (Word)key, k1 = (Word)(key >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const Word low_0 = 0xD2511F53u * counter.x, high_0 = high_product(0xD2511F53u, counter.x);
    const Word low_1 = 0xCD9E8D57u * counter.z, high_1 = high_product(0xCD9E8D57u, counter.z);
    counter = {high_1 ^ counter.y ^ k0, low_1, high_0 ^ counter.w ^ k1, low_0};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return counter;
}

// (word + 1/2) / 2^32, in (0, 1].
T2_DEVICE float uniform_of(Word word) { return ((float)word + 0.5f) * 2.3283064365386963e-10f; }

// Two normals from two words, to about 2^-20: finer than the numbers that they are added to.
T2_DEVICE void fast_normals(Word of_radius, Word of_angle, float &first, float &second) {
  // A logarithm near 1 may come out above 0. A negated angle half a turn away stays where sine is exact.
  const float radius = fast_root(fmaxf(-2.0f * fast_log(uniform_of(of_radius)), 0.0f));
  float cosine, sine;
  fast_circle(6.2831853071795865f * (uniform_of(of_angle) - 0.5f), cosine, sine);
  first = -radius * cosine;
  second = -radius * sine;
}

// The same to rounding.
T2_DEVICE void exact_normals(Word of_radius, Word of_angle, float &first, float &second) {
  const float radius = exact_root(-2.0f * exact_log(uniform_of(of_radius)));
  float cosine, sine;
  exact_circle(2.0f * uniform_of(of_angle), cosine, sine);
  first = radius * cosine;
  second = radius * sine;
}

// The noise of model/noise.py: Philox4x32-10 of counters (block, step, 0, 0), then Box-Muller.
#pragma once
#include "activation.h"

namespace T2_VARIANT {

constexpr int BLOCKS = W / 2;       // blocks of four words at once, one a 64-bit lane
constexpr int NORMALS = 4 * BLOCKS;  // numbers that they give

struct Counter {  // word w of some blocks; the upper halves of the lanes hold rubbish
  Longs words[4];
};

// GROUPS times BLOCKS blocks from block `first` on: several at once hide the latency of the products.
template <int GROUPS>
T2_INLINE void philox(uint64_t key, uint32_t step, uint64_t first, Counter *counters) {
  const Longs multiplier_0 = 0xD2511F53 - Longs{}, multiplier_1 = 0xCD9E8D57 - Longs{};
  uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
#pragma GCC unroll 4
  for (int group = 0; group < GROUPS; ++group) {
    Longs *c = counters[group].words;
    c[0] = first + group * BLOCKS + lanes();
    c[1] = (uint64_t)step - Longs{};
    c[2] = c[3] = Longs{};
  }
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
#pragma GCC unroll 4
    for (int group = 0; group < GROUPS; ++group) {
      Longs *c = counters[group].words;
      Longs product_0 = multiply_low(c[0], multiplier_0), product_1 = multiply_low(c[2], multiplier_1);
      c[0] = (product_1 >> 32) ^ c[1] ^ ((uint64_t)k0 - Longs{});
      c[2] = (product_0 >> 32) ^ c[3] ^ ((uint64_t)k1 - Longs{});
      c[1] = product_1;
      c[3] = product_0;
    }
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
}

// Two words a 64-bit lane.
T2_INLINE Words joined(Longs even, Longs odd) { return (Words)((even & 0xffffffff) | (odd << 32)); }

// GROUPS * NORMALS numbers from block `first` on.
template <int GROUPS>
T2_INLINE void normals_of(uint64_t key, uint32_t step, uint64_t first, float *out) {
  Counter counters[GROUPS];
  philox<GROUPS>(key, step, first, counters);
#pragma GCC unroll 4
  for (int group = 0; group < GROUPS; ++group) {
    const Longs *words = counters[group].words;
    Floats uniform = __builtin_convertvector(joined(words[0], words[2]), Floats) + 0.5f;  // times 2^-32
    Floats radius = root(-2.0f * logarithm(uniform, 32));
    Floats cosine, sine;
    circle(joined(words[1], words[3]), cosine, sine);
    store_interleaved(out + group * NORMALS, radius * cosine, radius * sine);
  }
}

constexpr int AT_ONCE = W == 16 ? 4 : 2;  // as many as the registers hold

// The first `count` numbers of a step; writes up to AT_ONCE * NORMALS - 1 more.
static void normals(uint64_t key, uint32_t step, int64_t count, float *out) {
  for (int64_t done = 0; done < count; done += AT_ONCE * NORMALS)
    normals_of<AT_ONCE>(key, step, done / 4, out + done);
}

}  // namespace T2_VARIANT

// Small things on rows in fp32: inner products, LayerNorm, softmax, and a matrix with its bias.
#pragma once
#include "matrix.h"

namespace T2_VARIANT {

T2_INLINE float dot(const float *a, const float *b, int count) {
  Floats total = Floats{};
  int at = 0;
  for (; at + W <= count; at += W) total += load(a + at) * load(b + at);
  float result = sum(total);
  for (; at < count; ++at) result += a[at] * b[at];
  return result;
}

// to += weight * from
T2_INLINE void accumulate(float *to, float weight, const float *from, int count) {
  int at = 0;
  for (; at + W <= count; at += W) store(to + at, load(to + at) + weight * load(from + at));
  for (; at < count; ++at) to[at] += weight * from[at];
}

// LayerNorm over `count` numbers; without a weight, neither weight nor bias.
static void normalise(const float *from, const float *weight, const float *bias, float epsilon, int count,
                      float *to) {
  float mean = 0, variance = 0;
  Floats total = Floats{};
  int at = 0;
  for (; at + W <= count; at += W) total += load(from + at);
  mean = sum(total);
  for (; at < count; ++at) mean += from[at];
  mean /= count;
  total = Floats{};
  for (at = 0; at + W <= count; at += W) total += (load(from + at) - mean) * (load(from + at) - mean);
  variance = sum(total);
  for (; at < count; ++at) variance += (from[at] - mean) * (from[at] - mean);
  float scale = 1 / sqrtf(variance / count + epsilon);
  for (at = 0; at < count; ++at)
    to[at] = (from[at] - mean) * scale * (weight ? weight[at] : 1) + (bias ? bias[at] : 0);
}

// Scores -> weights, in place; `count` numbers in memory padded to whole vectors.
static void softmax(float *scores, int count) {
  float top = scores[0], total = 0;
  for (int at = 1; at < count; ++at) top = scores[at] > top ? scores[at] : top;
  for (int at = 0; at < count; at += W) store(scores + at, exponential<true>(load(scores + at) - top));
  for (int at = 0; at < count; ++at) total += scores[at];
  for (int at = 0; at < count; ++at) scores[at] /= total;
}

// A matrix with its bias: out = in · weightᵀ + bias.
struct Linear {
  Matrix<Single> matrix;
  const float *bias;

  void build(Arena &arena, const float *weight, const float *bias_, int in, int out) {
    int padded = round_up(out, W);
    matrix.pack(arena, in, padded,
                [=](int k, int n) { return n < out ? weight[(size_t)n * in + k] : 0.0f; });
    float *copy = arena.take<float>(padded);
    if (copy)
      for (int n = 0; n < padded; ++n) copy[n] = n < out ? bias_[n] : 0;
    bias = copy;
  }
  int outputs() const { return matrix.outputs; }
  // add: rows to add, with a stride of 0 for one row that all share
  void apply(int rows, const float *in, ptrdiff_t stride, const float *add, ptrdiff_t add_stride, float *out,
             ptrdiff_t out_stride) const {
    product<Single, Plain>(rows, in, stride, matrix, add, add_stride, bias, out, out_stride);
  }
};

static const float *kept(Arena &arena, const float *from, size_t count) {
  float *to = arena.take<float>(count + W);
  if (to && from) memcpy(to, from, count * sizeof(float));
  return from ? to : NULL;
}

}  // namespace T2_VARIANT

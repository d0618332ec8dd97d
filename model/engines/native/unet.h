// The U-Net's weights (Eq. 15) as the products read them.
//
// Exact algebra: the condition's half of the first convolution stands apart, for it is computed once; an
// upsampled row repeats a shorter one, so its products with the three taps are taken at the shorter length
// and only added up at the longer one.
#pragma once
#include "matrix.h"
#include "tower.h"

namespace T2_VARIANT {

constexpr int TAPS = 3;
enum Block { ENCODE_FULL, ENCODE_HALF, ENCODE_QUARTER, BOTTLENECK, DECODE_HALF, DECODE_FULL, PREDICT };

template <class Kind>
struct Unet {
  typedef typename Kind::Number Number;
  bool causal, draws_start;
  int dim, num_steps, before;
  int wide, full, half, quarter;  // D and the channels, padded to whole vectors
  const int32_t *noise_steps;
  const float *coefficients, *zeros, *predict_bias;
  const float *tables[6];  // (steps, padded channels)
  Matrix<Single> condition;
  Matrix<Kind> drift, encode_half, encode_quarter, bottleneck, decode_half_up, decode_half_skip,
      decode_full_up, decode_full_skip, predict;

  void build(Arena &arena, const T2Spec &spec) {
    causal = spec.causal, draws_start = spec.draws_start;
    before = causal ? TAPS - 1 : TAPS / 2;
    dim = spec.embedding_dim, num_steps = spec.num_steps;
    wide = round_up(dim, W), full = round_up(spec.full, W);
    half = round_up(spec.half, W), quarter = round_up(spec.quarter, W);
    zeros = padded_copy(arena, NULL, 1, 0, TAPS * (wide + full + half + quarter));
    if (!num_steps) return;
    int32_t *steps = arena.take<int32_t>(num_steps + 1);
    if (steps) memcpy(steps, spec.noise_steps, (num_steps + 1) * sizeof *steps);
    noise_steps = steps;
    coefficients = padded_copy(arena, spec.coefficients, num_steps, 3, 3);
    const int channels[6] = {spec.full, spec.half, spec.quarter, spec.quarter, spec.half, spec.full};
    for (int number = 0; number < 6; ++number)
      tables[number] = padded_copy(arena, spec.step_tables[number], num_steps, channels[number],
                                   round_up(channels[number], W));
    predict_bias = padded_copy(arena, spec.predict_bias, 1, dim, wide);
    pack_taps(arena, condition, spec.kernels[ENCODE_FULL], 2 * dim, dim, dim, spec.full);
    pack_taps(arena, drift, spec.kernels[ENCODE_FULL], 2 * dim, 0, dim, spec.full);
    pack_taps(arena, encode_half, spec.kernels[ENCODE_HALF], spec.full, 0, spec.full, spec.half);
    pack_taps(arena, encode_quarter, spec.kernels[ENCODE_QUARTER], spec.half, 0, spec.half, spec.quarter);
    pack_taps(arena, bottleneck, spec.kernels[BOTTLENECK], spec.quarter, 0, spec.quarter, spec.quarter);
    pack_up(arena, decode_half_up, spec.kernels[DECODE_HALF], spec.quarter + spec.half, spec.quarter,
            spec.half);
    pack_taps(arena, decode_half_skip, spec.kernels[DECODE_HALF], spec.quarter + spec.half, spec.quarter,
              spec.half, spec.half);
    pack_up(arena, decode_full_up, spec.kernels[DECODE_FULL], spec.half + spec.full, spec.half, spec.full);
    pack_taps(arena, decode_full_skip, spec.kernels[DECODE_FULL], spec.half + spec.full, spec.half,
              spec.full, spec.full);
    pack_taps(arena, predict, spec.kernels[PREDICT], spec.full, 0, spec.full, dim);
  }

  // The inputs first .. first + in of a (out, 3 * total) kernel, for three rows read as one.
  template <class Number_>
  static void pack_taps(Arena &arena, Matrix<Number_> &matrix, const float *kernel, int total, int first,
                        int in, int out) {
    int padded = round_up(in, W);
    matrix.pack(arena, TAPS * padded, round_up(out, W), [=](int k, int n) {
      int tap = k / padded, input = k % padded;
      return input < in && n < out ? kernel[(size_t)n * TAPS * total + tap * total + first + input] : 0;
    });
  }

  // The first `in` inputs, for one row that is read by three taps: outputs side by side.
  static void pack_up(Arena &arena, Matrix<Kind> &matrix, const float *kernel, int total, int in, int out) {
    int padded = round_up(out, W);
    matrix.pack(arena, round_up(in, W), TAPS * padded, [=](int k, int n) {
      int tap = n / padded, output = n % padded;
      return k < in && output < out ? kernel[(size_t)output * TAPS * total + tap * total + k] : 0;
    });
  }

  int shorter(int rows) const { return causal ? rows / 2 : (rows + 1) / 2; }

  // The row of the shorter level that an upsampled row repeats, or -1.
  int source(int row, int count) const {
    int from = causal ? (row < 1 ? -1 : (row - 1) / 2) : (row < 0 ? -1 : row / 2);
    return from < count ? from : -1;
  }

  // Multiply-adds of one request, twice.
  double operations(int rows) const {
    double halves = shorter(rows), quarters = shorter((int)halves);
    double step = rows * (double)(drift.depth * full + decode_full_skip.depth * full + predict.depth * wide) +
                  halves * (encode_half.depth * half + decode_half_skip.depth * half + half * TAPS * full) +
                  quarters * (2.0 * bottleneck.depth * quarter + quarter * TAPS * half);
    if (half != quarter) step += quarters * (encode_quarter.depth - bottleneck.depth) * quarter;
    return num_steps ? 2 * (num_steps * step + (double)rows * condition.depth * full) : 0;
  }
};

}  // namespace T2_VARIANT

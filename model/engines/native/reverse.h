// Algorithm 2 for one sequence: all steps of the reverse process over the U-Net, in cache. Causal levels
// hold only the rows that a real position can feel.
#pragma once
#include "philox.h"
#include "unet.h"

namespace T2_VARIANT {

// What is kept in fp32 for one sequence, whatever the convolutions read.
struct State {
  float *state, *condition, *predicted, *noise, *added, *shared;

  template <class Kind>
  void build(Arena &arena, const Unet<Kind> &unet, int width) {
    int halves = width / 2 + 1, quarters = halves / 2 + 1;
    state = arena.take<float>((size_t)width * unet.wide);
    condition = arena.take<float>((size_t)width * unet.full);
    predicted = arena.take<float>((size_t)width * unet.wide);
    noise = arena.take<float>((size_t)width * unet.dim + unet.wide + AT_ONCE * NORMALS);
    size_t most = (size_t)width * unet.full, other = (size_t)halves * unet.half;
    added = arena.take<float>(most > other ? most : other);
    most = (size_t)halves * TAPS * unet.full, other = (size_t)quarters * TAPS * unet.half;
    shared = arena.take<float>(most > other ? most : other);
  }
};

// Rows of one sequence at every level, with zero rows around those that a convolution reads.
template <class Kind>
struct Rows {
  typedef typename Kind::Number Number;
  Number *drift, *full, *to_half, *half, *to_quarter, *quarter, *bottom, *middle, *decoded;
  Number *begin, *end;

  void build(Arena &arena, const Unet<Kind> &unet, int width) {
    int halves = width / 2 + 1, quarters = halves / 2 + 1;
    bottom = arena.take<Number>((size_t)quarters * unet.quarter);
    middle = arena.take<Number>((size_t)halves * unet.half);
    begin = arena.take<Number>(0);
    drift = arena.take<Number>((size_t)(width + TAPS) * unet.wide);
    full = arena.take<Number>((size_t)(width + TAPS) * unet.full);
    to_half = arena.take<Number>((size_t)(halves + TAPS) * unet.full);
    half = arena.take<Number>((size_t)(halves + TAPS) * unet.half);
    to_quarter = arena.take<Number>((size_t)(quarters + TAPS) * unet.half);
    quarter = arena.take<Number>((size_t)(quarters + TAPS) * unet.quarter);
    decoded = arena.take<Number>((size_t)(width + TAPS) * unet.full);
    end = arena.take<Number>(0);
  }
  void clear() { memset((void *)begin, 0, (char *)end - (char *)begin); }
};

// Rows 1, 3, 5 ... of `from` become rows 0, 1, 2 ... of `to`.
template <class Number>
T2_INLINE void take_odd_rows(const Number *from, Number *to, int count, int channels) {
  for (int row = 0; row < count; ++row)
    for (int at = 0; at < channels; at += W)  // whole vectors, which memcpy cannot know
      memcpy(to + row * channels + at, from + (2 * row + 1) * channels + at, W * sizeof(Number));
}

// What three taps read of an upsampled sequence, from the products of the shorter one.
template <class Kind>
T2_INLINE void add_taps(const Unet<Kind> &unet, const float *shared, int count, int rows, int channels,
                        float *added) {
  for (int row = 0; row < rows; ++row) {
    const float *taps[TAPS];
    for (int tap = 0; tap < TAPS; ++tap) {
      int from = unet.source(row - unet.before + tap, count);
      taps[tap] = from < 0 ? unet.zeros : shared + ((size_t)from * TAPS + tap) * channels;
    }
    for (int channel = 0; channel < channels; channel += W)
      store(added + row * channels + channel,
            load(taps[0] + channel) + load(taps[1] + channel) + load(taps[2] + channel));
  }
}

// f_θ at step `index` (Eq. 15): rows.drift -> state.predicted.
template <class Kind>
static void predict(const Unet<Kind> &unet, Rows<Kind> &rows, State &state, int index, int length) {
  typedef Activated<Kind> Silu;
  int halves = unet.shorter(length), quarters = unet.shorter(halves), before = unet.before;
  int full = unet.full, half = unet.half, quarter = unet.quarter;
  typename Kind::Number *skip_full = rows.full + before * full, *skip_half = rows.half + before * half;
  const float *zeros = unet.zeros;
  product<Kind, Silu>(length, rows.drift, unet.wide, unet.drift, state.condition, full,
                      unet.tables[ENCODE_FULL] + index * full, skip_full, full);
  take_odd_rows(skip_full, rows.to_half + before * full, halves, full);
  product<Kind, Silu>(halves, rows.to_half, full, unet.encode_half, zeros, 0,
                      unet.tables[ENCODE_HALF] + index * half, skip_half, half);
  take_odd_rows(skip_half, rows.to_quarter + before * half, quarters, half);
  product<Kind, Silu>(quarters, rows.to_quarter, half, unet.encode_quarter, zeros, 0,
                      unet.tables[ENCODE_QUARTER] + index * quarter, rows.quarter + before * quarter, quarter);
  product<Kind, Silu>(quarters, rows.quarter, quarter, unet.bottleneck, zeros, 0,
                      unet.tables[BOTTLENECK] + index * quarter, rows.bottom, quarter);
  product<Kind, Plain>(quarters, rows.bottom, quarter, unet.decode_half_up, zeros, 0, zeros, state.shared,
                       TAPS * half);
  add_taps(unet, state.shared, quarters, halves, half, state.added);
  product<Kind, Silu>(halves, rows.half, half, unet.decode_half_skip, state.added, half,
                      unet.tables[DECODE_HALF] + index * half, rows.middle, half);
  product<Kind, Plain>(halves, rows.middle, half, unet.decode_full_up, zeros, 0, zeros, state.shared,
                       TAPS * full);
  add_taps(unet, state.shared, halves, length, full, state.added);
  product<Kind, Silu>(length, rows.full, full, unet.decode_full_skip, state.added, full,
                      unet.tables[DECODE_FULL] + index * full, rows.decoded + before * full, full);
  product<Kind, Plain>(length, rows.decoded, full, unet.predict, zeros, 0, unet.predict_bias,
                       state.predicted, unet.wide);
}

// The state becomes `of_predicted * prediction + of_current * state + sigma * noise` (Eq. 17).
template <class Kind>
T2_INLINE void fuse(const Unet<Kind> &unet, Rows<Kind> &rows, State &state, const float *coefficients,
                    int length) {
  Floats of_predicted = all(coefficients[0]), of_current = all(coefficients[1]), sigma = all(coefficients[2]);
  typename Kind::Number *drift = rows.drift + unet.before * unet.wide;
  for (int row = 0; row < length; ++row)
    for (int column = 0; column < unet.wide; column += W) {
      size_t at = (size_t)row * unet.wide + column;
      Floats next = of_predicted * load(state.predicted + at) + of_current * load(state.state + at);
      next += sigma * load(state.noise + row * unet.dim + column);
      store(state.state + at, next);
      Kind::put(drift + at, next);
    }
}

// z_T in `state`, and what of the first convolution the condition alone gives.
// padded: the condition's rows with zero rows before
template <class Kind>
static void begin(const Unet<Kind> &unet, State &state, const float *padded, int length, uint64_t key) {
  memset(state.predicted, 0, (size_t)length * unet.wide * sizeof(float));
  memset(state.noise, 0, ((size_t)length * unet.dim + unet.wide) * sizeof(float));
  memset(state.state, 0, (size_t)length * unet.wide * sizeof(float));
  product<Single, Plain>(length, padded, unet.wide, unet.condition, unet.zeros, 0, unet.zeros,
                         state.condition, unet.full);
  if (!unet.draws_start) return;
  normals(key, unet.noise_steps[0], (int64_t)length * unet.dim, state.noise);
  for (int row = 0; row < length; ++row)
    memcpy(state.state + (size_t)row * unet.wide, state.noise + (size_t)row * unet.dim,
           unet.dim * sizeof(float));
}

// Steps first..last of the plan.
template <class Kind>
static void reverse(const Unet<Kind> &unet, Rows<Kind> &rows, State &state, int first, int last, int length,
                    uint64_t key) {
  const float unchanged[3] = {0, 1, 0};
  rows.clear();
  fuse(unet, rows, state, unchanged, length);  // the state as the convolutions read it
  for (int index = first; index < last; ++index) {
    predict(unet, rows, state, index, length);
    if (unet.noise_steps[index + 1])
      normals(key, unet.noise_steps[index + 1], (int64_t)length * unet.dim, state.noise);
    fuse(unet, rows, state, unet.coefficients + 3 * index, length);
  }
}

}  // namespace T2_VARIANT

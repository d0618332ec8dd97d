// Mixed attention for the last position (Eq. 19-22), in fp32.
//
// x̂ stands as one more row after the behaviours: then it is a token like the others, whose session is
// the last one and itself. A layer works on no more rows than reach that token through the layers above.
#pragma once
#include "attention.h"

namespace T2_VARIANT {

// Memory for one sequence. Rows are `wide` numbers apart.
struct AttentionRows {
  float *state, *normed, *query, *key_value, *attended, *inner, *scores, *effective, *row_bias, *pair;
  int32_t *start, *lag;

  void build(Arena &arena, const Attention &of, int width) {
    int rows = width + 1, wide = of.wide, inner_wide = round_up(of.hidden, W);
    int unit = round_up(of.activation_hidden, W);
    state = arena.take<float>((size_t)rows * wide);
    normed = arena.take<float>((size_t)rows * wide);
    query = arena.take<float>((size_t)rows * wide);
    key_value = arena.take<float>((size_t)rows * 2 * wide);
    attended = arena.take<float>((size_t)rows * wide);
    int most = inner_wide > unit ? inner_wide : unit;
    inner = arena.take<float>((size_t)rows * (most > 2 * wide ? most : 2 * wide));
    scores = arena.take<float>(rows + W);
    effective = arena.take<float>((size_t)of.dim * unit);
    row_bias = arena.take<float>((size_t)rows * unit);
    pair = arena.take<float>(4 * wide);
    start = arena.take<int32_t>(rows);
    lag = arena.take<int32_t>(rows);
  }
};

// 0: unknown, 1: none, b: a lag in [2^(b-2), 2^(b-1)) seconds, the last one open (sessions.lag_bucket).
static int lag_bucket(int64_t later, int64_t earlier) {
  if (later == -1 || earlier == -1) return 0;
  int64_t seconds = later - earlier;
  int bits = seconds > 0 ? 64 - __builtin_clzll((uint64_t)seconds) : 0;
  return bits + 1 < T2_NUM_LAG_BUCKETS ? bits + 1 : T2_NUM_LAG_BUCKETS - 1;
}

// The attention of rows from..length (the intent last) over the sessions that end at them.
static void attend_rows(const Attention &of, const Layer &layer, AttentionRows &rows, int from, int length) {
  int head_dim = of.dim / of.num_heads, pair = 2 * of.wide;
  float scale = 1 / sqrtf((float)head_dim);
  for (int row = from; row <= length; ++row) {
    int first = rows.start[row];
    float *out = rows.attended + (size_t)row * of.wide;
    memset(out, 0, of.wide * sizeof(float));
    for (int head = 0; head < of.num_heads; ++head) {
      const float *query = rows.query + (size_t)row * of.wide + head * head_dim;
      for (int key = first; key <= row; ++key) {
        int back = row - key < of.session_length ? row - key : of.session_length;
        float score = dot(query, rows.key_value + (size_t)key * pair + head * head_dim, head_dim) * scale;
        score += layer.distance_bias[back * of.num_heads + head];
        if (of.time_lag && row == length && key < length)
          score += layer.lag_bias[rows.lag[key] * of.num_heads + head];
        rows.scores[key - first] = score;
      }
      softmax(rows.scores, row - first + 1);
      for (int key = first; key <= row; ++key)
        accumulate(out + head * head_dim, rows.scores[key - first],
                   rows.key_value + (size_t)key * pair + of.dim + head * head_dim, head_dim);
    }
  }
}

// h_s (Eq. 19) -> interest.   rows.state: behaviours first..length - 1, then the intent in row `length`
static void session_interest(const Attention &of, AttentionRows &rows, int length, float *interest) {
  int wide = of.wide, hidden_wide = round_up(of.hidden, W);
  int lowest[T2_MAX_LAYERS + 1];  // the first row that each layer reads; of the last entry, that is read out
  lowest[of.num_layers] = rows.start[length];
  for (int number = of.num_layers - 1; number >= 0; --number) {
    bool updates = number + 1 < of.num_layers || of.mean_readout;
    lowest[number] = updates ? rows.start[lowest[number + 1]] : lowest[number + 1];
  }
  for (int number = 0; number < of.num_layers; ++number) {
    const Layer &layer = of.layers[number];
    int low = lowest[number];
    bool updates = number + 1 < of.num_layers || of.mean_readout;
    int from = updates ? lowest[number + 1] : length;  // the first row that is updated
    int count = length + 1 - from;
    for (int row = low; row <= length; ++row)
      normalise(rows.state + (size_t)row * wide, layer.norm_attention_weight, layer.norm_attention_bias,
                of.epsilon, of.dim, rows.normed + (size_t)row * wide);
    layer.key_value.apply(length + 1 - low, rows.normed + (size_t)low * wide, wide, of.zeros, 0,
                          rows.key_value + (size_t)low * 2 * wide, 2 * wide);
    layer.query.apply(count, rows.normed + (size_t)from * wide, wide, of.zeros, 0,
                      rows.query + (size_t)from * wide, wide);
    attend_rows(of, layer, rows, from, length);
    float *state = rows.state + (size_t)from * wide;
    layer.output.apply(count, rows.attended + (size_t)from * wide, wide, state, wide, state, wide);
    for (int row = 0; row < count; ++row)
      normalise(state + (size_t)row * wide, layer.norm_feed_forward_weight, layer.norm_feed_forward_bias,
                of.epsilon, of.dim, rows.normed + (size_t)row * wide);
    layer.first.apply(count, rows.normed, wide, of.zeros, 0, rows.inner, hidden_wide);
    for (size_t at = 0; at < (size_t)count * hidden_wide; at += W)
      store(rows.inner + at, gelu(load(rows.inner + at)));
    layer.second.apply(count, rows.inner, hidden_wide, state, wide, state, wide);
  }
  const float *intent = rows.state + (size_t)length * wide;
  if (of.mean_readout) {
    int first = rows.start[length];
    float *mean = rows.normed;
    memset(mean, 0, wide * sizeof(float));
    for (int row = first; row <= length; ++row)
      accumulate(mean, 1.0f / (length + 1 - first), rows.state + (size_t)row * wide, of.dim);
    intent = mean;
  }
  normalise(intent, of.norm_interest_weight, of.norm_interest_bias, of.epsilon, of.dim, interest);
}

// h_l of the first `count` behaviours (Eq. 20, 21) -> history
static void activation_unit(const Attention &of, AttentionRows &rows, const float *sequence, int count,
                            const float *interest, float *history) {
  int unit = round_up(of.activation_hidden, W);
  float *shared = rows.row_bias;  // what h_s alone says
  of.of_interest.apply(1, interest, of.wide, of.zeros, 0, shared, unit);
  Matrix<Single> effective = of.of_item;
  effective.data = rows.effective;
  const float *item = of.of_item.data, *product_part = of.of_product.data;
  float *to = rows.effective;
  for (int done = 0, vectors; done < unit; done += vectors * W) {
    vectors = Matrix<Single>::chunk((unit - done) / W);
    for (int k = 0; k < of.dim; ++k)
      for (int v = 0; v < vectors; ++v, item += W, product_part += W, to += W)
        store(to, load(item) + interest[k] * load(product_part));
  }
  float *added = rows.row_bias + unit;
  for (int row = 0; row < count; ++row)
    for (int at = 0; at < unit; at += W)
      store(added + (size_t)row * unit + at,
            load(shared + at) +
                (of.time_lag ? load(of.target_lag + (size_t)rows.lag[row] * unit + at) : Floats{}));
  product<Single, Activated<Single>>(count, sequence, of.wide, effective, added, unit, of.zeros, rows.inner,
                                     unit);
  for (int row = 0; row < count; ++row)
    rows.scores[row] = dot(rows.inner + (size_t)row * unit, of.second_weight, unit) + of.second_bias;
  rows.scores[count] = of.none_score[0];
  softmax(rows.scores, count + 1);
  for (int row = 0; row < count; ++row)
    accumulate(history, rows.scores[row], sequence + (size_t)row * of.wide, of.dim);
}

// The same by heads: keys and values are linear, so the query goes through the keys' matrix once, and the
// weighted mean of the behaviours through the values'.
static void multi_head_history(const Attention &of, AttentionRows &rows, const float *sequence, int count,
                               const float *interest, float *history) {
  int head_dim = of.dim / of.num_heads;
  float scale = 1 / sqrtf((float)head_dim), *query = rows.query, *through = rows.normed, *mean = rows.attended;
  of.query.apply(1, interest, of.wide, of.zeros, 0, query, of.wide);
  for (int head = 0; head < of.num_heads; ++head) {
    float constant = 0, total = 0;
    memset(through, 0, of.wide * sizeof(float));
    memset(mean, 0, of.wide * sizeof(float));
    for (int n = head * head_dim; n < (head + 1) * head_dim; ++n) {
      accumulate(through, query[n], of.key_value_weight + (size_t)n * of.dim, of.dim);
      constant += query[n] * of.key_value_bias[n];
    }
    for (int row = 0; row < count; ++row) {
      float score = (dot(through, sequence + (size_t)row * of.wide, of.dim) + constant) * scale;
      if (of.time_lag) score += of.target_lag[rows.lag[row] * of.num_heads + head];
      rows.scores[row] = score;
    }
    rows.scores[count] = of.none_score[head];
    softmax(rows.scores, count + 1);
    for (int row = 0; row < count; ++row) {
      accumulate(mean, rows.scores[row], sequence + (size_t)row * of.wide, of.dim);
      total += rows.scores[row];
    }
    for (int n = head * head_dim; n < (head + 1) * head_dim; ++n)
      history[n] = dot(of.key_value_weight + (size_t)(of.dim + n) * of.dim, mean, of.dim) +
                   total * of.key_value_bias[of.dim + n];
  }
}

// e_u (Eq. 22).   sequence: (length, D) behaviours   intent: (D) x̂   start, lag: set in `rows` -> user (D)
static void attend_last(const Attention &of, AttentionRows &rows, const float *sequence, int length,
                        const float *intent, int gap, float *user) {
  int wide = of.wide, dim = of.dim;
  memcpy(rows.state, sequence, (size_t)length * wide * sizeof(float));
  float *token = rows.state + (size_t)length * wide;
  for (int at = 0; at < dim; ++at)
    token[at] = intent[at] + of.intent_type[at] + (of.time_lag ? of.of_gap[(size_t)gap * dim + at] : 0);
  float *history = rows.pair, *interest = rows.pair + dim, *combined = rows.pair + 2 * wide;
  memset(rows.pair, 0, 4 * wide * sizeof(float));
  session_interest(of, rows, length, interest);
  int count = rows.start[length];
  if (of.multi_head_history)
    multi_head_history(of, rows, sequence, count, interest, history);
  else
    activation_unit(of, rows, sequence, count, interest, history);
  int inner = of.combine_first.outputs();
  product<Single, Activated<Single>>(1, rows.pair, 2 * dim, of.combine_first.matrix, of.zeros, 0,
                                     of.combine_first.bias, rows.inner, inner);
  of.combine_second.apply(1, rows.inner, inner, of.zeros, 0, combined, wide);
  for (int at = 0; at < dim; ++at) combined[at] += interest[at];
  normalise(combined, of.norm_user_weight, of.norm_user_bias, of.epsilon, dim, user);
}

}  // namespace T2_VARIANT

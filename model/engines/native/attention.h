// Mixed attention's weights (Eq. 19-22) as the products read them.
#pragma once
#include "linear.h"
#include "tower.h"

namespace T2_VARIANT {

struct Layer {
  const float *norm_attention_weight, *norm_attention_bias, *norm_feed_forward_weight,
      *norm_feed_forward_bias, *distance_bias, *lag_bias;
  Linear query, key_value, output, first, second;

  void build(Arena &arena, const T2Spec &spec, const T2Layer &from) {
    int dim = spec.embedding_dim;
    norm_attention_weight = kept(arena, from.norm_attention_weight, dim);
    norm_attention_bias = kept(arena, from.norm_attention_bias, dim);
    norm_feed_forward_weight = kept(arena, from.norm_feed_forward_weight, dim);
    norm_feed_forward_bias = kept(arena, from.norm_feed_forward_bias, dim);
    distance_bias = kept(arena, from.distance_bias, (size_t)(spec.session_length + 1) * spec.num_heads);
    lag_bias = kept(arena, from.lag_bias, (size_t)T2_NUM_LAG_BUCKETS * spec.num_heads);
    query.build(arena, from.query_weight, from.query_bias, dim, dim);
    key_value.build(arena, from.key_value_weight, from.key_value_bias, dim, 2 * dim);
    output.build(arena, from.output_weight, from.output_bias, dim, dim);
    first.build(arena, from.first_weight, from.first_bias, dim, spec.hidden);
    second.build(arena, from.second_weight, from.second_bias, spec.hidden, dim);
  }
};

struct Attention {
  int dim, wide, num_layers, num_heads, session_length, hidden, activation_hidden;
  bool mean_readout, multi_head_history, time_lag;
  float epsilon;
  const float *zeros, *intent_type, *of_gap, *norm_interest_weight, *norm_interest_bias, *norm_user_weight,
      *norm_user_bias, *target_lag, *none_score;
  Layer layers[T2_MAX_LAYERS];
  Linear combine_first, combine_second;
  // Eq. 20 with the first layer's columns taken apart: of x, of x * h_s and of h_s.
  Matrix<Single> of_item, of_product;
  Linear of_interest;
  const float *second_weight;
  float second_bias;
  // or one query against keys and values
  Linear query;
  const float *key_value_weight, *key_value_bias;

  void build(Arena &arena, const T2Spec &spec) {
    dim = spec.embedding_dim, wide = round_up(dim, W);
    num_layers = spec.num_layers, num_heads = spec.num_heads, session_length = spec.session_length;
    hidden = spec.hidden, activation_hidden = spec.activation_hidden;
    mean_readout = spec.mean_readout, multi_head_history = spec.multi_head_history;
    time_lag = spec.time_lag, epsilon = spec.epsilon;
    float *nothing = arena.take<float>(4 * wide + hidden + activation_hidden + 4 * W);
    if (nothing) memset(nothing, 0, (4 * wide + hidden + activation_hidden + 4 * W) * sizeof(float));
    zeros = nothing;
    intent_type = kept(arena, spec.intent_type, dim);
    of_gap = kept(arena, spec.of_gap, (size_t)T2_NUM_LAG_BUCKETS * dim);
    norm_interest_weight = kept(arena, spec.norm_interest_weight, dim);
    norm_interest_bias = kept(arena, spec.norm_interest_bias, dim);
    norm_user_weight = kept(arena, spec.norm_user_weight, dim);
    norm_user_bias = kept(arena, spec.norm_user_bias, dim);
    for (int number = 0; number < num_layers; ++number) layers[number].build(arena, spec, spec.layers[number]);
    combine_first.build(arena, spec.combine_first_weight, spec.combine_first_bias, 2 * dim, 2 * dim);
    combine_second.build(arena, spec.combine_second_weight, spec.combine_second_bias, 2 * dim, dim);
    if (multi_head_history)
      build_multi_head(arena, spec);
    else
      build_activation_unit(arena, spec);
  }

  void build_activation_unit(Arena &arena, const T2Spec &spec) {
    const float *weight = spec.target_first_weight;  // columns of x, x - h, x * h, h
    int columns = 4 * dim, padded = round_up(activation_hidden, W), dim_ = dim, hidden_ = activation_hidden;
    of_item.pack(arena, dim, padded, [=](int k, int n) {
      return n < hidden_ ? weight[n * columns + k] + weight[n * columns + dim_ + k] : 0.0f;
    });
    of_product.pack(arena, dim, padded,
                    [=](int k, int n) { return n < hidden_ ? weight[n * columns + 2 * dim_ + k] : 0.0f; });
    of_interest.matrix.pack(arena, dim, padded, [=](int k, int n) {
      return n < hidden_ ? weight[n * columns + 3 * dim_ + k] - weight[n * columns + dim_ + k] : 0.0f;
    });
    of_interest.bias = padded_copy(arena, spec.target_first_bias, 1, hidden_, padded);
    target_lag = padded_copy(arena, spec.target_lag, T2_NUM_LAG_BUCKETS, hidden_, padded);
    second_weight = padded_copy(arena, spec.target_second_weight, 1, hidden_, padded);
    second_bias = spec.target_second_bias[0];
    none_score = kept(arena, spec.none_score, 1);
  }

  void build_multi_head(Arena &arena, const T2Spec &spec) {
    query.build(arena, spec.target_first_weight, spec.target_first_bias, dim, dim);
    key_value_weight = kept(arena, spec.target_second_weight, (size_t)2 * dim * dim);
    key_value_bias = kept(arena, spec.target_second_bias, 2 * dim);
    target_lag = kept(arena, spec.target_lag, (size_t)T2_NUM_LAG_BUCKETS * num_heads);
    none_score = kept(arena, spec.none_score, num_heads);
  }
};

}  // namespace T2_VARIANT

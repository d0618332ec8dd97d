// The plain C interface of the fused user tower, called from fused.py through ctypes. Pointers are
// borrowed during a call only, but for `item_table`, which must outlive the tower.
#pragma once
#include <stdint.h>

#define T2_ABI 2
#define T2_MAX_LAYERS 8
#define T2_NUM_LAG_BUCKETS 32

#define T2_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

// Weights of one SessionLayer, as in its state_dict: matrices are (out, in), row after row.
typedef struct {
  const float *norm_attention_weight, *norm_attention_bias;        // (D)
  const float *norm_feed_forward_weight, *norm_feed_forward_bias;  // (D)
  const float *query_weight, *query_bias;                          // (D, D), (D)
  const float *key_value_weight, *key_value_bias;                  // (2D, D), (2D)
  const float *output_weight, *output_bias;                        // (D, D), (D)
  const float *first_weight, *first_bias;                          // (hidden, D), (hidden)
  const float *second_weight, *second_bias;                        // (D, hidden), (D)
  const float *distance_bias;                                      // (k + 1, heads)
  const float *lag_bias;                                           // (buckets, heads)
} T2Layer;

// A convolution's weight is (out, 3 * in), tap after tap; its bias is part of the step table.
typedef struct {
  int32_t abi, embedding_dim, full, half, quarter, causal;
  int32_t num_steps, draws_start, adds_sequence;
  int32_t session_length, num_layers, num_heads, hidden, activation_hidden;
  int32_t mean_readout, multi_head_history, time_lag;
  int64_t session_gap_seconds;  // 0: sessions are not broken by pauses
  int64_t num_items;
  float drift_scale, epsilon;
  const float *item_table;       // (num_items + 1, D)
  const uint8_t *seen_gap;       // (buckets)
  const float *intent_token;     // (D), without a U-Net only
  const float *last_scale;       // (D), of the last behaviour, added to the token; null: x̂ is the token
  const int32_t *noise_steps;    // (num_steps + 1): whose noise z_T is, then what each step adds; 0: none
  const float *coefficients;     // (num_steps, 3): of the prediction, of z_t, of the noise
  const float *step_tables[6];   // (num_steps, channels) of encode_full ... decode_full, bias included
  const float *kernels[7];       // encode_full ... decode_full, predict
  const float *predict_bias;     // (D)
  T2Layer layers[T2_MAX_LAYERS];
  const float *intent_type, *of_gap;                          // (D), (buckets, D)
  const float *norm_interest_weight, *norm_interest_bias;     // (D)
  const float *target_first_weight, *target_first_bias;       // Eq. 20: (hidden, 4D), (hidden); or query
  const float *target_second_weight, *target_second_bias;     // Eq. 20: (1, hidden), (1); or key and value
  const float *target_lag, *none_score;                       // (buckets, hidden), (1); or heads
  const float *combine_first_weight, *combine_first_bias;     // (2D, 2D), (2D)
  const float *combine_second_weight, *combine_second_bias;   // (D, 2D), (D)
  const float *norm_user_weight, *norm_user_bias;             // (D)
} T2Spec;

// A padded batch: (batch, width) item indices and timestamps, (batch) lengths and request times.
typedef struct {
  int64_t batch, width, num_routes;
  const int64_t *item_index, *timestamp, *length, *request_time;
  const uint64_t *keys;  // (batch * num_routes)
  float *user;           // (batch * num_routes, D), the answer
} T2Batch;

enum { T2_OK = 0, T2_BAD_ITEM = 1, T2_BAD_LENGTH = 2, T2_NO_MEMORY = 3 };

typedef struct T2Tower T2Tower;

T2_API int t2_abi(void);
// Comma-separated names of the variants that were built and that this processor can run, best first.
T2_API const char *t2_variants(void);
// NULL when there is no such variant or no memory.
T2_API T2Tower *t2_create(const char *variant, const T2Spec *spec);
T2_API void t2_destroy(T2Tower *tower);
// T2_OK or what is wrong with row `*where` of the batch. One call at a time for a tower.
T2_API int t2_run(T2Tower *tower, const T2Batch *batch, int num_threads, int64_t *where);
// Floating-point operations of one run over a sequence of `length`, those that are really done.
T2_API double t2_operations(const T2Tower *tower, int64_t length);
// Floating-point operations a second of a loop of nothing but multiply-adds between registers.
T2_API double t2_peak(const char *variant, int64_t rounds);
// `count` normals of one key and step, for tests; `count` a multiple of 4.
T2_API int t2_normals(const char *variant, uint64_t key, uint32_t step, int64_t count, float *out);
// The words under them.
T2_API int t2_words(const char *variant, uint64_t key, uint32_t step, int64_t count, uint32_t *out);

#ifdef __cplusplus
}
#endif

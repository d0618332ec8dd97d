// One user tower for one instruction set and number format. Compiled once for each, with
// -DT2_VARIANT=name and, for bf16 convolutions, -DT2_KIND=Half.
#include "variant.h"

#include <stdlib.h>
#include <time.h>

#include "attend.h"
#include "reverse.h"

#ifndef T2_KIND
#define T2_KIND Single
#endif

namespace T2_VARIANT {

typedef T2_KIND Kind;
constexpr int LAST_STEPS = 2;  // in fp32 whatever the variant: what they get wrong, no later step mends

struct Workspace {
  void *memory;
  int width;
  float *padded, *intent;  // behaviours with zero rows before; x̂
  State state;
  Rows<Kind> rows;
  Rows<Single> last_rows;
  AttentionRows attention;
};

struct Tower {
  void *memory;
  int64_t num_items, session_gap_seconds;
  const float *item_table, *intent_token, *last_scale;
  uint8_t seen_gap[T2_NUM_LAG_BUCKETS];
  bool adds_sequence;
  float drift_scale;
  Unet<Kind> unet;
  Unet<Single> last_unet;  // of the last steps, whose errors nothing makes good again
  Attention attention;
  Workspace workspaces[T2_MAX_THREADS];

  void build(Arena &arena, const T2Spec &spec) {
    intent_token = kept(arena, spec.intent_token, spec.embedding_dim);
    last_scale = kept(arena, spec.last_scale, spec.embedding_dim);
    unet.build(arena, spec);
    last_unet.build(arena, spec);
    attention.build(arena, spec);
  }
};

static void *aligned(size_t size) { return aligned_alloc(64, (size + 63) / 64 * 64); }

static void destroy(void *handle) {
  Tower *tower = (Tower *)handle;
  for (Workspace &workspace : tower->workspaces) free(workspace.memory);
  free(tower->memory);
  free(tower);
}

static void *create(const T2Spec *spec) {
  Tower *tower = (Tower *)calloc(1, sizeof(Tower));
  if (!tower) return NULL;
  tower->num_items = spec->num_items, tower->session_gap_seconds = spec->session_gap_seconds;
  tower->item_table = spec->item_table;
  memcpy(tower->seen_gap, spec->seen_gap, sizeof tower->seen_gap);
  tower->adds_sequence = spec->adds_sequence, tower->drift_scale = spec->drift_scale;
  Arena arena = {NULL, 0};
  tower->build(arena, *spec);
  tower->memory = aligned(arena.used);
  if (!tower->memory) {
    destroy(tower);
    return NULL;
  }
  arena = {(char *)tower->memory, 0};
  tower->build(arena, *spec);
  return tower;
}

// The thread's memory for sequences of up to `width` behaviours, or NULL.
static Workspace *workspace_of(Tower *tower, int thread, int width) {
  Workspace *workspace = &tower->workspaces[thread];
  if (workspace->memory && workspace->width >= width) return workspace;
  free(workspace->memory);
  workspace->width = width;
  Arena arena = {NULL, 0};
  for (int pass = 0;; ++pass) {
    workspace->padded = arena.take<float>((size_t)(width + TAPS) * tower->unet.wide);
    workspace->intent = arena.take<float>(tower->unet.wide);
    workspace->state.build(arena, tower->unet, width);
    workspace->rows.build(arena, tower->unet, width);
    workspace->last_rows.build(arena, tower->last_unet, width);
    workspace->attention.build(arena, tower->attention, width);
    if (pass) return workspace;
    workspace->memory = aligned(arena.used);
    if (!workspace->memory) return NULL;
    arena = {(char *)workspace->memory, 0};
  }
}

// Unit-variance embeddings of the behaviours into `rows`; the rows around them are zero.
static int embed(const Tower *tower, const int64_t *items, int length, float *rows) {
  int dim = tower->unet.dim, wide = tower->unet.wide;
  for (int row = 0; row < length; ++row) {
    if (items[row] < 1 || items[row] > tower->num_items) return T2_BAD_ITEM;
    normalise(tower->item_table + (size_t)items[row] * dim, NULL, NULL, tower->attention.epsilon, dim,
              rows + (size_t)row * wide);
  }
  return T2_OK;
}

// Where the session that ends at each row begins, and how long before the next behaviour each one was.
// Returns the bucket of the last pause; one that training has not seen counts as unknown.
static int read_times(const Tower *tower, const int64_t *timestamp, int length, int64_t next_time,
                      AttentionRows &rows) {
  int last_break = 0, session_length = tower->attention.session_length;
  for (int row = 0; row < length; ++row) {
    if (row && tower->session_gap_seconds && timestamp[row] != -1 && timestamp[row - 1] != -1 &&
        timestamp[row] - timestamp[row - 1] > tower->session_gap_seconds)
      last_break = row;
    int start = row + 1 - session_length;
    rows.start[row] = start > last_break ? start : last_break;
  }
  rows.start[length] = rows.start[length - 1];
  int gap = lag_bucket(next_time, timestamp[length - 1]);
  if (!tower->seen_gap[gap]) next_time = -1, gap = 0;
  for (int row = 0; row < length; ++row) rows.lag[row] = lag_bucket(next_time, timestamp[row]);
  return gap;
}

// x̂ without a U-Net into `workspace->intent`.
static void look_up(const Tower *tower, Workspace *workspace, const float *last_behaviour) {
  for (int at = 0; at < tower->unet.dim; ++at)
    workspace->intent[at] =
        tower->intent_token[at] + (tower->last_scale ? tower->last_scale[at] * last_behaviour[at] : 0);
}

// x̂ after the last behaviour (Algorithm 2) into `workspace->intent`.
static void generate(const Tower *tower, Workspace *workspace, int length, uint64_t key) {
  const Unet<Kind> &unet = tower->unet;
  State &state = workspace->state;
  int rough = Kind::EXACT ? 0 : unet.num_steps - LAST_STEPS;
  if (rough < 0) rough = 0;
  begin(unet, state, workspace->padded, length, key);
  if (rough) reverse(unet, workspace->rows, state, 0, rough, length, key);
  reverse(tower->last_unet, workspace->last_rows, state, rough, unet.num_steps, length, key);
  size_t last = (size_t)(length - 1) * unet.wide;
  const float *behaviour = workspace->padded + unet.before * unet.wide + last;
  for (int at = 0; at < unet.dim; ++at)
    workspace->intent[at] =
        state.state[last + at] / tower->drift_scale + (tower->adds_sequence ? behaviour[at] : 0);
}

static int run(void *handle, const T2Batch *batch, int64_t first, int64_t last, int thread, int64_t *where) {
  Tower *tower = (Tower *)handle;
  const Unet<Kind> &unet = tower->unet;
  int dim = unet.dim, wide = unet.wide;
  Workspace *workspace = workspace_of(tower, thread, (int)batch->width);
  *where = first;
  if (!workspace) return T2_NO_MEMORY;
  for (int64_t row = first; row < last; ++row) {
    *where = row;
    int64_t length = batch->length[row];
    if (length < 1 || length > batch->width) return T2_BAD_LENGTH;
    memset(workspace->padded, 0, (size_t)(length + TAPS) * wide * sizeof(float));
    float *sequence = workspace->padded + unet.before * wide;
    int problem = embed(tower, batch->item_index + row * batch->width, (int)length, sequence);
    if (problem) return problem;
    int gap = read_times(tower, batch->timestamp + row * batch->width, (int)length, batch->request_time[row],
                         workspace->attention);
    if (!unet.num_steps) look_up(tower, workspace, sequence + (length - 1) * wide);
    for (int64_t answer = row * batch->num_routes; answer < (row + 1) * batch->num_routes; ++answer) {
      if (unet.num_steps) generate(tower, workspace, (int)length, batch->keys[answer]);
      attend_last(tower->attention, workspace->attention, sequence, (int)length, workspace->intent, gap,
                  batch->user + answer * dim);
    }
  }
  return T2_OK;
}

static double operations(const void *handle, int64_t length) {
  return ((const Tower *)handle)->unet.operations((int)length);
}

static double seconds(void) {  // of this thread: a neighbour on the same core does not count
  struct timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return now.tv_sec + 1e-9 * now.tv_nsec;
}

// Sums enough to hide the latency, each of other numbers, so that none can be left out.
static double peak(int64_t rounds) {
  constexpr int SUMS = MAX_VECTORS == 4 ? 24 : 12;
  alignas(64) typename Kind::Number numbers[2 * Kind::PAIR * W];
  for (auto &number : numbers) number = Kind::convert(1e-4f);
  volatile float sink, start = 1;
  Floats sums[SUMS];
  for (int number = 0; number < SUMS; ++number) sums[number] = all(start + number);
  Kind::Spread a = Kind::weights(numbers), b = Kind::weights(numbers + Kind::PAIR * W);
  double began = seconds();
  for (int64_t round = 0; round < rounds; ++round)
#pragma GCC unroll 24
    for (int number = 0; number < SUMS; ++number) sums[number] = Kind::multiply_add(a, b, sums[number]);
  double taken = seconds() - began;
  for (int number = 0; number < SUMS; ++number) sink = sum(sums[number]);
  (void)sink;
  return 2.0 * rounds * SUMS * W * Kind::PAIR / taken;
}

static void test_normals(uint64_t key, uint32_t step, int64_t count, float *out) {
  float group[NORMALS];
  for (int64_t done = 0; done < count; done += NORMALS) {
    normals_of<1>(key, step, done / 4, group);
    int64_t left = count - done;
    memcpy(out + done, group, (left < NORMALS ? left : NORMALS) * sizeof(float));
  }
}

static void test_words(uint64_t key, uint32_t step, int64_t count, uint32_t *out) {
  for (int64_t done = 0; done < count; done += NORMALS) {
    Counter counter;
    philox<1>(key, step, done / 4, &counter);
    for (int64_t at = done; at < count && at < done + NORMALS; ++at)
      out[at] = (uint32_t)counter.words[at % 4][(at - done) / 4];
  }
}

}  // namespace T2_VARIANT

#define T2_TABLE_OF(name) t2_variant_##name
#define T2_TABLE(name) T2_TABLE_OF(name)
#define T2_TEXT_OF(name) #name
#define T2_TEXT(name) T2_TEXT_OF(name)

extern "C" const T2Variant T2_TABLE(T2_VARIANT) = {
    T2_TEXT(T2_VARIANT),        T2_VARIANT::create, T2_VARIANT::destroy,      T2_VARIANT::run,
    T2_VARIANT::operations,     T2_VARIANT::peak,   T2_VARIANT::test_normals, T2_VARIANT::test_words,
};

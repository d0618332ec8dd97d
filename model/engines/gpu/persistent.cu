// Algorithm 2 whole: one thread block takes samples through all T steps without leaving the processor.
//
// The drift z_t stays in registers, the rows that convolutions read and as many weights as fit in shared
// memory, products run on tensor cores with fp32 sums, noise is drawn where it is added. No upsampled,
// downsampled or concatenated row is ever stored: a fragment's lanes each name the row that they read, so a
// convolution's tap is only another choice of rows, and a row that does not exist is a row of zeros.
//
// Compiled at start for one shape: T2_DIM, T2_FULL, T2_HALF, T2_QUARTER channels, T2_ROWS the longest
// sequence, T2_CAUSAL or `same` padding, T2_SAMPLES a block, T2_RESIDENT the layers whose weights are kept in
// shared memory (bit l is layer l), T2_BF16 or fp16; T2_SHARED_BYTES is what the caller reserves.
// Not run on a GPU: compiled for sm_75, 80, 86, 89 and 90, and run over a stand-in for device.h.
#ifdef __CUDACC__
#include "device.h"
#else
#include "emulated_device.h"
#endif
#include "philox.h"

constexpr int WARPS = 16, LANES = 32, THREADS = WARPS * LANES;
constexpr int TAPS = 3, BEFORE = T2_CAUSAL ? TAPS - 1 : TAPS / 2;
constexpr int TILE = 16;  // rows, columns and depth of a warp's product
constexpr int SAMPLES = T2_SAMPLES;

T2_CONSTANT int tiles_of(int count) { return (count + TILE - 1) / TILE; }
T2_CONSTANT int half_of(int count) { return (count + 1) / 2; }

constexpr int WIDE = TILE * tiles_of(T2_DIM), FULL = TILE * tiles_of(T2_FULL);
constexpr int HALF = TILE * tiles_of(T2_HALF), QUARTER = TILE * tiles_of(T2_QUARTER);
constexpr int FULL_TILES = tiles_of(T2_ROWS), HALF_TILES = tiles_of(half_of(T2_ROWS));
constexpr int QUARTER_TILES = tiles_of(half_of(half_of(T2_ROWS)));

T2_CONSTANT int larger(int a, int b) { return a > b ? a : b; }
constexpr int WIDEST = larger(larger(WIDE, FULL), larger(HALF, QUARTER));

enum Layer { ENCODE_FULL, ENCODE_HALF, ENCODE_QUARTER, BOTTLENECK, DECODE_HALF, DECODE_FULL, PREDICT, CONDITION };
constexpr int NUM_LAYERS = CONDITION + 1;
T2_CONSTANT int inputs_of(int layer) {
  const int inputs[NUM_LAYERS] = {WIDE, FULL, HALF, QUARTER, QUARTER + HALF, HALF + FULL, FULL, WIDE};
  return inputs[layer];
}
T2_CONSTANT int outputs_of(int layer) {
  const int outputs[NUM_LAYERS] = {FULL, HALF, QUARTER, QUARTER, HALF, FULL, WIDE, FULL};
  return outputs[layer];
}

// Weights lie by columns of 16, source, tap, depth of 16, lane: a lane's Quad is its part of two fragments.
T2_CONSTANT int depth_of(int layer) { return TAPS * inputs_of(layer) / TILE; }
T2_CONSTANT int size_of(int layer) { return outputs_of(layer) / TILE * depth_of(layer) * LANES; }  // in Quads
T2_CONSTANT int weights_before(int layer, int layers) {
  int size = 0;
  for (int before = 0; before < layer; ++before) size += (layers >> before & 1) * size_of(before);
  return size;
}
constexpr int ALL_LAYERS = (1 << NUM_LAYERS) - 1;

// What each step says to each block, its bias included, one after the other.
T2_CONSTANT int table_before(int layer) {
  int size = 0;
  for (int before = 0; before < layer; ++before) size += outputs_of(before);
  return size;
}
constexpr int TABLE = table_before(PREDICT);

// Rows of one level in shared memory. The stride makes eight rows meet no bank twice.
template <int CHANNELS_, int TILES>
struct Rows {
  static constexpr int CHANNELS = CHANNELS_, STRIDE = CHANNELS + 8, ROWS = TILES * TILE;
  static constexpr int QUADS = SAMPLES * ROWS * STRIDE / 8;
  Number *first;
  T2_DEVICE Number *row(int sample, int row) const { return first + (sample * ROWS + row) * STRIDE; }
};
typedef Rows<WIDE, FULL_TILES> WideRows;
typedef Rows<FULL, FULL_TILES> FullRows;
typedef Rows<HALF, HALF_TILES> HalfRows;
typedef Rows<QUARTER, QUARTER_TILES> QuarterRows;

constexpr int TABLE_QUADS = TABLE / 4, ZERO_QUADS = WIDEST / 8;
constexpr int ROWS_QUADS = WideRows::QUADS + 2 * FullRows::QUADS + 2 * HalfRows::QUADS + 2 * QuarterRows::QUADS;
constexpr int WEIGHTS_AT = ZERO_QUADS + 2 * TABLE_QUADS + ROWS_QUADS;
static_assert((WEIGHTS_AT + weights_before(NUM_LAYERS, T2_RESIDENT)) * 16 == T2_SHARED_BYTES,
              "the caller counts shared memory otherwise than this kernel");

struct Arguments {
  const float *sequence;        // (sequences, width, T2_DIM) the condition
  const long long *length;      // (sequences,) 1..T2_ROWS
  const Key *keys;              // (samples,) of the noise
  const Quad *weights;          // all layers
  const float *tables;          // (steps, TABLE)
  const float *predict_bias;    // (WIDE,)
  const float *coefficients;    // (steps, 3) of the prediction, of z_t, of the noise
  const int *noise_steps;       // (steps + 1,) z_T's, then what is added after each; 0 draws none
  float *drift;                 // (samples, T2_DIM) z_0 at the last behaviour
  int num_samples, width, routes, num_steps;  // samples `routes` at a time share a sequence
};

// Where this thread stands, and the row to read for one that does not exist.
struct Place {
  int warp, lane;
  const Number *zeros;
};

// Rows that exist in each sample at one of the three lengths.
struct Counts {
  int of[SAMPLES];
};

enum Reading { AS_IS, EVERY_SECOND, EACH_TWICE };

// Which row of the input stands at `row` of a convolution's own length, or one that does not exist.
template <int READING>
T2_DEVICE int source_of(int row) {
  if (row < 0) return -1;
  if (READING == EVERY_SECOND) return 2 * row + 1;
  if (READING == EACH_TWICE) return T2_CAUSAL ? (row + 1) / 2 - 1 : row / 2;
  return row;
}

typedef float Sums[SAMPLES][2][4];  // a warp's 16 by 16 in two fragments, of each sample

// Adds what the taps of 16 rows from 16 * tile on give to 16 columns, of every sample.
template <int READING, class Input>
T2_DEVICE void convolve(Sums &sums, Place place, Input input, Counts count,
                        int tile, const Quad *weights) {
  constexpr int DEPTH = Input::CHANNELS / TILE;
#pragma unroll
  for (int tap = 0; tap < TAPS; ++tap) {
    const int source = source_of<READING>(tile * TILE + place.lane % 16 - BEFORE + tap);
    const Number *half_row[SAMPLES];
#pragma unroll
    for (int sample = 0; sample < SAMPLES; ++sample) {
      const bool exists = source >= 0 && source < count.of[sample];
      half_row[sample] = (exists ? input.row(sample, source) : place.zeros) + place.lane / 16 * 8;
    }
#pragma unroll
    for (int depth = 0; depth < DEPTH; ++depth) {
      const Quad weight = weights[(tap * DEPTH + depth) * LANES];
#pragma unroll
      for (int sample = 0; sample < SAMPLES; ++sample) {
        Word fragment[4];
        load_fragment(fragment, half_row[sample] + depth * TILE);
        multiply_add(sums[sample][0], fragment, weight.x, weight.y);
        multiply_add(sums[sample][1], fragment, weight.z, weight.w);
      }
    }
  }
}

T2_DEVICE void clear(Sums &sums) {
#pragma unroll
  for (int sample = 0; sample < SAMPLES; ++sample)
#pragma unroll
    for (int at = 0; at < 8; ++at) sums[sample][at / 4][at % 4] = 0;
}

T2_DEVICE float silu(float value) {
  const float half = 0.5f * value;
  return half + half * coarse_tanh(half);
}

// SiLU of the sums plus the step's word to this block, into rows.
template <class Output>
T2_DEVICE void activate(const Sums &sums, Place place, Output output, int tile, int column,
                        const float *table) {
  const int row = tile * TILE + place.lane / 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int at = column + 8 * half + 2 * (place.lane % 4);
    const float first = table[at], second = table[at + 1];
#pragma unroll
    for (int sample = 0; sample < SAMPLES; ++sample) {
      const float(&sum)[4] = sums[sample][half];
      *(Word *)(output.row(sample, row) + at) = pack(silu(sum[0] + first), silu(sum[1] + second));
      *(Word *)(output.row(sample, row + 8) + at) = pack(silu(sum[2] + first), silu(sum[3] + second));
    }
  }
}

T2_DEVICE bool any_row(Counts count, int tile) {
  bool any = false;
#pragma unroll
  for (int sample = 0; sample < SAMPLES; ++sample) any |= tile * TILE < count.of[sample];
  return any;
}

// This lane's weights of `layer` for one group of 16 columns.
template <int LAYER>
T2_DEVICE const Quad *weights_of(const Quad *global, const Quad *shared, int group) {
  constexpr bool RESIDENT = T2_RESIDENT >> LAYER & 1;
  constexpr int IN_SHARED = WEIGHTS_AT + weights_before(LAYER, T2_RESIDENT);
  constexpr int IN_GLOBAL = weights_before(LAYER, ALL_LAYERS), GROUP = depth_of(LAYER) * LANES;
  return (RESIDENT ? shared + IN_SHARED : global + IN_GLOBAL) + group * GROUP + thread_index() % LANES;
}

// A block of the U-Net whose input is one set of rows.
template <int LAYER, int READING, class Input, class Output>
T2_DEVICE void block_of_one(Place place, const Quad *global, const Quad *shared, Input input,
                            Counts input_count, Output output,
                            Counts count, const float *table) {
  constexpr int GROUPS = outputs_of(LAYER) / TILE, TASKS = Output::ROWS / TILE * GROUPS;
  constexpr int TABLE_AT = table_before(LAYER);
  for (int task = place.warp; task < TASKS; task += WARPS) {
    const int tile = task / GROUPS, group = task % GROUPS;
    if (!any_row(count, tile)) continue;
    Sums sums;
    clear(sums);
    convolve<READING>(sums, place, input, input_count, tile, weights_of<LAYER>(global, shared, group));
    activate(sums, place, output, tile, group * TILE, table + TABLE_AT);
  }
}

// A block that reads shorter rows, each twice, beside rows of its own length.
template <int LAYER, class Short, class Skip, class Output>
T2_DEVICE void block_of_two(Place place, const Quad *global, const Quad *shared, Short shorter,
                            Counts short_count, Skip skip, Output output,
                            Counts count, const float *table) {
  constexpr int GROUPS = outputs_of(LAYER) / TILE, TASKS = Output::ROWS / TILE * GROUPS;
  constexpr int TABLE_AT = table_before(LAYER);
  for (int task = place.warp; task < TASKS; task += WARPS) {
    const int tile = task / GROUPS, group = task % GROUPS;
    if (!any_row(count, tile)) continue;
    const Quad *weights = weights_of<LAYER>(global, shared, group);
    Sums sums;
    clear(sums);
    convolve<EACH_TWICE>(sums, place, shorter, short_count, tile, weights);
    convolve<AS_IS>(sums, place, skip, count, tile, weights + TAPS * Short::CHANNELS / TILE * LANES);
    activate(sums, place, output, tile, group * TILE, table + TABLE_AT);
  }
}

// Normals for the numbers that this lane holds of 16 rows and 16 columns.
// A block of four lies in two neighbouring lanes: the even one draws it for row g, the odd one for row g + 8,
// and they trade halves.
T2_DEVICE void draw(float (&normals)[2][4], Place place, Key key, Word step, int tile, int column) {
  const int odd = place.lane % 2, row = tile * TILE + place.lane / 4 + 8 * odd;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int block_column = column + 8 * half + place.lane % 4 / 2 * 4;
    const Quad words = philox(key, step, (Word)((row * T2_DIM + block_column) / 4));
    const Word first = of_neighbour(odd ? words.x : words.z), second = of_neighbour(odd ? words.y : words.w);
    float(&drawn)[4] = normals[half];
    fast_normals(odd ? first : words.x, odd ? second : words.y, drawn[0], drawn[1]);
    fast_normals(odd ? words.z : first, odd ? words.w : second, drawn[2], drawn[3]);
  }
}

constexpr int FULL_GROUPS = FULL / TILE, WIDE_GROUPS = WIDE / TILE;
constexpr int FULL_TASKS = FULL_TILES * FULL_GROUPS, WIDE_TASKS = FULL_TILES * WIDE_GROUPS;
constexpr int FULL_TURNS = (FULL_TASKS + WARPS - 1) / WARPS, WIDE_TURNS = (WIDE_TASKS + WARPS - 1) / WARPS;

// Noise of `step` for every number of the drift that this warp holds.
T2_DEVICE void draw_all(Sums (&noise)[WIDE_TURNS], Place place, Counts count, const Key (&keys)[SAMPLES],
                        Word step) {
#pragma unroll
  for (int turn = 0; turn < WIDE_TURNS; ++turn) {
    const int task = place.warp + turn * WARPS, tile = task / WIDE_GROUPS;
    if (task >= WIDE_TASKS || !any_row(count, tile)) continue;
#pragma unroll
    for (int sample = 0; sample < SAMPLES; ++sample)
      draw(noise[turn][sample], place, keys[sample], step, tile, task % WIDE_GROUPS * TILE);
  }
}

// The drift as the first convolution reads it.
T2_DEVICE void store_drift(const Sums &drift, Place place, WideRows rows, int task) {
  const int row = task / WIDE_GROUPS * TILE + place.lane / 4;
#pragma unroll
  for (int at = 0; at < 2 * SAMPLES; ++at) {
    const int sample = at / 2, column = task % WIDE_GROUPS * TILE + at % 2 * 8 + 2 * (place.lane % 4);
    const float(&values)[4] = drift[sample][at % 2];
    *(Word *)(rows.row(sample, row) + column) = pack(values[0], values[1]);
    *(Word *)(rows.row(sample, row + 8) + column) = pack(values[2], values[3]);
  }
}

// z_0 of the last behaviour, from the lanes that hold it.
T2_DEVICE void write_last(const Sums &drift, Place place, Counts count, const Arguments &arguments,
                          int task) {
#pragma unroll
  for (int at = 0; at < SAMPLES * 8; ++at) {
    const int sample = at / 8, half = at / 4 % 2, part = at % 4;
    const int row = task / WIDE_GROUPS * TILE + place.lane / 4 + part / 2 * 8;
    const int column = task % WIDE_GROUPS * TILE + half * 8 + 2 * (place.lane % 4) + part % 2;
    const int number = block_index() * SAMPLES + sample;
    if (row == count.of[sample] - 1 && column < T2_DIM && number < arguments.num_samples)
      arguments.drift[(long long)number * T2_DIM + column] = drift[sample][half][part];
  }
}

// The condition into the rows of the drift, whose place it takes until the first step.
T2_DEVICE void load_condition(const Arguments &arguments, Counts count, WideRows rows) {
  for (int at = thread_index(); at < SAMPLES * WideRows::ROWS * WIDE / 2; at += THREADS) {
    const int sample = at / (WideRows::ROWS * WIDE / 2), row = at / (WIDE / 2) % WideRows::ROWS;
    const int column = at % (WIDE / 2) * 2, number = block_index() * SAMPLES + sample;
    float values[2] = {0, 0};
    if (row < count.of[sample])
      for (int part = 0; part < 2; ++part)
        if (column + part < T2_DIM) {
          const long long first = ((long long)(number / arguments.routes) * arguments.width + row) * T2_DIM;
          values[part] = arguments.sequence[first + column + part];
        }
    *(Word *)(rows.row(sample, row) + column) = pack(values[0], values[1]);
  }
}

// Weights of one layer, if they stay.
template <int LAYER>
T2_DEVICE void load_resident(const Quad *global, Quad *shared) {
  constexpr int FROM = weights_before(LAYER, ALL_LAYERS), TO = WEIGHTS_AT + weights_before(LAYER, T2_RESIDENT);
  constexpr int SIZE = T2_RESIDENT >> LAYER & 1 ? size_of(LAYER) : 0;
  for (int at = thread_index(); at < SIZE; at += THREADS) shared[TO + at] = global[FROM + at];
}

T2_KERNEL(THREADS) t2_reverse(const Arguments arguments) {
  T2_SHARED(shared);
  Quad *free = shared + ZERO_QUADS;
  float *tables = (float *)free;  // of this step and of the next
  free += 2 * TABLE_QUADS;
  const WideRows drift_rows = {(Number *)free};
  free += WideRows::QUADS;
  const FullRows full = {(Number *)free}, decoded = {(Number *)(free + FullRows::QUADS)};
  free += 2 * FullRows::QUADS;
  const HalfRows half = {(Number *)free}, middle = {(Number *)(free + HalfRows::QUADS)};
  free += 2 * HalfRows::QUADS;
  const QuarterRows quarter = {(Number *)free}, bottom = {(Number *)(free + QuarterRows::QUADS)};

  Place place = {thread_index() / LANES, thread_index() % LANES, (const Number *)shared};
  Counts count_full, count_half, count_quarter;
  Key keys[SAMPLES];
#pragma unroll
  for (int sample = 0; sample < SAMPLES; ++sample) {
    const int number = block_index() * SAMPLES + sample;
    const bool exists = number < arguments.num_samples;
    count_full.of[sample] = exists ? (int)arguments.length[number / arguments.routes] : 0;
    count_half.of[sample] = half_of(count_full.of[sample]);
    count_quarter.of[sample] = half_of(count_half.of[sample]);
    keys[sample] = exists ? arguments.keys[number] : 0;
  }
  const Quad *weights = arguments.weights;

  for (int at = thread_index(); at < ZERO_QUADS; at += THREADS) shared[at] = {0, 0, 0, 0};
  load_resident<ENCODE_FULL>(weights, shared);
  load_resident<ENCODE_HALF>(weights, shared);
  load_resident<ENCODE_QUARTER>(weights, shared);
  load_resident<BOTTLENECK>(weights, shared);
  load_resident<DECODE_HALF>(weights, shared);
  load_resident<DECODE_FULL>(weights, shared);
  load_resident<PREDICT>(weights, shared);
  load_condition(arguments, count_full, drift_rows);
  for (int at = thread_index(); at < TABLE; at += THREADS) tables[at] = arguments.tables[at];
  synchronize();

  // What the condition alone gives to the first convolution, kept where that is computed.
  Sums condition[FULL_TURNS];
#pragma unroll
  for (int turn = 0; turn < FULL_TURNS; ++turn) {
    const int task = place.warp + turn * WARPS, tile = task / FULL_GROUPS;
    clear(condition[turn]);
    if (task < FULL_TASKS && any_row(count_full, tile))
      convolve<AS_IS>(condition[turn], place, drift_rows, count_full, tile,
                      weights_of<CONDITION>(weights, shared, task % FULL_GROUPS));
  }
  synchronize();

  Sums drift[WIDE_TURNS], noise[WIDE_TURNS];
#pragma unroll
  for (int turn = 0; turn < WIDE_TURNS; ++turn) clear(drift[turn]), clear(noise[turn]);
  if (arguments.noise_steps[0]) draw_all(drift, place, count_full, keys, (Word)arguments.noise_steps[0]);
#pragma unroll
  for (int turn = 0; turn < WIDE_TURNS; ++turn)
    if (place.warp + turn * WARPS < WIDE_TASKS)
      store_drift(drift[turn], place, drift_rows, place.warp + turn * WARPS);
  synchronize();

  for (int index = 0; index < arguments.num_steps; ++index) {
    const float *table = tables + index % 2 * TABLE;
    float *next_table = tables + (index + 1) % 2 * TABLE;
    if (index + 1 < arguments.num_steps)
      for (int at = thread_index(); at < TABLE; at += THREADS)
        next_table[at] = arguments.tables[(long long)(index + 1) * TABLE + at];
#pragma unroll
    for (int turn = 0; turn < FULL_TURNS; ++turn) {
      const int task = place.warp + turn * WARPS, tile = task / FULL_GROUPS, group = task % FULL_GROUPS;
      if (task >= FULL_TASKS || !any_row(count_full, tile)) continue;
      Sums sums;
#pragma unroll
      for (int at = 0; at < SAMPLES * 8; ++at)
        sums[at / 8][at / 4 % 2][at % 4] = condition[turn][at / 8][at / 4 % 2][at % 4];
      convolve<AS_IS>(sums, place, drift_rows, count_full, tile,
                      weights_of<ENCODE_FULL>(weights, shared, group));
      activate(sums, place, full, tile, group * TILE, table);
    }
    synchronize();
    block_of_one<ENCODE_HALF, EVERY_SECOND>(place, weights, shared, full, count_full, half, count_half, table);
    synchronize();
    // Few warps have work at a quarter of the length: the others draw meanwhile.
    block_of_one<ENCODE_QUARTER, EVERY_SECOND>(place, weights, shared, half, count_half, quarter,
                                               count_quarter, table);
    const Word noise_step = (Word)arguments.noise_steps[index + 1];
    if (noise_step) draw_all(noise, place, count_full, keys, noise_step);
    synchronize();
    block_of_one<BOTTLENECK, AS_IS>(place, weights, shared, quarter, count_quarter, bottom, count_quarter,
                                    table);
    synchronize();
    block_of_two<DECODE_HALF>(place, weights, shared, bottom, count_quarter, half, middle, count_half, table);
    synchronize();
    block_of_two<DECODE_FULL>(place, weights, shared, middle, count_half, full, decoded, count_full, table);
    synchronize();

    const float of_predicted = arguments.coefficients[3 * index];
    const float of_current = arguments.coefficients[3 * index + 1];
    const float sigma = noise_step ? arguments.coefficients[3 * index + 2] : 0;
    const bool is_last = index + 1 == arguments.num_steps;
#pragma unroll
    for (int turn = 0; turn < WIDE_TURNS; ++turn) {
      const int task = place.warp + turn * WARPS, tile = task / WIDE_GROUPS, group = task % WIDE_GROUPS;
      if (task >= WIDE_TASKS || !any_row(count_full, tile)) continue;
      Sums sums;
      clear(sums);
      convolve<AS_IS>(sums, place, decoded, count_full, tile, weights_of<PREDICT>(weights, shared, group));
#pragma unroll
      for (int at = 0; at < SAMPLES * 8; ++at) {
        const int sample = at / 8, of = at / 4 % 2, part = at % 4;
        const float bias = arguments.predict_bias[group * TILE + of * 8 + 2 * (place.lane % 4) + part % 2];
        drift[turn][sample][of][part] = of_predicted * (sums[sample][of][part] + bias) +
                                        of_current * drift[turn][sample][of][part] +
                                        sigma * noise[turn][sample][of][part];
      }
      if (is_last)
        write_last(drift[turn], place, count_full, arguments, task);
      else
        store_drift(drift[turn], place, drift_rows, task);
    }
    synchronize();
  }
}

// device.h for a machine without a GPU: every thread of a block is a fiber. A warp runs until all of it waits
// for the block, then the next one: as far apart as warps can get, so that a barrier that is missing shows.
//
// The kernels run lane by lane as written. What a warp does together (fragments, products, shuffles) follows
// the layouts of the PTX manual; the coarse functions are as coarse as the manual allows. Not seen here:
// timing, registers, and what warps do in the same instant.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

typedef uint32_t Word;
typedef unsigned long long Key;
typedef uint16_t Number;
struct alignas(16) Quad {
  Word x, y, z, w;
};

#define T2_DEVICE inline
#define T2_CONSTANT constexpr
#define T2_KERNEL(threads) constexpr int EMULATED_THREADS = threads; static void
#define T2_SHARED(name) Quad *name = emulated_shared

#ifndef T2_BACKWARDS
#define T2_BACKWARDS 0  // 1 runs later warps first
#endif

static const int MAX_THREADS = 512, LANES_OF_WARP = 32, STACK_BYTES = 128 << 10;
static int emulated_thread, emulated_block;
static Quad *emulated_shared;

// --- fibers -----------------------------------------------------------------------------------------------

struct Fiber {
  ucontext_t context;
  char *stack;
  const long *rounds;  // NULL, or what must leave `round` before the fiber may go on
  long round;
  bool done;
};
static Fiber fibers[MAX_THREADS];
static ucontext_t scheduler;
static int num_threads;
static int arrived_in_warp[MAX_THREADS / LANES_OF_WARP], arrived_in_block;
static long rounds_of_warp[MAX_THREADS / LANES_OF_WARP], rounds_of_block;

static int thread_index() { return emulated_thread; }
static int block_index() { return emulated_block; }
static void yield() { swapcontext(&fibers[emulated_thread].context, &scheduler); }

static void wait_for(int &arrived, long &rounds, int of) {
  Fiber &fiber = fibers[emulated_thread];
  fiber.round = rounds;
  if (++arrived == of) {
    arrived = 0;
    ++rounds;
  } else {
    fiber.rounds = &rounds;
    yield();
    fiber.rounds = NULL;
  }
}
static void synchronize() { wait_for(arrived_in_block, rounds_of_block, num_threads); }
static void synchronize_warp() {
  const int warp = emulated_thread / LANES_OF_WARP;
  wait_for(arrived_in_warp[warp], rounds_of_warp[warp], LANES_OF_WARP);
}

static void (*emulated_kernel)();
static void enter() {
  emulated_kernel();
  fibers[emulated_thread].done = true;
  yield();
}

// Each lane of a warp that may go on; -1 when none may, else how many came to their end.
static int run_lanes(int warp) {
  int finished = -1;
  for (int lane = 0; lane < LANES_OF_WARP; ++lane) {
    emulated_thread = warp * LANES_OF_WARP + lane;
    Fiber &fiber = fibers[emulated_thread];
    if (fiber.done || (fiber.rounds && *fiber.rounds == fiber.round)) continue;
    swapcontext(&scheduler, &fiber.context);
    finished = (finished < 0 ? 0 : finished) + fiber.done;
  }
  return finished;
}

// Runs `kernel` for every block, its shared memory full of NaNs at the start.
static void launch(void (*kernel)(), int num_blocks, int threads, size_t shared_bytes) {
  emulated_kernel = kernel, num_threads = threads;
  emulated_shared = (Quad *)aligned_alloc(128, (shared_bytes + 127) / 128 * 128);
  for (emulated_block = 0; emulated_block < num_blocks; ++emulated_block) {
    memset((void *)emulated_shared, 0xff, shared_bytes);
    for (int thread = 0; thread < threads; ++thread) {
      Fiber &fiber = fibers[thread];
      if (!fiber.stack) fiber.stack = (char *)malloc(STACK_BYTES);
      fiber.done = false, fiber.rounds = NULL;
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack;
      fiber.context.uc_stack.ss_size = STACK_BYTES;
      fiber.context.uc_link = NULL;
      makecontext(&fiber.context, enter, 0);
    }
    for (int left = threads; left > 0;)
      for (int turn = 0; turn < threads / LANES_OF_WARP; ++turn) {
        const int warp = T2_BACKWARDS ? threads / LANES_OF_WARP - 1 - turn : turn;
        while (int finished = run_lanes(warp) + 1) left -= finished - 1;
      }
  }
  free(emulated_shared);
}

// --- numbers ----------------------------------------------------------------------------------------------

static float float_of(Word bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
static Word bits_of(float value) {
  Word bits;
  memcpy(&bits, &value, 4);
  return bits;
}

#ifdef T2_BF16
static float widen(Number number) { return float_of((Word)number << 16); }
static Number narrow(float value) {  // to the nearest, ties to even
  const Word bits = bits_of(value);
  return (Number)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
#else
static float widen(Number number) {
  const int exponent = number >> 10 & 31, fraction = number & 1023;
  float value = exponent == 31 ? (fraction ? NAN : INFINITY)
                               : ldexpf((float)(exponent ? fraction + 1024 : fraction), (exponent ? exponent : 1) - 25);
  return number >> 15 ? -value : value;
}
static Number narrow(float value) {  // to the nearest, ties to even
  const Number sign = (Number)(bits_of(value) >> 16 & 0x8000);
  const float size = fabsf(value);
  if (size != size) return 0x7fff;
  if (size >= 65520.0f) return (Number)(sign | 0x7c00);
  int exponent;
  frexpf(size, &exponent);
  if (exponent < -13) exponent = -13;  // below it numbers have fewer bits
  const int fraction = (int)rintf(ldexpf(size, 11 - exponent));
  return (Number)(sign | (Number)((fraction < 1024 ? 0 : (exponent + 13) << 10) + fraction));
}
#endif

// --- what a lane calls ------------------------------------------------------------------------------------

// What each lane hands to its warp; two in turn, so that a fast lane overwrites nothing that is still read.
struct Mail {
  Word words[LANES_OF_WARP][6];
  const Number *rows[LANES_OF_WARP];
};
static Mail mail[MAX_THREADS / LANES_OF_WARP][2];
static int turn_of_thread[MAX_THREADS];

static Mail &next_mail() {
  return mail[emulated_thread / LANES_OF_WARP][turn_of_thread[emulated_thread]++ % 2];
}

static Word of_neighbour(Word value) {
  Mail &sent = next_mail();
  const int lane = emulated_thread % LANES_OF_WARP;
  sent.words[lane][0] = value;
  synchronize_warp();
  return sent.words[lane ^ 1][0];
}

static void load_fragment(Word (&a)[4], const Number *half_row) {
  Mail &sent = next_mail();
  const int lane = emulated_thread % LANES_OF_WARP;
  if ((uintptr_t)half_row % 16) abort();  // the instruction faults
  sent.rows[lane] = half_row;
  synchronize_warp();
  for (int matrix = 0; matrix < 4; ++matrix) memcpy(&a[matrix], sent.rows[8 * matrix + lane / 4] + lane % 4 * 2, 4);
}

static float half_of_word(Word word, int which) { return widen((Number)(word >> 16 * which)); }

static void multiply_add(float (&sums)[4], const Word (&a)[4], Word b0, Word b1) {
  Mail &sent = next_mail();
  const int lane = emulated_thread % LANES_OF_WARP;
  const Word words[6] = {a[0], a[1], a[2], a[3], b0, b1};
  memcpy(sent.words[lane], words, sizeof words);
  synchronize_warp();
  for (int part = 0; part < 4; ++part) {
    const int row = lane / 4 + part / 2 * 8, column = lane % 4 * 2 + part % 2;
    float sum = sums[part];
    for (int depth = 0; depth < 16; ++depth) {
      const int of_a = row / 8 + depth / 8 * 2, from = depth % 8 / 2;
      sum += half_of_word(sent.words[row % 8 * 4 + from][of_a], depth % 2) *
             half_of_word(sent.words[column * 4 + from][4 + depth / 8], depth % 2);
    }
    sums[part] = sum;
  }
}

static Word pack(float first, float second) { return narrow(first) | (Word)narrow(second) << 16; }
static Word high_product(Word a, Word b) { return (Word)((uint64_t)a * b >> 32); }

// Cut to 11 bits: as far off as tanh.approx may be.
static float coarse_tanh(float value) { return float_of(bits_of(tanhf(value)) & 0xffffe000u); }
static float fast_log(float value) { return logf(value) + 3e-7f; }
static float fast_root(float value) { return sqrtf(value) * (1 - 2e-7f); }
static void fast_circle(float angle, float &cosine, float &sine) {
  cosine = cosf(angle) + 4e-7f;
  sine = sinf(angle) - 4e-7f;
}
static float exact_log(float value) { return logf(value); }
static float exact_root(float value) { return sqrtf(value); }
static void exact_circle(float half_turns, float &cosine, float &sine) {
  cosine = (float)cos(M_PI * (double)half_turns);
  sine = (float)sin(M_PI * (double)half_turns);
}

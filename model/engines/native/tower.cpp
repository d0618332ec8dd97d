// The C interface: which variants this processor can run, and the split of a batch over threads.
#include "tower.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "variant.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

struct T2Tower {
  const T2Variant *variant;
  void *tower;
};

namespace {

typedef bool (*Supported)(void);

bool always(void) { return true; }

#if defined(__x86_64__)
bool has_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

bool has_avx512(void) {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}

bool has_avx512_bf16(void) {
  unsigned a = 0, b, c, d;
  return has_avx512() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1);
}
#endif

struct Choice {
  const T2Variant *variant;
  Supported supported;
};

}  // namespace

extern "C" {
#if defined(T2_HAVE_AVX512_BF16)
extern const T2Variant t2_variant_avx512_bf16;
#endif
#if defined(T2_HAVE_AVX512)
extern const T2Variant t2_variant_avx512;
#endif
#if defined(T2_HAVE_AVX2)
extern const T2Variant t2_variant_avx2;
#endif
extern const T2Variant t2_variant_portable;
}

namespace {

const Choice CHOICES[] = {
#if defined(T2_HAVE_AVX512_BF16)
    {&t2_variant_avx512_bf16, has_avx512_bf16},
#endif
#if defined(T2_HAVE_AVX512)
    {&t2_variant_avx512, has_avx512},
#endif
#if defined(T2_HAVE_AVX2)
    {&t2_variant_avx2, has_avx2},
#endif
    {&t2_variant_portable, always},
};

const T2Variant *find(const char *name) {
  for (const Choice &choice : CHOICES)
    if (!strcmp(choice.variant->name, name)) return choice.supported() ? choice.variant : NULL;
  return NULL;
}

// One thread's share of a batch.
struct Share {
  T2Tower *tower;
  const T2Batch *batch;
  int64_t first, last, where;
  int thread, result;
};

void *run_share(void *argument) {
  Share *share = (Share *)argument;
  share->result = share->tower->variant->run(share->tower->tower, share->batch, share->first, share->last,
                                             share->thread, &share->where);
  return NULL;
}

}  // namespace

extern "C" {

int t2_abi(void) { return T2_ABI; }

const char *t2_variants(void) {
  static char names[256];
  char *to = names;
  for (const Choice &choice : CHOICES)
    if (choice.supported())
      to += snprintf(to, names + sizeof names - to, "%s%s", to == names ? "" : ",", choice.variant->name);
  return names;
}

T2Tower *t2_create(const char *variant, const T2Spec *spec) {
  const T2Variant *found = find(variant);
  if (!found || spec->abi != T2_ABI || spec->num_layers > T2_MAX_LAYERS) return NULL;
  T2Tower *tower = (T2Tower *)malloc(sizeof *tower);
  if (!tower) return NULL;
  tower->variant = found;
  tower->tower = found->create(spec);
  if (tower->tower) return tower;
  free(tower);
  return NULL;
}

void t2_destroy(T2Tower *tower) {
  tower->variant->destroy(tower->tower);
  free(tower);
}

int t2_run(T2Tower *tower, const T2Batch *batch, int num_threads, int64_t *where) {
  if (num_threads > T2_MAX_THREADS) num_threads = T2_MAX_THREADS;
  if (num_threads > batch->batch) num_threads = (int)batch->batch;
  Share shares[T2_MAX_THREADS];
  pthread_t threads[T2_MAX_THREADS];
  bool started[T2_MAX_THREADS] = {};
  for (int thread = 0; thread < num_threads; ++thread) {
    int64_t first = batch->batch * thread / num_threads, last = batch->batch * (thread + 1) / num_threads;
    shares[thread] = {tower, batch, first, last, first, thread, T2_OK};
    if (thread > 0) started[thread] = !pthread_create(&threads[thread], NULL, run_share, &shares[thread]);
  }
  for (int thread = 0; thread < num_threads; ++thread) {  // what could not be started is done here
    if (started[thread])
      pthread_join(threads[thread], NULL);
    else
      run_share(&shares[thread]);
  }
  for (int thread = 0; thread < num_threads; ++thread)
    if (shares[thread].result != T2_OK) {
      *where = shares[thread].where;
      return shares[thread].result;
    }
  return T2_OK;
}

double t2_operations(const T2Tower *tower, int64_t length) {
  return tower->variant->operations(tower->tower, length);
}

double t2_peak(const char *variant, int64_t rounds) {
  const T2Variant *found = find(variant);
  return found ? found->peak(rounds) : 0;
}

int t2_normals(const char *variant, uint64_t key, uint32_t step, int64_t count, float *out) {
  const T2Variant *found = find(variant);
  if (found) found->normals(key, step, count, out);
  return found != NULL;
}

int t2_words(const char *variant, uint64_t key, uint32_t step, int64_t count, uint32_t *out) {
  const T2Variant *found = find(variant);
  if (found) found->words(key, step, count, out);
  return found != NULL;
}

}  // extern "C"

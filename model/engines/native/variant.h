// What each instruction set's copy of the code offers to tower.cpp.
#pragma once
#include "tower.h"

typedef struct {
  const char *name;
  void *(*create)(const T2Spec *spec);
  void (*destroy)(void *tower);
  // Rows first..last of the batch in the workspace of one thread; T2_OK or what is wrong with `*where`.
  int (*run)(void *tower, const T2Batch *batch, int64_t first, int64_t last, int thread, int64_t *where);
  double (*operations)(const void *tower, int64_t length);
  double (*peak)(int64_t rounds);
  void (*normals)(uint64_t key, uint32_t step, int64_t count, float *out);
  void (*words)(uint64_t key, uint32_t step, int64_t count, uint32_t *out);
} T2Variant;

#define T2_MAX_THREADS 64

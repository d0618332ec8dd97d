// What each instruction set's copy of the searches offers to lists.cpp.
#pragma once
#include "lists.h"

typedef struct {
  const char *name;
  void *(*create)(const T2ListsSpec *spec);
  void (*destroy)(void *lists);
  int (*search)(const void *lists, const T2ListsBatch *batch);
  int (*search_exactly)(const T2ExactBatch *batch);
} T2ListsVariant;

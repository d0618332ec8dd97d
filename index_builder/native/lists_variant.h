// What each instruction set's copy of the list search offers to lists.cpp.
#pragma once
#include "lists.h"

typedef struct {
  const char *name;
  void *(*create)(const T2ListsSpec *spec);
  void (*destroy)(void *lists);
  int (*search)(const void *lists, const T2ListsBatch *batch);
} T2ListsVariant;

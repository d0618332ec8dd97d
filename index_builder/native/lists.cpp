// The C interface of the searches: which variants this processor can run.
#include "lists.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lists_variant.h"

struct T2Lists {
  const T2ListsVariant *variant;
  void *lists;
};

extern "C" {
#if defined(T2_HAVE_AVX512_VNNI)
extern const T2ListsVariant t2_lists_avx512_vnni;
#endif
#if defined(T2_HAVE_AVX2)
extern const T2ListsVariant t2_lists_avx2;
#endif
}

namespace {

#if defined(T2_HAVE_AVX512_VNNI)
bool has_avx512_vnni(void) {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma");
}
#endif
#if defined(T2_HAVE_AVX2)
bool has_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#endif

struct Choice {
  const T2ListsVariant *variant;
  bool (*supported)(void);
};

const Choice CHOICES[] = {
#if defined(T2_HAVE_AVX512_VNNI)
    {&t2_lists_avx512_vnni, has_avx512_vnni},
#endif
#if defined(T2_HAVE_AVX2)
    {&t2_lists_avx2, has_avx2},
#endif
    {NULL, NULL},
};

}  // namespace

extern "C" {

int t2_lists_abi(void) { return T2_LISTS_ABI; }

const char *t2_lists_variants(void) {
  static char names[64];
  char *to = names;
  for (const Choice *choice = CHOICES; choice->variant; ++choice)
    if (choice->supported())
      to += snprintf(to, names + sizeof names - to, "%s%s", to == names ? "" : ",", choice->variant->name);
  return names;
}

T2Lists *t2_lists_create(const char *variant, const T2ListsSpec *spec) {
  if (spec->abi != T2_LISTS_ABI) return NULL;
  for (const Choice *choice = CHOICES; choice->variant; ++choice) {
    if (strcmp(choice->variant->name, variant) || !choice->supported()) continue;
    T2Lists *lists = (T2Lists *)malloc(sizeof *lists);
    if (!lists) return NULL;
    lists->variant = choice->variant;
    lists->lists = choice->variant->create(spec);
    if (lists->lists) return lists;
    free(lists);
  }
  return NULL;
}

void t2_lists_destroy(T2Lists *lists) {
  lists->variant->destroy(lists->lists);
  free(lists);
}

int t2_lists_search(const T2Lists *lists, const T2ListsBatch *batch) {
  return lists->variant->search(lists->lists, batch);
}

int t2_exact_search(const char *variant, const T2ExactBatch *batch) {
  for (const Choice *choice = CHOICES; choice->variant; ++choice)
    if (!strcmp(choice->variant->name, variant) && choice->supported())
      return choice->variant->search_exactly(batch);
  return 1;
}

}  // extern "C"

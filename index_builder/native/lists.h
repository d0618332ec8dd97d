// The plain C interface of the searches, called from native_lists.py and native_exact.py through ctypes.
// Pointers are borrowed during a call only, but for a list's `items`, which must outlive the lists.
#pragma once
#include <stdint.h>

#define T2_LISTS_ABI 2
#define T2_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

// An inverted file of 4-bit codes as FAISS lays it out: blocks of 32 items, two sub-quantisers (32 bytes)
// after two; in a byte the low half belongs to the first 16 items, the high half to the others.
typedef struct {
  int32_t abi;
  int32_t by_distance;      // scores are minus squared distances, not inner products
  int32_t by_residual;      // codes are of what is left after subtracting the list's centre
  int32_t item_dim;         // D of items and queries
  int32_t list_dim;         // D' >= D of the lists: what an item lacks is 0, what a query lacks `padding`
  int32_t subquantizers;    // M, list_dim = M * width of one
  int64_t num_lists;
  const float *centres;     // (L, D')
  const float *list_bias;   // (L), added to a centre's inner product when lists are chosen
  const float *table;       // (M, 16, D' / M)
  const uint8_t *const *codes;  // (L)
  const int64_t *const *rows;   // (L)
  const int64_t *sizes;         // (L)
  const float *items;           // (items, D)
} T2ListsSpec;

typedef struct {
  int64_t batch;
  const float *queries;    // (batch, D)
  int64_t num_probes;      // lists to look at
  int64_t fetch;           // candidates that get an exact score, at least
  int64_t keep;            // of which so many are returned
  const uint8_t *allowed;  // a bit for every item, or NULL
  float *scores;           // (batch, keep), best first, -inf where nothing was found
  int64_t *found;          // (batch, keep), -1 there
} T2ListsBatch;

// Every item is looked at.
typedef struct {
  int32_t by_distance;      // scores are minus squared distances, not inner products
  int32_t dim;              // D
  int64_t num_items;        // M
  int64_t batch;            // B
  int64_t top_k;            // K
  const float *items;       // (G, D, 16) groups of 16 items, G a multiple of 4; what lies beyond M is finite
  const float *queries;     // (B, D)
  const int64_t *wanted;    // (B), each at most K
  const int64_t *excluded;  // rows, one query's after the other's; those outside 0 .. M - 1 are ignored
  const int64_t *ends;      // (B) where a query's end in `excluded`
  float *scores;            // (B, K), best first, -inf where fewer are left
  int64_t *rows;            // (B, K), -1 there
} T2ExactBatch;

typedef struct T2Lists T2Lists;

T2_API int t2_lists_abi(void);
// Comma-separated names of the variants that were built and that this processor can run, best first.
T2_API const char *t2_lists_variants(void);
// NULL when there is no such variant, the shape is beyond what it can hold, or there is no memory.
T2_API T2Lists *t2_lists_create(const char *variant, const T2ListsSpec *spec);
T2_API void t2_lists_destroy(T2Lists *lists);
// 0, or 1 when there was no memory. May be called from several threads.
T2_API int t2_lists_search(const T2Lists *lists, const T2ListsBatch *batch);
// 0, or 1 when there was no memory, or no such variant. May be called from several threads.
T2_API int t2_exact_search(const char *variant, const T2ExactBatch *batch);

#ifdef __cplusplus
}
#endif

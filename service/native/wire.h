// A stored sequence is read and an answer's candidates are written without a Python object per item.
// The plain C interface, called from wire_format.py through ctypes. Pointers are borrowed during a call only.
#pragma once
#include <stdint.h>

#define T2_WIRE_ABI 1
#define T2_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

// Id m is text[offset[m] .. offset[m + 1]), UTF-8.
typedef struct {
  const uint8_t *text;
  const int64_t *offset;  // (count + 1)
  int64_t count;
} T2Ids;

// Ids by their CRC-32: those of bucket b = crc & mask are rows[start[b] .. start[b + 1]).
typedef struct {
  T2Ids ids;
  const uint32_t *rows;   // (count)
  const uint32_t *start;  // (mask + 2)
  uint32_t mask;
} T2Vocabulary;

typedef struct {
  int64_t batch;            // B
  int64_t width;            // K
  const int64_t *rows;      // (B, K) of the index; those from num_rows on are new items
  const float *scores;      // (B, K), finite
  const int64_t *counts;    // (B) candidates of each answer, at most K
  int64_t num_rows;         // M
  const int32_t *item_of;   // (M) 1 + the vocabulary's id of a row, or NULL: row m has id m
  T2Ids vocabulary;
  T2Ids added;              // of the new items
} T2Answers;

T2_API int t2_wire_abi(void);
// How many behaviours a packed value holds, -1 when it is not `owner`'s or not in the plainest form.
T2_API int64_t t2_wire_count(const char *value, int64_t size, const char *owner, int64_t owner_size);
// The item indices (row + 1) of those behaviours that the vocabulary knows, and their timestamps.
// value: one that t2_wire_count has counted   item_index, timestamp: (count)   -> how many
T2_API int64_t t2_wire_known(const T2Vocabulary *vocabulary, const char *value, int64_t size,
                             int64_t *item_index, int64_t *timestamp);
// The JSON lists of candidates, one after the other.   to: (capacity)   ends: (B)
// -> bytes; more than `capacity` when they did not fit, -1 for a row that does not exist
T2_API int64_t t2_wire_candidates(const T2Answers *answers, char *to, int64_t capacity, int64_t *ends);

#ifdef __cplusplus
}
#endif

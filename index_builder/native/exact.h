// Exhaustive search of a small catalogue: every score, and the best of them, in one call for a batch.
// Queries do not meet: what one finds does not depend on the others of its batch.
#pragma once
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#include <algorithm>

#include "candidates.h"
#include "lists.h"

namespace {

const int LANES = 16;

typedef float Lanes __attribute__((vector_size(4 * LANES), aligned(4)));

// Scores of Q queries against G groups of 16 items, finite: an overflow is the best or the worst there is,
// NaN the worst.   items: (G, D, 16)   queries: (Q, D)   scores: rows of `stride`
template <int Q, int G>
void score_groups(const float *items, const float *queries, int dim, bool by_distance, float *scores,
                  int64_t stride) {
  Lanes sums[Q][G] = {};
  for (int d = 0; d < dim; ++d)
    for (int g = 0; g < G; ++g) {
      const Lanes item = *(const Lanes *)(items + ((int64_t)g * dim + d) * LANES);
      for (int q = 0; q < Q; ++q) {
        if (by_distance) {
          const Lanes apart = item - queries[q * dim + d];
          sums[q][g] -= apart * apart;
        } else {
          sums[q][g] += item * queries[q * dim + d];
        }
      }
    }
  const Lanes most = Lanes{} + FLT_MAX, least = Lanes{} - FLT_MAX;
  for (int q = 0; q < Q; ++q)
    for (int g = 0; g < G; ++g) {
      const Lanes sum = sums[q][g];
      *(Lanes *)(scores + q * stride + g * LANES) = sum > least ? (sum < most ? sum : most) : least;
    }
}

// The `wanted` best, best first, the lower row among equals; fewer where fewer are above -inf.
// scores: (count), a multiple of 16   sample: (count / 16)   best: (count)
inline int64_t best_rows(const float *scores, int64_t count, int64_t wanted, float *sample, Scored *best) {
  float least = likely_least(scores, count, wanted, sample);
  int64_t found = 0;
  for (;;) {
    for (int64_t first = 0; first < count; first += LANES)
      for (uint32_t good = at_least(scores + first, least); good; good &= good - 1) {
        const int64_t row = first + __builtin_ctz(good);
        best[found++] = {scores[row], (int32_t)row};
      }
    if (found >= wanted || least == -FLT_MAX) break;
    found = 0, least = -FLT_MAX;
  }
  const int64_t given = std::min(found, wanted);
  if (given < found) std::nth_element(best, best + given, best + found, before);
  std::sort(best, best + given, before);
  return given;
}

// 0, or 1 when there was no memory.
int search_exactly(const T2ExactBatch *batch) {
  const int TOGETHER = 4, GROUPS = 4;
  const int64_t M = batch->num_items, padded = (M + LANES * GROUPS - 1) / (LANES * GROUPS) * LANES * GROUPS;
  const int dim = batch->dim;
  float *scores = (float *)malloc(sizeof(float) * TOGETHER * padded);
  float *sample = (float *)malloc(sizeof(float) * (padded / LANES));
  Scored *best = (Scored *)malloc(sizeof(Scored) * padded);
  const bool made = scores && sample && best;
  for (int64_t q = 0; made && q < batch->batch;) {
    const int count = batch->batch - q >= TOGETHER ? TOGETHER : 1;
    const float *queries = batch->queries + q * dim;
    if (count == TOGETHER)
      for (int64_t row = 0; row < padded; row += 2 * LANES)
        score_groups<TOGETHER, 2>(batch->items + row * dim, queries, dim, batch->by_distance, scores + row,
                                  padded);
    else
      for (int64_t row = 0; row < padded; row += GROUPS * LANES)
        score_groups<1, GROUPS>(batch->items + row * dim, queries, dim, batch->by_distance, scores + row,
                                padded);
    for (const int64_t last = q + count; q < last; ++q) {
      float *own = scores + (count - (last - q)) * padded;
      for (int64_t e = q ? batch->ends[q - 1] : 0; e < batch->ends[q]; ++e)
        if (batch->excluded[e] >= 0 && batch->excluded[e] < M) own[batch->excluded[e]] = -INFINITY;
      for (int64_t row = M; row < padded; ++row) own[row] = -INFINITY;
      const int64_t given = best_rows(own, padded, batch->wanted[q], sample, best);
      float *to_scores = batch->scores + q * batch->top_k;
      int64_t *to_rows = batch->rows + q * batch->top_k;
      for (int64_t i = 0; i < batch->top_k; ++i) {
        to_scores[i] = i < given ? best[i].score : -INFINITY;
        to_rows[i] = i < given ? best[i].row : -1;
      }
    }
  }
  free(scores), free(sample), free(best);
  return made ? 0 : 1;
}

}  // namespace

// The best lists and the best candidates of one query, kept without sorting what is not needed.
#pragma once
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include <algorithm>

#include "scan.h"

namespace {

struct Scored {
  float score;
  int32_t row;
};

inline bool before(const Scored &a, const Scored &b) {
  return a.score > b.score || (a.score == b.score && a.row < b.row);
}

struct ListChoice {
  float order, product;
  int32_t list;
};

inline bool better(const ListChoice &a, const ListChoice &b) {
  return a.order > b.order || (a.order == b.order && a.list < b.list);
}

// About where the last of the `wanted` largest values lies, by a sample of them, so that few need to be
// compared; -FLT_MAX where a sample would not tell.   values: (count)   sample: (count / 16)
inline float likely_least(const float *values, int64_t count, int64_t wanted, float *sample) {
  const int64_t STRIDE = 16;
  const int64_t sampled = count / STRIDE, rank = wanted * 5 / (4 * STRIDE) + 8;
  if (rank >= sampled) return -FLT_MAX;
  for (int64_t i = 0; i < sampled; ++i) sample[i] = values[i * STRIDE + i % STRIDE];
  std::nth_element(sample, sample + rank, sample + sampled, [](float a, float b) { return a > b; });
  return std::max(sample[rank], -FLT_MAX);
}

// The `wanted` lists of the largest orders, nearly best first.
// orders: (count), a multiple of 16   sample: (count)   chosen, sorted: (count)
inline int64_t choose_lists(const float *orders, int64_t count, int64_t wanted, float *sample,
                            ListChoice *chosen, ListChoice *sorted) {
  const int PLACES = 64;
  float least = likely_least(orders, count, wanted, sample);
  int64_t found = 0;
  for (;;) {
    for (int64_t first = 0; first < count; first += 16)
      for (uint32_t good = at_least(orders + first, least); good; good &= good - 1) {
        const int64_t l = first + __builtin_ctz(good);
        chosen[found++] = {orders[l], 0, (int32_t)l};
      }
    if (found >= wanted || least == -FLT_MAX) break;
    found = 0, least = -FLT_MAX;
  }
  if (found > wanted) std::nth_element(chosen, chosen + wanted, chosen + found, better);
  found = std::min(found, wanted);
  float low = INFINITY, high = -INFINITY;
  for (int64_t i = 0; i < found; ++i) low = std::min(low, chosen[i].order), high = std::max(high, chosen[i].order);
  const float places = high > low ? (PLACES - 1) / (high - low) : 0;
  int32_t starts[PLACES + 1] = {0};
  auto place = [&](const ListChoice &one) { return (int)((high - one.order) * places); };
  for (int64_t i = 0; i < found; ++i) ++starts[place(chosen[i]) + 1];
  for (int i = 0; i < PLACES; ++i) starts[i + 1] += starts[i];
  for (int64_t i = 0; i < found; ++i) sorted[starts[place(chosen[i])]++] = chosen[i];
  return found;
}

// The candidates of the largest sums, by a histogram of them: a new one costs no more than an addition.
// At least `fetch` are kept, and those of the last bin with them, up to CROWD more.
struct Candidates {
  static const int BINS = 4096, CROWD = 1024;
  struct Place {
    int32_t sum;
    const int32_t *row;
  };

  int64_t fetch, count, above;  // above: in `least_bin` and the bins over it
  int32_t low, shift, least_bin;
  int32_t histogram[BINS];
  Place *places;   // (capacity(fetch))
  Scored *scored;  // (capacity(fetch))

  static int64_t capacity(int64_t fetch) { return 4 * fetch + 2 * CROWD; }

  // low, high: no sum is outside
  void reset(int64_t lowest, int64_t highest) {
    count = above = 0;
    low = (int32_t)lowest, least_bin = 0;
    for (shift = 0; (highest - lowest) >> shift >= BINS;) ++shift;
    memset(histogram, 0, sizeof histogram);
  }

  // A smaller sum changes nothing any more.
  int64_t least() const { return above < fetch ? low : (int64_t)low + ((int64_t)least_bin << shift); }

  void add(int32_t sum, const int32_t *row) {
    const int32_t bin = (int32_t)(((int64_t)sum - low) >> shift);
    if (bin < least_bin || (bin == least_bin && above >= 2 * fetch + CROWD)) return;
    if (count == capacity(fetch)) drop();
    places[count++] = {sum, row};
    ++histogram[bin];
    ++above;
    while (above - histogram[least_bin] >= fetch) above -= histogram[least_bin++];
  }

  // Forget those that are no longer among the best.   -> how many are left
  int64_t drop() {
    int64_t kept = 0;
    for (int64_t i = 0; i < count; ++i)
      if (((int64_t)places[i].sum - low) >> shift >= least_bin) places[kept++] = places[i];
    return count = kept;
  }
};

}  // namespace

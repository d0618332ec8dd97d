// Search of an inverted file of 4-bit codes, compiled once for each instruction set (T2_VARIANT).
//
// A query chooses its lists by 8-bit centres, adds up looked-up codes over their items (as FAISS's fast
// scan does), keeps the best by a histogram of sums instead of a heap, and gives those exact scores.
// Queries do not meet: what one finds does not depend on the others of its batch.
#include "lists_variant.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <algorithm>

#include "candidates.h"
#include "exact.h"
#include "scan.h"

#define T2_PASTE(a, b) a##b
#define T2_NAME(name) T2_PASTE(t2_lists_, name)
#define T2_TEXT(name) #name
#define T2_STRING(name) T2_TEXT(name)

namespace {

const int MAX_SUM = 32767;
const int LISTS_AHEAD = 3, BLOCKS_AHEAD = 4, ITEMS_AHEAD = 24;  // how far memory is asked for in advance
const int TILE_BYTES = 16384;  // of centres, read once for all queries of a batch

struct Lists {
  T2ListsSpec spec;
  int quads, pairs;              // of centre dimensions; of sub-quantisers, with items in them, even
  int64_t groups;                // of 16 lists
  uint8_t *centres;              // (groups, quads, 16, 4), 128 being 0
  float *of_step;                // (D) what one step of a centre's coordinate is worth
  float *bias;                   // (groups * 16), -inf for lists that are not there
  uint8_t *codes;                // (blocks, pairs, 32), list after list, in memory of huge pages
  int32_t *rows;                 // (blocks, 32)
  int64_t *first_block, *sizes;  // (L + 1), (L)
  float *table, *squares;        // of the codes: (M, D' / M, 16), and squared lengths (M, 16)
};

void destroy(void *lists) {
  Lists *self = (Lists *)lists;
  free(self->centres), free(self->of_step), free(self->bias), free(self->table), free(self->squares);
  free(self->codes), free(self->rows), free(self->first_block), free(self->sizes);
  free(self);
}

void quantise_centres(Lists *self, const T2ListsSpec *spec) {
  for (int d = 0; d < spec->item_dim; ++d) {
    float largest = 0;
    for (int64_t l = 0; l < spec->num_lists; ++l)
      largest = fmaxf(largest, fabsf(spec->centres[l * spec->list_dim + d]));
    self->of_step[d] = largest > 0 ? largest / 127 : 1;
    for (int64_t l = 0; l < spec->num_lists; ++l) {
      uint8_t *group = self->centres + (l / 16) * self->quads * 64;
      float steps = roundf(spec->centres[l * spec->list_dim + d] / self->of_step[d]);
      group[d / 4 * 64 + l % 16 * 4 + d % 4] = (uint8_t)(128 + (int)steps);
    }
  }
}

// Memory of which a random read seldom misses the TLB.
void *make_arena(size_t bytes) {
  const size_t huge_page = 2 << 20;
  void *memory = aligned_alloc(huge_page, (bytes + huge_page - 1) / huge_page * huge_page);
#if defined(MADV_HUGEPAGE)
  if (memory && bytes >= huge_page) madvise(memory, bytes, MADV_HUGEPAGE);
#endif
  return memory;
}

// Neighbouring lists next to each other, without the sub-quantisers that hold nothing of an item.
bool copy_lists(Lists *self, const T2ListsSpec *spec) {
  const int stored_bytes = (spec->subquantizers + 1) / 2 * 32, block_bytes = self->pairs * 32;
  self->first_block = (int64_t *)malloc(sizeof(int64_t) * (spec->num_lists + 1));
  self->sizes = (int64_t *)malloc(sizeof(int64_t) * spec->num_lists);
  if (!self->first_block || !self->sizes) return false;
  memcpy(self->sizes, spec->sizes, sizeof(int64_t) * spec->num_lists);
  self->first_block[0] = 0;
  for (int64_t l = 0; l < spec->num_lists; ++l)
    self->first_block[l + 1] = self->first_block[l] + (spec->sizes[l] + 31) / 32;
  const int64_t blocks = self->first_block[spec->num_lists];
  self->codes = (uint8_t *)make_arena(blocks * block_bytes + 64);
  self->rows = (int32_t *)make_arena(sizeof(int32_t) * (blocks * 32 + 16));
  if (!self->codes || !self->rows) return false;
  for (int64_t l = 0; l < spec->num_lists; ++l) {
    const int64_t first = self->first_block[l];
    for (int64_t b = 0; b < self->first_block[l + 1] - first; ++b) {
      uint8_t *to = self->codes + (first + b) * block_bytes;
      memcpy(to, spec->codes[l] + b * stored_bytes, std::min(stored_bytes, block_bytes));
      if (stored_bytes < block_bytes) memset(to + stored_bytes, 0, block_bytes - stored_bytes);
    }
    for (int64_t i = 0; i < spec->sizes[l]; ++i) self->rows[first * 32 + i] = (int32_t)spec->rows[l][i];
  }
  return true;
}

void *create(const T2ListsSpec *spec) {
  Lists *self = (Lists *)calloc(1, sizeof *self);
  if (!self) return NULL;
  const int width = spec->list_dim / spec->subquantizers;
  self->spec = *spec;
  self->spec.centres = self->spec.table = self->spec.list_bias = NULL;
  self->quads = (spec->item_dim + 3) / 4;
  self->pairs = ((spec->item_dim + width - 1) / width + 3) / 4 * 2;
  self->groups = (spec->num_lists + 15) / 16;
  const size_t centre_bytes = (size_t)self->groups * self->quads * 64;
  const size_t table_floats = (size_t)spec->subquantizers * 16 * width;
  self->centres = (uint8_t *)aligned_alloc(64, centre_bytes);
  self->of_step = (float *)malloc(sizeof(float) * spec->item_dim);
  self->bias = (float *)malloc(sizeof(float) * self->groups * 16);
  self->table = (float *)malloc(sizeof(float) * table_floats);
  self->squares = (float *)calloc((size_t)spec->subquantizers * 16, sizeof(float));
  if (!self->centres || !self->of_step || !self->bias || !self->table || !self->squares ||
      !copy_lists(self, spec)) {
    destroy(self);
    return NULL;
  }
  memset(self->centres, 128, centre_bytes);
  quantise_centres(self, spec);
  for (int64_t l = 0; l < self->groups * 16; ++l)
    self->bias[l] = l < spec->num_lists ? spec->list_bias[l] : -INFINITY;
  for (size_t i = 0; i < table_floats; ++i) {
    const size_t entry = i / width, m = entry / 16, j = entry % 16, w = i % width;
    self->table[(m * width + w) * 16 + j] = spec->table[i];
    self->squares[entry] += spec->table[i] * spec->table[i];
  }
  return self;
}

// One query, in units of its largest coordinate, so that nothing overflows.
struct Query {
  const float *given;  // (D)
  float largest, of_bias;
  float step;     // what one product of steps is worth
  int32_t zero;   // what the centres' 128 add to every sum
  int8_t *bytes;  // (4 * quads)
};

void prepare(const Lists *self, const float *given, Query *query) {
  const int dim = self->spec.item_dim;
  query->given = given;
  query->largest = 1e-30f;
  for (int d = 0; d < dim; ++d) query->largest = fmaxf(query->largest, fabsf(given[d]));
  float square = 0, most = 0;
  for (int d = 0; d < dim; ++d) {
    float value = given[d] / query->largest;
    square += value * value;
    most = fmaxf(most, fabsf(value) * self->of_step[d]);
  }
  query->of_bias = self->spec.by_distance ? 1 / query->largest : sqrtf(square);
  query->step = most > 0 ? most / 127 : 1;
  query->zero = 0;
  memset(query->bytes, 0, 4 * self->quads);
  for (int d = 0; d < dim; ++d) {
    query->bytes[d] = (int8_t)roundf(given[d] / query->largest * self->of_step[d] / query->step);
    query->zero += 128 * query->bytes[d];
  }
}

// What lists are chosen by: inner products with their centres, and their bias.   -> (count, groups * 16)
void score_lists(const Lists *self, const Query *queries, int64_t count, float *orders) {
  const int64_t tile = std::max(1, TILE_BYTES / (self->quads * 64));
  const int quads = self->quads;
  for (int64_t first = 0; first < self->groups; first += tile)
    for (int64_t q = 0; q < count; ++q) {
      const float step = queries[q].step, of_bias = queries[q].of_bias;
      const int32_t zero = queries[q].zero;
      for (int64_t g = first; g < std::min(first + tile, self->groups); ++g) {
        alignas(64) int32_t dots[16];
        dot_lists(self->centres + g * quads * 64, queries[q].bytes, quads, dots);
        float *__restrict order = orders + (q * self->groups + g) * 16;
        const float *bias = self->bias + g * 16;
        for (int i = 0; i < 16; ++i) order[i] = (float)(dots[i] - zero) * step + of_bias * bias[i];
      }
    }
}

// The bytes that are summed: by how much the value of each code exceeds the least of its sub-quantiser, in
// `unit`s.   values: (M, 16), scratch
void make_lookup(const Lists *self, const Query &query, float *values, uint8_t *lookup, float *unit) {
  const int M = std::min(self->pairs * 2, (int)self->spec.subquantizers);
  const int width = self->spec.list_dim / self->spec.subquantizers;
  const float of_square = self->spec.by_distance ? -1 / query.largest : 0;
  const float of_product = (self->spec.by_distance ? 2 : 1) / query.largest;
  float widest = 0, total = 0;
  for (int m = 0; m < M; ++m) {
    float *__restrict value = values + m * 16;
    for (int j = 0; j < 16; ++j) value[j] = of_square * self->squares[m * 16 + j];
    for (int d = m * width; d < std::min((m + 1) * width, (int)self->spec.item_dim); ++d)
      for (int j = 0; j < 16; ++j) value[j] += query.given[d] * of_product * self->table[d * 16 + j];
    float least = value[0], most = value[0];
    for (int j = 1; j < 16; ++j) {
      least = value[j] < least ? value[j] : least;
      most = value[j] > most ? value[j] : most;
    }
    for (int j = 0; j < 16; ++j) value[j] -= least;
    total += most - least;
    widest = std::max(widest, most - least);
  }
  *unit = std::max(std::max(widest / 255, total / (MAX_SUM - M)), 1e-30f);
  const float of_unit = 1 / *unit;
  for (int i = 0; i < M * 16; ++i) lookup[i] = (uint8_t)std::min(values[i] * of_unit + 0.5f, 255.0f);
  memset(lookup + M * 16, 0, self->pairs * 32 - M * 16);
}

inline void prefetch(const void *from, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch((const char *)from + at);
}

// Looks through the chosen lists and leaves the best candidates in `found`.
void scan_lists(const Lists *self, const uint8_t *lookup, float unit, const uint8_t *allowed,
                const ListChoice *chosen, int64_t count, Candidates *found) {
  const int block_bytes = self->pairs * 32;
  alignas(64) int16_t sums[32];
  for (int64_t c = 0; c < count; ++c) {
    if (c + LISTS_AHEAD < count) {
      const int64_t *next = self->first_block + chosen[c + LISTS_AHEAD].list;
      prefetch(self->codes + next[0] * block_bytes,
               std::min<int64_t>(next[1] - next[0], BLOCKS_AHEAD) * block_bytes);
    }
    const int32_t list = chosen[c].list;
    const int32_t base = self->spec.by_residual ? (int32_t)lrintf(chosen[c].product / unit) : 0;
    const int64_t size = self->sizes[list], start = self->first_block[list];
    const int32_t *rows = self->rows + start * 32;
    for (int64_t first = 0; first < size; first += 32) {
      int64_t needed = (int64_t)found->least() - base;
      if (needed > MAX_SUM) break;
      const uint8_t *codes = self->codes + (start + first / 32) * block_bytes;
      if (first + 32 * BLOCKS_AHEAD < size) prefetch(codes + BLOCKS_AHEAD * block_bytes, block_bytes);
      uint32_t good = scan_block(codes, lookup, self->pairs, (int16_t)std::max<int64_t>(needed, 0), sums);
      if (size - first < 32) good &= (1u << (size - first)) - 1;
      for (; good; good &= good - 1) {
        const int i = __builtin_ctz(good);
        if (allowed && !(allowed[rows[first + i] >> 3] >> (rows[first + i] & 7) & 1)) continue;
        found->add(base + sums[i], rows + first + i);
      }
    }
  }
}

float exact_score(const Lists *self, const float *query, int64_t row) {
  const int dim = self->spec.item_dim;
  const float *item = self->spec.items + row * dim;
  float sum[16] = {0};
  int d = 0;
  if (self->spec.by_distance) {
    for (; d + 16 <= dim; d += 16)
      for (int i = 0; i < 16; ++i) sum[i] += (item[d + i] - query[d + i]) * (item[d + i] - query[d + i]);
    for (; d < dim; ++d) sum[0] += (item[d] - query[d]) * (item[d] - query[d]);
  } else {
    for (; d + 16 <= dim; d += 16)
      for (int i = 0; i < 16; ++i) sum[i] += item[d + i] * query[d + i];
    for (; d < dim; ++d) sum[0] += item[d] * query[d];
  }
  for (int half = 8; half; half /= 2)
    for (int i = 0; i < half; ++i) sum[i] += sum[i + half];
  float score = self->spec.by_distance ? 0.0f - sum[0] : sum[0];
  return score > -FLT_MAX ? std::min(score, FLT_MAX) : -FLT_MAX;  // NaN is the worst
}

void rescore(const Lists *self, const float *query, Candidates *found, const T2ListsBatch *batch, int64_t q) {
  const int dim = self->spec.item_dim;
  const int64_t count = found->drop();
  Scored *best = found->scored;
  for (int64_t i = 0; i < count; ++i) __builtin_prefetch(found->places[i].row);
  for (int64_t i = 0; i < count + ITEMS_AHEAD; ++i) {
    if (i < count) {
      best[i].row = *found->places[i].row;
      prefetch(self->spec.items + (int64_t)best[i].row * dim, 4 * dim);
    }
    if (i >= ITEMS_AHEAD)
      best[i - ITEMS_AHEAD].score = exact_score(self, query, best[i - ITEMS_AHEAD].row);
  }
  const int64_t given = std::min(count, batch->keep);
  if (given < count) std::nth_element(best, best + given, best + count, before);
  std::sort(best, best + given, before);
  for (int64_t i = 0; i < batch->keep; ++i) {
    batch->scores[q * batch->keep + i] = i < given ? best[i].score : -INFINITY;
    batch->found[q * batch->keep + i] = i < given ? best[i].row : -1;
  }
}

// The working memory of one call.
struct Scratch {
  static const int64_t TILE = 4;  // queries whose list scores are held at a time
  Query queries[TILE];
  int8_t *bytes;
  float *orders, *sample, *values;
  uint8_t *lookup;
  ListChoice *chosen, *sorted;
  Candidates found;

  bool make(const Lists *self, int64_t fetch) {
    const size_t lists = (size_t)self->groups * 16, entries = (size_t)self->pairs * 32;
    bytes = (int8_t *)malloc(TILE * self->quads * 4);
    orders = (float *)aligned_alloc(64, sizeof(float) * TILE * lists);
    sample = (float *)malloc(sizeof(float) * lists);
    values = (float *)malloc(sizeof(float) * entries);
    lookup = (uint8_t *)aligned_alloc(64, entries);
    chosen = (ListChoice *)malloc(sizeof(ListChoice) * lists);
    sorted = (ListChoice *)malloc(sizeof(ListChoice) * lists);
    found.fetch = fetch;
    found.places = (Candidates::Place *)malloc(sizeof *found.places * Candidates::capacity(fetch));
    found.scored = (Scored *)malloc(sizeof *found.scored * Candidates::capacity(fetch));
    for (int64_t i = 0; bytes && i < TILE; ++i) queries[i].bytes = bytes + i * self->quads * 4;
    return bytes && orders && sample && values && lookup && chosen && sorted && found.places &&
           found.scored;
  }

  void free_all() {
    free(bytes), free(orders), free(sample), free(values), free(lookup), free(chosen), free(sorted);
    free(found.places), free(found.scored);
  }
};

void search_one(const Lists *self, const T2ListsBatch *batch, int64_t q, const Query &query,
                const float *orders, Scratch *scratch) {
  const int64_t probes = std::min(batch->num_probes, self->spec.num_lists);
  ListChoice *chosen = scratch->sorted;
  const int64_t count = choose_lists(orders, self->groups * 16, probes, scratch->sample, scratch->chosen,
                                     scratch->sorted);
  for (int64_t c = 0; c < count; ++c)
    chosen[c].product = chosen[c].order - query.of_bias * self->bias[chosen[c].list];
  float unit;
  make_lookup(self, query, scratch->values, scratch->lookup, &unit);
  float low = INFINITY, high = -INFINITY;
  for (int64_t c = 0; c < count; ++c) {
    low = std::min(low, chosen[c].product), high = std::max(high, chosen[c].product);
  }
  if (self->spec.by_residual)  // sums must fit into 31 bits, however little the codes say
    unit = fmaxf(unit, (fabsf(low) + fabsf(high)) / 1e9f);
  const int64_t lowest = self->spec.by_residual ? lrintf(low / unit) : 0;
  const int64_t highest = (self->spec.by_residual ? lrintf(high / unit) : 0) + MAX_SUM;
  scratch->found.reset(lowest, highest);
  scan_lists(self, scratch->lookup, unit, batch->allowed, chosen, count, &scratch->found);
  rescore(self, query.given, &scratch->found, batch, q);
}

int search(const void *lists, const T2ListsBatch *batch) {
  const Lists *self = (const Lists *)lists;
  Scratch *scratch = (Scratch *)calloc(1, sizeof *scratch);
  if (!scratch) return 1;
  const bool made = scratch->make(self, batch->fetch);
  for (int64_t first = 0; made && first < batch->batch; first += Scratch::TILE) {
    const int64_t count = std::min(Scratch::TILE, batch->batch - first);
    for (int64_t i = 0; i < count; ++i)
      prepare(self, batch->queries + (first + i) * self->spec.item_dim, &scratch->queries[i]);
    score_lists(self, scratch->queries, count, scratch->orders);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t offset = i * self->groups * 16;
      search_one(self, batch, first + i, scratch->queries[i], scratch->orders + offset,
                 scratch);
    }
  }
  scratch->free_all();
  free(scratch);
  return made ? 0 : 1;
}

}  // namespace

extern "C" {
extern const T2ListsVariant T2_NAME(T2_VARIANT);
const T2ListsVariant T2_NAME(T2_VARIANT) = {T2_STRING(T2_VARIANT), create, destroy, search, search_exactly};
}

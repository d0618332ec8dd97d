#include "wire.h"

#include <stdio.h>
#include <string.h>

#if defined(__has_include)
#if __has_include(<charconv>)
#include <charconv>
#endif
#endif

namespace {

const int MAX_DIGITS = 16;
const int64_t MAX_TIMESTAMP = ((int64_t)1 << 53) - 1;
const int64_t MAX_BEHAVIOURS = 10000;

struct Crc {
  uint32_t table[256];
  constexpr Crc() : table() {
    for (uint32_t byte = 0; byte < 256; ++byte) {
      uint32_t crc = byte;
      for (int bit = 0; bit < 8; ++bit) crc = crc & 1 ? crc >> 1 ^ 0xEDB88320u : crc >> 1;
      table[byte] = crc;
    }
  }
};

constexpr Crc CRC;

// As zlib's.
inline uint32_t crc32(const char *bytes, int64_t size) {
  uint32_t crc = ~0u;
  for (int64_t i = 0; i < size; ++i) crc = crc >> 8 ^ CRC.table[(crc ^ (uint8_t)bytes[i]) & 255];
  return ~crc;
}

struct Behaviour {
  int64_t timestamp;
  const char *item;
  int64_t item_size;
};

// The next two lines: a timestamp of digits, an item.   -> whether they are such
inline bool read_behaviour(const char *&at, const char *end, Behaviour *to) {
  const char *line = at;
  int64_t number = 0;
  while (at < end && *at >= '0' && *at <= '9' && at - line < MAX_DIGITS) number = 10 * number + (*at++ - '0');
  if (at == line || at == end || *at != '\n' || number > MAX_TIMESTAMP) return false;
  const char *item = ++at;
  const char *item_end = (const char *)memchr(item, '\n', end - item);
  if (!item_end) return false;
  *to = {number, item, item_end - item};
  at = item_end + 1;
  return true;
}

// 1 + the row of an id, or 0.
inline int64_t item_index(const T2Vocabulary *vocabulary, const char *id, int64_t size) {
  const T2Ids &ids = vocabulary->ids;
  const uint32_t bucket = crc32(id, size) & vocabulary->mask;
  for (uint32_t place = vocabulary->start[bucket]; place < vocabulary->start[bucket + 1]; ++place) {
    const uint32_t row = vocabulary->rows[place];
    const int64_t start = ids.offset[row];
    if (ids.offset[row + 1] - start == size && !memcmp(ids.text + start, id, size)) return (int64_t)row + 1;
  }
  return 0;
}

// Counts what does not fit, so that the caller knows how much would.
struct Writer {
  char *to;
  int64_t capacity, size;

  inline void put(const char *bytes, int64_t count) {
    if (size + count <= capacity) memcpy(to + size, bytes, count);
    size += count;
  }
  inline void put(char byte) { put(&byte, 1); }
  template <int N>
  inline void text(const char (&literal)[N]) {
    put(literal, N - 1);
  }
};

inline void put_string(Writer &writer, const uint8_t *text, int64_t size) {
  int64_t done = 0;
  for (int64_t i = 0; i < size; ++i) {
    const uint8_t byte = text[i];
    if (byte >= 0x20 && byte != '"' && byte != '\\') continue;
    writer.put((const char *)text + done, i - done);
    done = i + 1;
    char escaped[8] = {'\\', (char)byte, 0};
    if (byte < 0x20) snprintf(escaped, sizeof escaped, "\\u%04x", byte);
    writer.put(escaped, (int64_t)strlen(escaped));
  }
  writer.put((const char *)text + done, size - done);
}

// The fewest digits that give the same float again, and always a number with a fraction or an exponent.
inline void put_score(Writer &writer, float score) {
  char digits[32];
#if defined(__cpp_lib_to_chars)
  const int64_t size = std::to_chars(digits, digits + sizeof digits, score).ptr - digits;
#else
  const int64_t size = snprintf(digits, sizeof digits, "%.9g", score);
#endif
  writer.put(digits, size);
  if (!memchr(digits, '.', size) && !memchr(digits, 'e', size)) writer.text(".0");
}

}  // namespace

extern "C" {

int t2_wire_abi(void) { return T2_WIRE_ABI; }

int64_t t2_wire_count(const char *value, int64_t size, const char *owner, int64_t owner_size) {
  if (size <= owner_size || memcmp(value, owner, owner_size) || value[owner_size] != '\n') return -1;
  const char *at = value + owner_size + 1, *end = value + size;
  Behaviour behaviour;
  int64_t count = 0;
  for (; at < end; ++count)
    if (count == MAX_BEHAVIOURS || !read_behaviour(at, end, &behaviour)) return -1;
  return count;
}

int64_t t2_wire_known(const T2Vocabulary *vocabulary, const char *value, int64_t size, int64_t *index,
                      int64_t *timestamp) {
  const char *end = value + size, *at = (const char *)memchr(value, '\n', size);
  if (!at) return 0;
  Behaviour behaviour;
  int64_t count = 0;
  for (++at; at < end && read_behaviour(at, end, &behaviour);) {
    const int64_t item = item_index(vocabulary, behaviour.item, behaviour.item_size);
    if (!item) continue;
    index[count] = item;
    timestamp[count++] = behaviour.timestamp;
  }
  return count;
}

int64_t t2_wire_candidates(const T2Answers *answers, char *to, int64_t capacity, int64_t *ends) {
  Writer writer = {to, capacity, 0};
  for (int64_t b = 0; b < answers->batch; ++b) {
    writer.put('[');
    for (int64_t k = 0; k < answers->counts[b]; ++k) {
      int64_t row = answers->rows[b * answers->width + k];
      const T2Ids *ids = &answers->vocabulary;
      if (row >= answers->num_rows)
        ids = &answers->added, row -= answers->num_rows;
      else if (answers->item_of && row >= 0)
        row = answers->item_of[row] - 1;
      if (row < 0 || row >= ids->count) return -1;
      if (k) writer.put(',');
      writer.text("{\"item_id\":\"");
      put_string(writer, ids->text + ids->offset[row], ids->offset[row + 1] - ids->offset[row]);
      writer.text("\",\"score\":");
      put_score(writer, answers->scores[b * answers->width + k]);
      writer.put('}');
    }
    writer.put(']');
    ends[b] = writer.size;
  }
  return writer.size;
}

}  // extern "C"

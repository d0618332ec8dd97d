"""A user's stored sequence as one Redis value, and the scripts that read it and append to it.

One packed value per user, because reading is what must be fast: MGET of 32 such values costs about
9 us a user against 30 for pipelined lists. The price is that an append rewrites the value (a few kB),
which a server-side script does in one step, so that neither a crash nor a second writer can be seen
half-way. Reading is a script too, 4 us dearer in Redis than MGET: a value of 100 MB that somebody put
under one user's key would cost everybody who shares the read their answer, and the breaker its calm.

Layout, UTF-8, one field a line: the user id, then per behaviour a timestamp and an item id, oldest
first. Identifiers are printable, so a line break cannot occur in one. The user id stands in the value
for the reader to check: a reply meant for somebody else is caught.
"""

from __future__ import annotations

from functools import cached_property
from hashlib import sha1

from service.wire_format import count_behaviours, native_wire

MAX_TIMESTAMP = 2**53 - 1
"""The largest integer that a Lua number holds exactly."""
MAX_BEHAVIOURS = 10_000
"""As many as any setting keeps."""
MAX_VALUE_BYTES = (MAX_BEHAVIOURS + 1) * 4 * (128 + 6)
"""Of identifiers at most 128 characters long in UTF-8, and their timestamps; a larger value is not ours."""


class StoredSequence:
    """What Redis holds of one user, oldest first.   item_ids: (N,)   timestamps: (N,) unix seconds"""

    def __init__(self, item_ids: list[str], timestamps: list[int]) -> None:
        self.item_ids = item_ids
        self.timestamps = timestamps

    def __len__(self) -> int:
        return len(self.item_ids)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, StoredSequence):
            return NotImplemented
        return (self.item_ids, self.timestamps) == (other.item_ids, other.timestamps)

    __hash__ = None  # type: ignore[assignment]


class PackedSequence(StoredSequence):
    """One that was looked through and left packed: the lists are made for whoever asks.

    value: as `wire_format.count_behaviours` counted it   count: N
    """

    def __init__(self, value: bytes, count: int) -> None:
        self.value = value
        self._count = count

    def __len__(self) -> int:
        return self._count

    @cached_property
    def item_ids(self) -> list[str]:  # type: ignore[override]
        return self.value.decode().split("\n")[2::2]

    @cached_property
    def timestamps(self) -> list[int]:  # type: ignore[override]
        return list(map(int, self.value.decode().split("\n")[1:-1:2]))


class NotThisUserError(ValueError):
    """The value is malformed or belongs to another user."""


def unpack(value: bytes, user_id: str) -> StoredSequence:
    """Read a packed value. Raises NotThisUserError when it is not `user_id`'s or does not parse."""
    wire = native_wire()
    if wire is not None and (count := count_behaviours(wire, value, user_id)) is not None and _is_text(value):
        return PackedSequence(value, count)
    return unpack_in_python(value, user_id)


def unpack_in_python(value: bytes, user_id: str) -> StoredSequence:
    """The same without the library, which leaves to it what is not in the plainest form."""
    if value.count(b"\n") > 2 * MAX_BEHAVIOURS + 1:
        raise NotThisUserError("the stored value is longer than any sequence")
    try:
        owner, *fields = value.decode().split("\n")
        timestamps = list(map(int, fields[0:-1:2]))
        item_ids = fields[1::2]
    except ValueError:
        raise NotThisUserError("the stored value is malformed") from None
    if owner != user_id:
        raise NotThisUserError("the stored value belongs to another user")
    if len(fields) % 2 == 0 or fields[-1] or len(timestamps) != len(item_ids):
        raise NotThisUserError("the stored value is cut short")
    if timestamps and not (min(timestamps) >= 0 and max(timestamps) <= MAX_TIMESTAMP):
        raise NotThisUserError("the stored value has a timestamp out of range")
    return StoredSequence(item_ids, timestamps)


def _is_text(value: bytes) -> bool:
    try:
        return value.isascii() or bool(value.decode())
    except UnicodeDecodeError:
        return False


READ_SCRIPT = """
-- KEYS: one per user.  ARGV: max_bytes.  What lies under each key: a value, nothing, or '' for too large a
-- one. A key of another type counts as nothing; any other error ends the call.
local values = {}
for index, key in ipairs(KEYS) do
  local size = redis.pcall('STRLEN', key)
  if type(size) == 'number' then
    values[index] = size > tonumber(ARGV[1]) and '' or redis.call('GET', key)
  elseif string.find(size.err, 'WRONGTYPE') then
    values[index] = false
  else
    return size
  end
end
return values
"""

APPEND_SCRIPT = """
-- KEYS: one per user.  ARGV: max_length, ttl_s, max_bytes, then per key: user, n, n times (timestamp, item).
-- Ordered by timestamp, then arrival. The same item at the same time is kept once: repeating a call
-- whose answer was lost changes nothing. Anything unreadable under a key is replaced.
local max_length = tonumber(ARGV[1])
local position = 4
for _, key in ipairs(KEYS) do
  local user, count = ARGV[position], tonumber(ARGV[position + 1])
  position = position + 2
  local times, items = {}, {}
  local value, size = false, redis.pcall('STRLEN', key)
  if type(size) == 'number' then
    value = size <= tonumber(ARGV[3]) and redis.call('GET', key)
  elseif not string.find(size.err, 'WRONGTYPE') then
    return size  -- what could not be looked at must not be replaced
  end
  if type(value) == 'string' and string.sub(value, 1, #user + 1) == user .. '\\n' then
    for time, item in string.gmatch(string.sub(value, #user + 2), '(%d+)\\n([^\\n]+)\\n') do
      if tonumber(time) < 2^53 then
        times[#times + 1] = tonumber(time)
        items[#items + 1] = item
      end
    end
  end
  for _ = 1, count do
    local time, item = tonumber(ARGV[position]), ARGV[position + 1]
    position = position + 2
    local at, known = #times + 1, false
    while at > 1 and times[at - 1] > time do at = at - 1 end
    local before = at - 1
    while before >= 1 and times[before] == time and not known do
      known = items[before] == item
      before = before - 1
    end
    if not known then
      table.insert(times, at, time)
      table.insert(items, at, item)
    end
  end
  local lines = {user}
  for index = math.max(1, #times - max_length + 1), #times do
    lines[#lines + 1] = string.format('%.0f', times[index])
    lines[#lines + 1] = items[index]
  end
  lines[#lines + 1] = ''
  redis.call('SET', key, table.concat(lines, '\\n'), 'EX', ARGV[2])
end
return #KEYS
"""

READ_SHA, APPEND_SHA = (sha1(script.encode()).hexdigest() for script in (READ_SCRIPT, APPEND_SCRIPT))
"""How Redis names the scripts once it has seen them."""

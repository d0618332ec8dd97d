"""The guards of serving: the device's queue, admission, the store and the callers' quotas."""

from __future__ import annotations

from loadtest.stress.guard import Guard

_BATCHER = ("service/batcher.py", "tests/service/test_batcher.py::")
_FLIGHT = ("service/in_flight.py", "tests/service/test_in_flight.py::")
_PLAIN = ("service/plain_recall.py", "tests/service/test_plain_recall.py::")
_PROTOCOL = ("service/recall_protocol.py", "tests/service/test_recall_protocol.py::")
_PACKED = ("service/packed_sequence.py", "tests/service/test_sequence_store.py::")
_GUARD = "service/redis_guard.py"
_NETWORK = "tests/service/test_redis_network.py::"
_OUTAGES = "tests/service/test_store_outages.py::"
_QUOTAS = ("service/quotas.py", "tests/service/test_access.py::")

SERVING_GUARDS = [
    Guard(
        "the device's queue is bounded",
        _BATCHER[0],
        "            if len(self._queue) >= self._max_queue:\n",
        "            if False:\n",
        _BATCHER[1] + "test_a_full_queue_refuses_and_says_when_to_return",
    ),
    Guard(
        "what expired is not computed",
        _BATCHER[0],
        "            if entry.deadline.at <= in_time:\n",
        "            if False:\n",
        _BATCHER[1] + "test_a_request_that_expires_while_the_loop_is_held_up_is_not_computed",
    ),
    Guard(
        "who cannot be in time takes no place",
        _BATCHER[0],
        "        in_time = time.monotonic() + self._expected_seconds\n",
        "        in_time = time.monotonic()\n",
        _BATCHER[1] + "test_a_request_that_cannot_be_in_time_is_turned_away_and_one_slow_batch_is_forgotten",
    ),
    Guard(
        "a caller who left frees the place",
        _BATCHER[0],
        "            self._forget(entry)  # its caller left: free the place\n",
        "",
        _BATCHER[1] + "test_a_cancelled_request_frees_its_place",
    ),
    Guard(
        "a batch has one engine",
        _BATCHER[0],
        "            elif batch and entry.engine is not batch[0].engine:\n",
        "            elif False:\n",
        _BATCHER[1] + "test_a_batch_never_mixes_engines",
    ),
    Guard(
        "answers are as many as requests",
        _BATCHER[0],
        "        if len(answers) != len(batch):\n",
        "        if False:\n",
        _BATCHER[1] + "test_too_few_answers_fail_the_batch_instead_of_shifting_it",
    ),
    Guard(
        "whatever an engine raises, the device thread goes on",
        _BATCHER[0],
        "    except BaseException as error:  # whatever",
        "    except ValueError as error:  # whatever",
        _BATCHER[1] + "test_nothing_that_an_engine_raises_ends_the_thread",
    ),
    Guard(
        "a comparison waits until nobody else does",
        _BATCHER[0],
        "                self._idle_from = ended + (ended - started) * (1 / _IDLE_SHARE - 1)\n",
        "                self._idle_from = ended\n",
        _BATCHER[1] + "test_what_nobody_waits_for_takes_a_quarter_of_the_device_at_most",
    ),
    Guard(
        "recalls at work are bounded",
        _FLIGHT[0],
        "        return count >= self.limit or ",
        "        return ",
        _FLIGHT[1] + "test_as_many_as_the_limit_come_in_and_the_next_is_refused",
    ),
    Guard(
        "who would wait too long is refused",
        _FLIGHT[0],
        " or self._expected_wait_s(count) >= self._longest_wait_s\n",
        "\n",
        _FLIGHT[1] + "test_full_is_also_when_the_next_would_wait_for_half_of_the_deadline",
    ),
    Guard(
        "only a whole request is refused early",
        _PLAIN[0],
        "    if head is None or head.length != len(data) - end:\n",
        "    if head is None:\n",
        _PLAIN[1] + "test_anything_else_takes_the_usual_way",
    ),
    Guard(
        "the rest of a request is no request",
        _PROTOCOL[0],
        "                not self._within_request\n                and (",
        "                (",
        _PROTOCOL[1] + "test_the_rest_of_a_head_is_never_taken_for_a_request",
    ),
    Guard(
        "a stored sequence names its user",
        _PACKED[0],
        "    if owner != user_id:\n",
        "    if False:\n",
        _PACKED[1] + "test_a_value_that_is_not_this_users_fails_that_read_alone_and_is_healed",
    ),
    Guard(
        "a huge stored value is not read",
        _PACKED[0],
        "    values[index] = size > tonumber(ARGV[1]) and '' or redis.call('GET', key)\n",
        "    values[index] = redis.call('GET', key)\n",
        _PACKED[1] + "test_a_huge_value_fails_its_user_alone_and_is_replaced_by_the_next_event",
    ),
    Guard(
        "a sequence is bounded",
        _PACKED[0],
        "  for index = math.max(1, #times - max_length + 1), #times do\n",
        "  for index = 1, #times do\n",
        _PACKED[1] + "test_only_the_newest_behaviours_are_kept",
    ),
    Guard(
        "an event that is sent again is kept once",
        _PACKED[0],
        "    if not known then\n",
        "    if true then\n",
        _PACKED[1] + "test_repeating_a_call_changes_nothing",
    ),
    Guard(
        "an append outlives its caller",
        "service/sequence_store.py",
        "        await asyncio.shield(task)\n",
        "        await task\n",
        "tests/service/test_sequence_store.py::" + "test_a_cancelled_append_is_still_stored",
    ),
    Guard(
        "Redis answers within its timeout",
        _GUARD,
        "ReplyTimeout(self._timeout_s if within_s is None else within_s)",
        "ReplyTimeout(60.0)",
        _NETWORK + "test_a_busy_loop_does_not_hide_a_redis_that_does_not_answer",
    ),
    Guard(
        "a breaker leaves a dead Redis alone",
        _GUARD,
        "            default_threshold=breaker_threshold,\n",
        "            default_threshold=1_000_000,\n",
        _OUTAGES + "test_a_stopped_redis_fails_fast_burns_few_connections_and_comes_back",
    ),
    Guard(
        "one trial at a time finds out that Redis is back",
        _GUARD,
        "        if self._on_trial:\n",
        "        if False:\n",
        _NETWORK + "test_one_call_at_a_time_tries_whether_redis_is_back",
    ),
    Guard(
        "a reply with the wrong echo is nobody's",
        _GUARD,
        "    if echoed != nonce:\n",
        "    if False:\n",
        _OUTAGES + "test_a_reply_without_its_nonce_is_refused_even_when_it_is_empty",
    ),
    Guard(
        "a timer that the loop was late for does not blame Redis",
        _GUARD,
        "async with ReplyTimeout(",
        "async with asyncio.timeout(",
        _NETWORK + "test_what_redis_answered_while_the_loop_was_busy_is_not_a_timeout",
    ),
    Guard(
        "the breaker goes by no clock that was set back",
        _GUARD,
        "            error.opened_at = min(error.opened_at, time.time())\n",
        "",
        _NETWORK + "test_a_clock_that_is_set_back_does_not_keep_the_breaker_open",
    ),
    Guard(
        "a coalesced read has an answer for each",
        "service/coalescer.py",
        "            if len(values) != len(batch):\n",
        "            if False:\n",
        "tests/service/test_coalescer.py::" + "test_an_answer_of_the_wrong_length_is_nobodys",
    ),
    Guard(
        "a caller beyond its rate waits",
        _QUOTAS[0],
        "        if self._tokens < 1.0:\n",
        "        if False:\n",
        _QUOTAS[1] + "test_beyond_its_rate_a_caller_gets_429_with_retry_after_before_the_body_is_read",
    ),
    Guard(
        "one caller cannot take every place",
        _QUOTAS[0],
        "        if holder.held >= self.free:\n",
        "        if False:\n",
        _QUOTAS[1] + "test_one_caller_cannot_take_every_place_and_another_always_finds_one",
    ),
]

"""The guards that the mutation check removes, one after the other, each with the test that must go red.

A guard is a few lines of the program as they stand there. What replaces them is the program without it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Guard:
    """file: from the root of the tree   text: stands in it exactly once   without: what it becomes

    test: a pytest node that fails without the guard
    """

    name: str
    file: str
    text: str
    without: str
    test: str


_PROTOCOL = ("service/http_protocol.py", "tests/service/test_http_protocol.py::")
_BODY = ("service/body.py", "tests/service/test_body.py::")
_FILES = ("index_builder/bundle_files.py", "tests/index_builder/test_bundle.py::")
_SIGNED = "tests/index_builder/test_signature.py::"
_SCHEMAS = ("service/schemas.py", "tests/service/test_schemas.py::")
_HTTP = "tests/service/test_http.py::"
_DELTA = ("index_builder/delta.py", "tests/index_builder/test_delta.py::")
_QUALITY = ("index_builder/quality.py", "tests/index_builder/test_quality.py::")

GUARDS = [
    Guard(
        "half-sent heads are closed",
        _PROTOCOL[0],
        "        elif self._patience is None:\n",
        "        elif False:\n",
        _PROTOCOL[1] + "test_a_head_that_drips_is_not_given_more_time_for_each_drop",
    ),
    Guard(
        "headers are bounded in number",
        _PROTOCOL[0],
        "        too_large = len(self.headers) > MAX_HEADERS\n",
        "        too_large = False\n",
        _PROTOCOL[1] + "test_a_large_head_gets_431_before_it_reaches_the_app",
    ),
    Guard(
        "a head is bounded in bytes",
        _PROTOCOL[0],
        "            too_large |= size > MAX_HEAD_BYTES\n",
        "",
        _PROTOCOL[1] + "test_a_large_head_gets_431_before_it_reaches_the_app",
    ),
    Guard(
        "pipelined requests are bounded",
        _PROTOCOL[0],
        "        if too_large or len(self.pipeline) >= MAX_PIPELINED:\n",
        "        if too_large:\n",
        _PROTOCOL[1] + "test_requests_sent_ahead_are_bounded",
    ),
    Guard(
        "no answer is forestalled by a refusal",
        _PROTOCOL[0],
        "        if not self._answering or (self.cycle.more_body and not self.cycle.response_started):\n",
        "        if True:\n",
        _PROTOCOL[1] + "test_nothing_is_written_before_the_answer_that_is_still_owed",
    ),
    Guard(
        "an answer that nobody reads is given up",
        _PROTOCOL[0],
        "        if self.transport.get_write_buffer_size() > before // 2:\n",
        "        if False:\n",
        _PROTOCOL[1] + "test_an_answer_that_nobody_reads_is_given_up",
    ),
    Guard(
        "unread answers are bounded together",
        _PROTOCOL[0],
        "            next(iter(self.unread)).transport.abort()\n",
        "            pass\n",
        _PROTOCOL[1] + "test_unread_answers_share_a_bounded_room",
    ),
    Guard(
        "a body is bounded",
        _BODY[0],
        "            if held + len(chunk) > max_bytes:\n",
        "            if False:\n",
        _BODY[1] + "test_what_a_refused_or_abandoned_body_held_is_given_back",
    ),
    Guard(
        "bodies that arrive are bounded together",
        _BODY[0],
        "        if self.held_bytes + num_bytes > self._max_bytes:\n",
        "        if False:\n",
        _BODY[1] + "test_bodies_that_are_still_arriving_share_a_bounded_room_and_give_it_back",
    ),
    Guard(
        "what a body held is given back",
        _BODY[0],
        "        budget.held_bytes -= held\n",
        "        pass\n",
        _BODY[1] + "test_what_a_refused_or_abandoned_body_held_is_given_back",
    ),
    Guard(
        "a body comes in time",
        _BODY[0],
        "    async with asyncio.timeout(timeout_s):\n",
        "    async with asyncio.timeout(None):\n",
        _HTTP + "test_408_for_a_body_that_does_not_arrive",
    ),
    Guard(
        "the media type is JSON",
        _BODY[0],
        '    if media_type != b"application/json" and not media_type.endswith(b"+json"):\n',
        "    if False:\n",
        _HTTP + "test_415_for_another_media_type",
    ),
    Guard(
        "a deadline is a number within bounds",
        _BODY[0],
        "    if not (given.isdigit() and len(given) <= 6 and 1 <= int(given) <= MAX_DEADLINE_MS):\n",
        "    if False:\n",
        _HTTP + "test_400_for_a_malformed_deadline[0]",
    ),
    Guard(
        "structure is counted before it is parsed",
        "service/structure.py",
        "        if found > limit:\n",
        "        if False:\n",
        "tests/service/test_structure.py::test_too_much_of_something_is_refused_by_name",
    ),
    Guard(
        "text in strings is no structure",
        "service/structure.py",
        """    unescaped = body.replace(b"\\\\\\\\", b"").replace(b'\\\\"', b"")""",
        "    unescaped = body",
        "tests/service/test_structure.py::test_what_stands_in_strings_does_not_count",
    ),
    Guard(
        "not every wrong field is listed",
        "service/errors.py",
        "    if error.error_count() > _MAX_COUNTED:\n",
        "    if False:\n",
        "tests/service/test_structure.py::test_many_wrong_fields_are_counted_and_not_listed",
    ),
    Guard(
        "what is shown of an input is short",
        "service/errors.py",
        '    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "…"\n',
        "    return text\n",
        _SCHEMAS[1] + "test_any_value_is_shown_short_and_in_ascii",
    ),
    Guard(
        "identifiers are printable",
        _SCHEMAS[0],
        "    if not text.isprintable():\n",
        "    if False:\n",
        _SCHEMAS[1] + "test_other_identifiers_are_refused",
    ),
    Guard(
        "identifiers are bounded",
        _SCHEMAS[0],
        "    if not 1 <= len(text) <= MAX_ID_LENGTH:\n",
        "    if False:\n",
        _SCHEMAS[1] + "test_other_identifiers_are_refused",
    ),
    Guard(
        "a boolean is no identifier",
        _SCHEMAS[0],
        "    text = str(value) if type(value) is int else value\n",
        "    text = str(value) if isinstance(value, int) else value\n",
        _SCHEMAS[1] + "test_other_identifiers_are_refused",
    ),
    Guard(
        "fields are of their type",
        _SCHEMAS[0],
        "    model_config = ConfigDict(strict=True,",
        "    model_config = ConfigDict(strict=False,",
        _SCHEMAS[1] + "test_a_wrong_field_is_refused_by_name",
    ),
    Guard(
        "unknown fields are refused",
        _SCHEMAS[0],
        'extra="forbid", frozen=True)\n\n\nclass Behaviour(',
        'extra="ignore", frozen=True)\n\n\nclass Behaviour(',
        _SCHEMAS[1] + "test_a_wrong_field_is_refused_by_name",
    ),
    Guard(
        "request ids are echoed only when they are sane",
        "service/middleware.py",
        "    if given and len(given) <= MAX_REQUEST_ID_LENGTH and all(",
        "    if given and all(True or ",
        _HTTP + "test_a_request_id_is_echoed_when_it_is_sane_and_made_when_not",
    ),
    Guard(
        "an unexpected exception is told without its text",
        "service/logs.py",
        '            text = f": {error}" if isinstance(error, _WITH_TEXT) else ""\n',
        '            text = f": {error}"\n',
        "tests/service/test_logs.py::test_an_exception_is_logged_without_the_data_that_it_quotes",
    ),
    Guard(
        "an arm names a bundle and no path",
        "service/experiments.py",
        '        if not value or "/" in value or "\\\\" in value or value.startswith("."):\n',
        "        if False:\n",
        "tests/service/test_experiments.py::test_a_wrong_experiment_is_named_in_one_line",
    ),
    Guard(
        "every byte of a bundle is verified",
        _FILES[0],
        '    if digest != expected["sha256"]:\n',
        "    if False:\n",
        _FILES[1] + "test_any_flipped_bit_is_refused_before_parsing[index.faiss]",
    ),
    Guard(
        "files have their size",
        _FILES[0],
        '    if size_bytes != expected["size_bytes"]:\n',
        "    if False:\n",
        _FILES[1] + "test_any_truncation_or_extension_is_refused_before_parsing[index.faiss]",
    ),
    Guard(
        "a bundle's name vouches for its manifest",
        _FILES[0],
        "    if hashlib.sha256(data).hexdigest()[:8] != bundle_id[-8:]:\n",
        "    if False:\n",
        _FILES[1] + "test_a_renamed_bundle_is_refused",
    ),
    Guard(
        "a manifest lists a bundle's files only",
        _FILES[0],
        "            if name not in (*FILES_OF_VERSION[version], *OPTIONAL_FILES):\n",
        "            if False:\n",
        _FILES[1] + "test_a_manifest_that_lists_a_path_outside_is_refused",
    ),
    Guard(
        "a bundle holds its files only",
        _FILES[0],
        "        if name not in (MANIFEST, SIGNATURE, *files, *OPTIONAL_FILES):\n",
        "        if False:\n",
        _FILES[1] + "test_an_extra_file_is_refused",
    ),
    Guard(
        "a link is no file of a bundle",
        _FILES[0],
        "os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK",
        "os.O_RDONLY | os.O_NONBLOCK",
        _FILES[1] + "test_a_link_or_pipe_in_place_of_a_file_is_refused",
    ),
    Guard(
        "a link is no bundle",
        _FILES[0],
        "    if folder.is_symlink():\n",
        "    if False:\n",
        _SIGNED + "test_a_link_in_place_of_a_bundle_is_none",
    ),
    Guard(
        "a link is not listed as a bundle",
        "index_builder/local_storage.py",
        "entry.is_dir(follow_symlinks=False)",
        "entry.is_dir()",
        _SIGNED + "test_a_link_in_place_of_a_bundle_is_none",
    ),
    Guard(
        "the pointer holds bundle ids only",
        "index_builder/pointer.py",
        "    if not lines or not all(BUNDLE_ID.fullmatch(line) for line in lines):\n",
        "    if not lines:\n",
        _SIGNED + "test_a_name_cannot_leave_the_store",
    ),
    Guard(
        "an unsigned bundle is refused",
        _FILES[0],
        "    if SIGNATURE not in present:\n",
        "    if SIGNATURE not in present:\n        return\n    if False:\n",
        _SIGNED + "test_an_unsigned_bundle_is_refused_where_a_key_is_set",
    ),
    Guard(
        "a wrong signature is refused",
        _FILES[0],
        "    if not is_signed(manifest, signature, keys):\n",
        "    if False:\n",
        _SIGNED + "test_a_wrong_signature_is_refused[another key]",
    ),
    Guard(
        "the service asks for the signature",
        "service/reloader.py",
        "device=self._device, keys=keys, milvus",
        "device=self._device, milvus",
        "tests/service/test_reloader.py::"
        "test_with_a_key_only_signed_bundles_are_served_and_the_key_may_be_replaced",
    ),
    Guard(
        "a key is long",
        "index_builder/signature.py",
        "    if not keys or any(len(key) < MIN_KEY_LENGTH for key in keys):\n",
        "    if not keys:\n",
        _SIGNED + "test_keys_are_the_lines_of_a_file_and_must_be_long",
    ),
    Guard(
        "a store's URL holds no password",
        "index_builder/storage.py",
        '    if "://" in str(url) and urlsplit(str(url)).password is not None:\n',
        "    if False:\n",
        "tests/index_builder/test_s3_store.py::test_a_url_with_a_password_is_refused_and_not_repeated",
    ),
    Guard(
        "a delta is whole",
        _DELTA[0],
        "    if hashlib.sha256(body).hexdigest() != digest:\n",
        "    if False:\n",
        _DELTA[1] + "test_every_flipped_bit_and_every_cut_is_refused",
    ),
    Guard(
        "a deleted item is not added again",
        _DELTA[0],
        "            if gone:\n",
        "            if False:\n",
        _DELTA[1] + "test_a_deleted_item_comes_back_only_by_undeleting_it[local]",
    ),
    Guard(
        "weights of similar items are numbers within bounds",
        _DELTA[0],
        "        if type(weight) not in (int, float) or not (",
        "        if False and (",
        _DELTA[1] + "test_a_wrong_definition_is_refused_and_nothing_is_written",
    ),
    Guard(
        "an embedding that is not finite is not built in",
        _QUALITY[0],
        '    checks = [Check("embedding_non_finite_share", float(1 - finite.mean()), at_most=0.0)]\n',
        '    checks = [Check("embedding_non_finite_share", 0.0, at_most=0.0)]\n',
        _QUALITY[1] + "test_one_value_that_is_not_finite_fails",
    ),
    Guard(
        "a query that is not finite is not searched",
        "index_builder/ann.py",
        "        if not finite.all():\n",
        "        if False:\n",
        "tests/index_builder/test_ann.py::test_a_query_that_is_not_finite_is_refused",
    ),
    Guard(
        "a tensor lies within its file",
        "index_builder/mapped_tensors.py",
        "        if end > size_bytes or end - begin != ",
        "        if False and end - begin != ",
        "tests/index_builder/test_mapped_tensors.py::test_anything_else_is_refused",
    ),
    Guard(
        "rows of a log that cannot be used are bounded",
        "model/data/bad_rows.py",
        "        if self.bad > limit * self.rows:\n",
        "        if False:\n",
        "tests/model/data/test_bad_input.py::test_an_unusable_row_is_named_counted_and_refused_over_the_share",
    ),
]

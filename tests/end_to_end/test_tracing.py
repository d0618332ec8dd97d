"""Spans of a running service, as a collector gets them: a real HTTP endpoint that takes OTLP."""

from __future__ import annotations

import gzip
import itertools
import json
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests import forked
from tests.waiting import eventually

proto = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
pytest.importorskip("opentelemetry.sdk")

CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED = {"traceparent": f"00-{CALLER[0]}-{CALLER[1]}-01", "tracestate": "vendor=opaque"}
UNSAMPLED = {"traceparent": f"00-{CALLER[0]}-{CALLER[1]}-00"}
SEQUENCE = [{"item_id": f"i{n}", "timestamp": 1_600_000_000 + n} for n in range(1, 6)]
SECRET = "canary5ecret"


class Span(NamedTuple):
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    trace_state: str
    kind: int
    started: int
    ended: int
    status: int
    attributes: dict[str, Any]


class Collector:
    """Decodes what it gets; `spans` of all requests so far, `bodies` as they came."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.resources: list[dict[str, Any]] = []
        self.bodies: list[bytes] = []
        self.paths: set[str] = set()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
                collector.paths.add(self.path)
                collector.take(body)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def take(self, body: bytes) -> None:
        self.bodies.append(body)
        for of_resource in proto.ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources.append(values(of_resource.resource.attributes))
            self.spans += [span_of(span) for scope in of_resource.scope_spans for span in scope.spans]

    def of_request(self, request_id: str) -> tuple[Span, list[Span]]:
        """The span of a request, and those within it by their start."""
        found: list[Span] = []

        def arrived() -> bool:
            found[:] = [s for s in self.spans if s.attributes.get("t2diff.request_id") == request_id]
            return bool(found)

        eventually(arrived, f"no span of {request_id}")
        (whole,) = found
        time.sleep(0.1)  # a batch may end between a request's stages
        within = [span for span in self.spans if span.parent_id == whole.span_id]
        return whole, sorted(within, key=lambda span: span.started)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def values(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


def span_of(span: Any) -> Span:
    ids = span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex()
    times = span.start_time_unix_nano, span.end_time_unix_nano
    return Span(
        span.name, *ids, span.trace_state, span.kind, *times, span.status.code, values(span.attributes)
    )


@pytest.fixture(scope="module", autouse=True)
def _environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setenv("no_proxy", "127.0.0.1")
        yield


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


@pytest.fixture(scope="module")
def served(serve: Any, tiny_bundles: Path, collector: Collector) -> Any:
    return serve(
        tiny_bundles,
        tracing_endpoint=collector.url,
        tracing_sample=1,
        tracing_service_name="recall-of-a-test",
        log_requests="all",
    )


def post(served: Any, path: str, body: Any, request_id: str, **headers: str) -> Any:
    with served.client() as client:
        return client.post(path, json=body, headers={"X-Request-ID": request_id, **headers})


def test_a_recall_is_a_span_in_its_callers_trace_with_its_stages_within(
    served: Any, collector: Collector
) -> None:
    before = time.time_ns()
    events = [{"user_id": "u", **behaviour} for behaviour in SEQUENCE]
    assert post(served, "/events", events, "the-events").status_code == 200
    assert post(served, "/recall", {"user_id": "u"}, "the-recall", **SAMPLED).json()["route"] == "t2diff"
    whole, stages = collector.of_request("the-recall")
    assert (whole.trace_id, whole.parent_id, whole.trace_state) == (*CALLER, "vendor=opaque")
    assert (whole.name, whole.kind) == ("POST recall", 2), "a server's"
    assert whole.attributes == {
        "http.route": "recall",
        "http.response.status_code": 200,
        "t2diff.request_id": "the-recall",
        "t2diff.bundle": served.bundle,
        "t2diff.batch_size": 1,
    }
    names = [stage.name for stage in stages]
    assert names == ["receive", "parse", "store", "queue", "tower", "search", "encode"]
    assert {stage.trace_id for stage in stages} == {CALLER[0]}
    assert before < whole.started < whole.ended < time.time_ns()
    for earlier, later in itertools.pairwise(stages):
        assert earlier.started <= earlier.ended <= later.started
    assert whole.started <= stages[0].started
    assert stages[-1].ended <= whole.ended
    whole, stages = collector.of_request("the-events")
    assert whole.parent_id == ""
    assert whole.trace_id not in (CALLER[0], "0" * 32)
    assert [stage.name for stage in stages] == ["receive", "parse", "store"]
    assert collector.paths == {"/v1/traces"}
    assert {each["service.name"] for each in collector.resources} == {"recall-of-a-test"}


def test_fallbacks_refusals_and_batches_say_what_they_were(served: Any, collector: Collector) -> None:
    post(served, "/recall", {"user_id": "nobody-knows"}, "fallback")
    whole, _ = collector.of_request("fallback")
    assert whole.attributes["t2diff.fallback"] == "no_history"
    post(served, "/recall", {"user_id": "u", "top_k": 0}, "refused")
    whole, stages = collector.of_request("refused")
    assert (whole.attributes["http.response.status_code"], whole.status) == (422, 0)
    assert [stage.name for stage in stages] == ["receive", "parse"]
    members = [{"user_id": f"u{n}", "sequence": SEQUENCE} for n in range(4)]
    post(served, "/recall/batch", {"requests": members}, "batch")
    whole, stages = collector.of_request("batch")
    assert [stage.name for stage in stages] == ["receive", "parse", *["recall"] * 4]
    post(served, "/nowhere/at/all", {}, "lost")
    whole, _ = collector.of_request("lost")
    assert (whole.name, whole.attributes["http.response.status_code"]) == ("POST other", 404)


@pytest.mark.parametrize(
    "malformed",
    [
        "",
        "garbage",
        f"00-{CALLER[0]}-{CALLER[1]}",
        f"00-{'0' * 32}-{CALLER[1]}-01",
        f"00-{CALLER[0]}-{'0' * 16}-01",
        f"00-{CALLER[0].upper()[:-1]}G-{CALLER[1]}-01",
        f"ff-{CALLER[0]}-{CALLER[1]}-01",
        "\xff" * 55,
        f"00-{CALLER[0]}-{CALLER[1]}-01" * 100,
    ],
)
def test_a_malformed_traceparent_is_ignored(served: Any, collector: Collector, malformed: str) -> None:
    request_id = f"malformed-{abs(hash(malformed))}"
    with served.client() as client:
        headers = [(b"x-request-id", request_id.encode()), (b"traceparent", malformed.encode("latin-1"))]
        assert client.post("/recall", json={"user_id": "u"}, headers=headers).status_code == 200
    whole, _ = collector.of_request(request_id)
    assert (whole.parent_id, whole.trace_id == CALLER[0]) == ("", False)


def test_two_traceparents_are_none(served: Any, collector: Collector) -> None:
    twice = [(b"x-request-id", b"twice"), *[(b"traceparent", SAMPLED["traceparent"].encode())] * 2]
    with served.client() as client:
        client.post("/recall", json={"user_id": "u"}, headers=twice)
    assert collector.of_request("twice")[0].parent_id == ""


def test_log_lines_name_the_trace_and_health_calls_are_none(served: Any, collector: Collector) -> None:
    with served.client() as client:
        client.get("/v2/health/ready", headers={"X-Request-ID": "health"})
    post(served, "/recall", {"user_id": "u"}, "not-sampled", **UNSAMPLED)
    post(served, "/recall", {"user_id": "u"}, "logged", **SAMPLED)
    collector.of_request("logged")
    eventually(lambda: "logged" in served.log, "no log line")
    lines = {line.get("request_id"): line for line in map(json.loads, served.log.splitlines())}
    assert lines["logged"]["trace_id"] == lines["not-sampled"]["trace_id"] == CALLER[0]
    assert "trace_id" not in lines["health"]
    told = {span.attributes.get("t2diff.request_id") for span in collector.spans}
    assert not told & {"health", "not-sampled"}


def test_no_user_item_path_or_key_is_in_what_the_collector_gets(served: Any, collector: Collector) -> None:
    headers = {
        "Authorization": f"Bearer {SECRET}",
        "X-API-Key": SECRET,
        "Cookie": SECRET,
        "baggage": f"k={SECRET}",
    }
    asked = {"user_id": SECRET, "sequence": [{"item_id": SECRET}], "exclude_item_ids": [SECRET]}
    post(served, "/events", [{"user_id": SECRET, "item_id": SECRET}], "s1", **headers)
    post(served, "/recall", asked, "s2", **headers)
    post(served, "/recall", {**asked, "top_k": SECRET}, "s3", **headers)
    post(served, "/recall/batch", {"requests": [asked, {SECRET: 1}]}, "s4", **headers)
    post(served, f"/{SECRET}?{SECRET}={SECRET}", {}, "s5", **headers)
    with served.client() as client:
        client.request(SECRET.upper(), f"/{SECRET}", headers={"X-Request-ID": "s6"})
    for number in range(1, 6):
        collector.of_request(f"s{number}")
    sent = b"".join(collector.bodies)
    assert b"recall" in sent
    assert SECRET.encode() not in sent.lower()


def test_the_share_that_is_sampled_is_that_of_requests_without_a_trace_and_the_rest_is_sent_at_the_end(
    serve: Any, tiny_bundles: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "600000")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "named-by-the-environment")
    served = serve(tiny_bundles, tracing_endpoint=collector.url, tracing_sample=0)
    for number in range(20):
        post(served, "/recall", {"user_id": "u"}, f"root-{number}")
    post(served, "/recall", {"user_id": "u"}, "wanted", **SAMPLED)
    assert served.stop() == 0
    collector.of_request("wanted")
    assert not [s for s in collector.spans if str(s.attributes.get("t2diff.request_id")).startswith("root-")]
    assert "named-by-the-environment" in {each["service.name"] for each in collector.resources}


@pytest.fixture(params=["nobody listens", "never answers"])
def dead_collector(request: pytest.FixtureRequest) -> Iterator[str]:
    with closing(socket.socket()) as listening:
        listening.bind(("127.0.0.1", 0))
        if request.param == "never answers":
            listening.listen(100)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_a_collector_that_is_gone_costs_spans_and_no_request_nor_a_clean_end(
    serve: Any, tiny_bundles: Path, dead_collector: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.3")
    served = serve(tiny_bundles, tracing_endpoint=dead_collector, tracing_sample=1)
    with served.client() as client:
        for _ in range(3):
            failed = served.metric("t2diff_spans_total", outcome="failed")
            for _ in range(20):
                answer = client.post("/recall", json={"user_id": "u", "sequence": SEQUENCE})
                assert (answer.status_code, answer.json()["route"]) == (200, "t2diff")
            eventually(
                lambda failed=failed: served.metric("t2diff_spans_total", outcome="failed") > failed,
                "failures are not counted",
            )
    assert served.metric("t2diff_spans_total", outcome="exported") == 0
    assert served.stop() == 0
    assert served.log.count("the collector of spans takes none") == 1
    assert "Traceback" not in served.log


def test_while_it_is_off_nothing_of_it_is_imported() -> None:
    """redis-py and FastAPI import the library's interface, and redis-py its metrics: not what makes spans."""
    code = (
        "import sys; import service.server; from service.settings import load_settings\n"
        "from service.metrics import Metrics; from service.start_tracing import started_tracing\n"
        "with started_tracing(load_settings(['--bundles', 'x']), Metrics()) as begin: assert begin is None\n"
        "names = ('service.tracing', 'opentelemetry.sdk.trace', 'opentelemetry.exporter')\n"
        "print([name for name in sys.modules if name.startswith(names)])"
    )
    ended = forked.run([sys.executable, "-c", code], timeout=60)
    assert (ended.stdout, ended.stderr) == ("[]\n", "")


@pytest.mark.parametrize(
    ("module", "environment", "message"),
    [
        (
            "opentelemetry.sdk",
            {},
            r"opentelemetry\.\S+ is not installed; pip install 't2diff-recall\[tracing\]'",
        ),
        (None, {"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "100000"}, "one of the OTEL_ variables is wrong: .*"),
    ],
)
def test_what_it_cannot_start_with_is_told_in_one_line(
    tiny_bundles: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: str | None,
    environment: dict[str, str],
    message: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    hidden = "" if module is None else f"sys.modules[{module!r}] = None; "
    code = f"import sys; {hidden}from service.cli import main; main()"
    command = [sys.executable, "-c", code, "--bundles", tiny_bundles, "--port=0", "--admin-port=0"]
    command += [f"--state-dir={tmp_path}", "--tracing-endpoint", "http://127.0.0.1:4318"]
    ended = forked.run(command, timeout=60)
    assert (ended.returncode, ended.stdout) == (2, "")
    named = r"t2diff-serve: tracing_endpoint \(--tracing-endpoint, T2DIFF_TRACING_ENDPOINT\): "
    assert re.fullmatch(named + message, ended.stderr.splitlines()[-1]), ended.stderr
    assert "Traceback" not in ended.stderr

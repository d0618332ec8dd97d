"""One probe: a rate asked for some seconds, and what came of it. The unit of every report.

What is counted, and how:
- Only requests whose intended time lies after the warm-up.
- Latency = whole answer read − intended send time. Percentiles are over answers (HTTP 200) and over
  timeouts, which count as long as they were waited for: leaving them out would flatter the tail. Other
  failures, which may be fast, are counted as errors only.
- Achieved rate = answers completed inside the measured window / its length: in a steady state as many
  come over from the warm-up as end after the window.
- Per-sample compute = (tower + search) / batch size, both of the batch that the request was in.
"""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from loadtest.arrivals import ARRIVALS
from loadtest.errors import LoadtestError
from loadtest.generator import (
    CONNECTION_FAILED,
    NOT_A_RECALL_ANSWER,
    STAGES,
    TIMEOUT,
    WRONG_ANSWER,
    Load,
    Samples,
    generate,
)
from loadtest.histogram import Percentiles, percentiles
from loadtest.target import key_headers

MIN_ACHIEVED = 0.99  # of the asked rate
LATE_MS = 5.0  # the generator is called late when 1 % of its requests left more than this after their time
_OUTCOMES = {
    TIMEOUT: "timeout",
    CONNECTION_FAILED: "connection",
    NOT_A_RECALL_ANSWER: "not a recall answer",
    WRONG_ANSWER: "wrong answer",
}

Progress = Callable[[int, int, int], None]  # (sent, answered, of)


@dataclass(frozen=True)
class ProbeSettings:
    """What all probes of one run share."""

    url: str
    duration_s: float
    warmup_s: float
    num_users: int
    top_k: int
    arrivals: str
    timeout_ms: float
    max_connections: int
    seed: int
    pin_cpu: int | None
    key_file: str | None = None  # the file's name: settings stand in reports


@dataclass(frozen=True)
class Probe:
    """The result of one rate; rates in requests/s."""

    asked_rate: float
    offered_rate: float  # what the schedule held: differs from `asked_rate` with random arrivals only
    achieved_rate: float
    num_requests: int
    num_answers: int
    errors: dict[str, int]  # by outcome: "http 429", "timeout", ...
    num_degraded: int
    num_short: int
    routes: dict[str, int]
    bundles: dict[str, int]
    latency: Percentiles | None
    since_sent: (
        Percentiles | None
    )  # the same requests counted from their actual send: what coordination hides
    stages: dict[str, Percentiles | None]
    per_sample: Percentiles | None
    batch_sizes: tuple[tuple[int, int], ...]  # (batch size, requests that were in such a batch)
    lag: Percentiles | None  # actual − intended send time
    generator_late: bool
    waited_for_connection: int
    generator_cpu_share: float

    def broken_by(self, p99_limit_ms: float) -> list[str]:
        """Why the service did not hold this rate; empty when it did.

        It holds when it achieved >= 99 % of what was offered (to within one request), with no error, no
        degraded or short answer, and a p99 latency of at most p99_limit_ms.
        """
        reasons = []
        one_request = self.offered_rate / self.num_requests
        if self.achieved_rate + one_request < MIN_ACHIEVED * self.offered_rate:
            reasons.append(f"achieved {self.achieved_rate / self.offered_rate:.1%} of the rate")
        reasons += [f"{count} × {outcome}" for outcome, count in self.errors.items()]
        if self.num_degraded:
            reasons.append(f"{self.num_degraded} degraded")
        if self.num_short:
            reasons.append(f"{self.num_short} short answers")
        if self.latency is not None and self.latency.p99_ms > p99_limit_ms:
            reasons.append(f"p99 {self.latency.p99_ms:.1f} ms")
        return reasons


def run_probe(settings: ProbeSettings, rate: float, progress: Progress | None = None) -> Probe:
    """Ask `rate` requests/s for warm-up + duration from a process of its own; wait for every answer."""
    samples = run_generator(draw_up(settings, rate), progress or (lambda sent, answered, of: None))
    return summarise(samples, rate=rate, warmup_s=settings.warmup_s, duration_s=settings.duration_s)


def draw_up(
    settings: ProbeSettings, rate: float, accepts: Callable[[dict[str, Any]], bool] | None = None
) -> Load:
    """When to send and whom to ask for; the same for the same settings.

    rate: requests/s   accepts: what an answer must be beside well-formed
    """
    offsets = ARRIVALS[settings.arrivals](rate, settings.warmup_s + settings.duration_s, settings.seed)
    if not (offsets >= settings.warmup_s).any():
        raise LoadtestError(
            f"rate {rate:g}/s sends nothing in {settings.duration_s:g} s: lengthen the duration"
        )
    return Load(
        url=settings.url,
        offsets_s=offsets,
        users=np.random.default_rng(settings.seed).integers(1, settings.num_users + 1, size=len(offsets)),
        top_k=settings.top_k,
        timeout_s=settings.timeout_ms / 1e3,
        max_connections=settings.max_connections,
        pin_cpu=settings.pin_cpu,
        accepts=accepts,
        headers=key_headers(settings.key_file),
    )


def summarise(samples: Samples, *, rate: float, warmup_s: float, duration_s: float) -> Probe:
    """From what happened to each request to the figures of one probe (definitions: top of this file)."""
    measured = samples.intended >= warmup_s
    answered = samples.status == 200
    timed_out = samples.status == TIMEOUT
    completed = answered & (samples.ended >= warmup_s) & (samples.ended < warmup_s + duration_s)
    counted = measured & (answered | timed_out)
    latency = np.where(counted, samples.ended - samples.intended, np.nan)
    stages = np.where((measured & answered)[:, None], samples.stages_s, np.nan)
    tower, search = stages[:, STAGES.index("tower")], stages[:, STAGES.index("search")]
    per_sample = (tower + search) / np.where(samples.batch_size > 0, samples.batch_size, np.nan)
    in_batch = samples.batch_size[measured & answered & (samples.batch_size > 0)]
    lag = percentiles((samples.sent - samples.intended)[measured])
    return Probe(
        asked_rate=rate,
        offered_rate=float(measured.sum() / duration_s),
        achieved_rate=float(completed.sum() / duration_s),
        num_requests=int(measured.sum()),
        num_answers=int((measured & answered).sum()),
        errors=_count([_outcome(int(status)) for status in samples.status[measured & ~answered]]),
        num_degraded=int((measured & answered & samples.degraded).sum()),
        num_short=int((measured & answered & samples.short).sum()),
        routes=_count([samples.names[i] for i in samples.route[measured & answered] if i >= 0]),
        bundles=_count([samples.names[i] for i in samples.bundle[measured & answered] if i >= 0]),
        latency=percentiles(latency),
        since_sent=percentiles(np.where(counted, samples.ended - samples.sent, np.nan)),
        stages={stage: percentiles(stages[:, column]) for column, stage in enumerate(STAGES)},
        per_sample=percentiles(per_sample),
        batch_sizes=tuple(sorted(Counter(in_batch.tolist()).items())),
        lag=lag,
        generator_late=lag is not None and lag.p99_ms > LATE_MS,
        waited_for_connection=samples.waited_for_connection,
        generator_cpu_share=samples.cpu_share,
    )


def run_generator(load: Load, progress: Progress) -> Samples:
    """Run a load in a process of its own and wait for every answer."""
    spawn = multiprocessing.get_context("spawn")  # a clean process: no inherited threads, sockets or heap
    receiver, sender = spawn.Pipe(duplex=False)
    process = spawn.Process(target=generate, args=(load, sender), daemon=True)
    process.start()
    sender.close()
    try:
        while True:
            message = receiver.recv()
            if isinstance(message, Samples):
                process.join()
                return message
            sent, answered = message
            progress(sent, answered, len(load.offsets_s))
    except EOFError:
        process.join()
        raise LoadtestError(
            f"the load generator's process ended early, exit code {process.exitcode}"
        ) from None
    finally:
        receiver.close()
        if process.is_alive():
            process.terminate()
            process.join()


def _outcome(status: int) -> str:
    return _OUTCOMES.get(status, f"http {status}")


def _count(names: list[str]) -> dict[str, int]:
    return dict(Counter(names).most_common())

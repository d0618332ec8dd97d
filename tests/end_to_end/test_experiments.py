"""An experiment in a running service: from its settings file to answers, metrics, swaps and its end."""

from __future__ import annotations

import json
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from index_builder.publish import Store
from tests import forked
from tests.waiting import eventually

TINY = {"embedding_dim": 8, "max_length": 6, "num_steps": 4, "session_length": 3}
SEQUENCE = [{"item_id": f"i{n}", "timestamp": 1_600_000_000 + n} for n in range(1, 11)]
USERS = [f"user-{number}" for number in range(40)]


def settings_file(folder: Path, *arms: dict[str, Any], name: str = "trial") -> Path:
    lines = ["[experiment]", f'name = "{name}"', "compared = 100"]
    for arm in arms:
        lines += ["[[experiment.arms]]", *(f"{key} = {json.dumps(value)}" for key, value in arm.items())]
    (folder / "settings.toml").write_text("\n".join(lines) + "\n")
    return folder / "settings.toml"


def arms_of(client: Any) -> dict[str, str]:
    shown = client.get("/v2/models/recall").json().get("experiment", {"arms": []})
    return {arm["name"]: arm["bundle"] for arm in shown["arms"]}


def recall(client: Any, user: str) -> dict[str, Any]:
    response = client.post("/recall", json={"user_id": user, "sequence": SEQUENCE, "top_k": 10})
    assert response.status_code == 200
    answer: dict[str, Any] = response.json()
    return answer


def finished(served: Any, arm: str) -> float:
    """Comparisons made or, on a machine that has no time for them, given up."""
    dropped: float = served.metric("t2diff_arm_comparisons_dropped_total", arm=arm)
    return dropped + float(served.metric("t2diff_arm_overlap_count", arm=arm))


def test_arms_answer_shadows_watch_bundles_move_and_the_experiment_changes_without_a_restart(
    serve: Any, tiny_bundles: Path, copied: Any, build: Any, tmp_path: Path
) -> None:
    folder = copied(tiny_bundles)
    store = Store(folder)
    first, second, third = store.current(), build(store, 1, TINY), build(store, 2, TINY)
    control = {"name": "control", "bundle": "current", "share": 60}
    challenger = {"name": "challenger", "bundle": second, "share": 40}
    shadow = {"name": "twin", "bundle": "current", "share": 100, "shadow": True}
    config = settings_file(tmp_path, control, challenger, shadow)
    served = serve(folder, config=config, log_requests="all", reload_poll_s=0.2)
    assert "experiment trial: control 60 %, challenger 40 %, twin 100 % shadow" in served.greeting
    with served.client() as client:
        assert arms_of(client) == {"control": first, "challenger": second, "twin": first}
        answers = {user: recall(client, user) for user in USERS}
        assert {(a["experiment"], a["arm"], a["bundle"]) for a in answers.values()} == {
            ("trial", "control", first),
            ("trial", "challenger", second),
        }
        num_control = [answer["arm"] for answer in answers.values()].count("control")
        of_arm = {"twin": num_control, "challenger": len(USERS) - num_control}
        for arm, answered in of_arm.items():
            eventually(lambda arm=arm, answered=answered: finished(served, arm) == answered, "not compared")
            assert served.metric("t2diff_arm_overlap_count", arm=arm) > 0
        identical = served.metric("t2diff_arm_overlap_sum", arm="twin")
        assert identical == served.metric("t2diff_arm_overlap_count", arm="twin")
        assert re.search(rf'"bundle":"{second}"[^\n]*"arm":"challenger"', served.log)

        store.publish(third)
        eventually(lambda: arms_of(client)["control"] == third, "the pointer was not followed")
        assert arms_of(client) == {"control": third, "challenger": second, "twin": third}
        for user, before in answers.items():
            after = recall(client, user)
            assert after["arm"] == before["arm"]
            same = after["candidates"] == before["candidates"]
            assert same == (before["arm"] == "challenger")

        refused = served.metric("t2diff_reloads_total", outcome="refused")
        settings_file(tmp_path, control, {**challenger, "bundle": "20260101T000000Z-00000000"})
        served.process.send_signal(signal.SIGHUP)
        eventually(
            lambda: served.metric("t2diff_reloads_total", outcome="refused") == refused + 1, "not refused"
        )
        settings_file(tmp_path, control, {**challenger, "share": 50})
        served.process.send_signal(signal.SIGHUP)
        eventually(
            lambda: served.metric("t2diff_reloads_total", outcome="refused") == refused + 2, "not refused"
        )
        assert arms_of(client) == {"control": third, "challenger": second, "twin": third}

        settings_file(tmp_path, {**control, "share": 0}, {**challenger, "share": 100}, name="next")
        served.process.send_signal(signal.SIGHUP)
        eventually(lambda: set(arms_of(client)) == {"control", "challenger"}, "SIGHUP changed nothing")
        assert {recall(client, user)["arm"] for user in USERS} == {"challenger"}
        assert served.metric("t2diff_arm_recalls_total", experiment="trial") == 0

        config.write_text("")
        served.process.send_signal(signal.SIGHUP)
        eventually(lambda: arms_of(client) == {}, "the experiment did not end")
        answer = recall(client, "user-0")
        assert answer["bundle"] == third
        assert "arm" not in answer
    assert served.stop() == 0


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        (
            {"bundle": "20260101T000000Z-00000000", "share": 10},
            r".*arm 'b', bundle 20260101T000000Z-00000000: .*",
        ),
        ({"bundle": "current", "share": 11}, r".*sum to 101, they must sum to 100.*"),
        ({"bundle": "{spoilt}", "share": 10}, r".*arm 'b', bundle \S+: .*model\.safetensors.*"),
    ],
)
def test_a_service_with_a_wrong_experiment_does_not_start(
    tiny_bundles: Path, copied: Any, build: Any, tmp_path: Path, arm: dict[str, Any], message: str
) -> None:
    folder = copied(tiny_bundles)
    if arm["bundle"] == "{spoilt}":
        arm = {**arm, "bundle": build(Store(folder), 1, TINY)}
        with (folder / arm["bundle"] / "model.safetensors").open("r+b") as weights:
            weights.seek(-1, 2)
            weights.write(b"\x55")
    config = settings_file(tmp_path, {"name": "a", "share": 90}, {"name": "b", **arm})
    given = ["--port=0", "--admin-port=0", f"--state-dir={tmp_path / 'state'}", f"--config={config}"]
    command = [sys.executable, "-m", "service.cli", "--bundles", str(folder), *given]
    ended = forked.run(command, timeout=60)
    assert ended.returncode == 2
    last = ended.stderr.splitlines()[-1]
    named = r"t2diff-serve: experiment \(--experiment, T2DIFF_EXPERIMENT\): "
    assert re.fullmatch(named + message, last), ended.stderr
    assert "Traceback" not in ended.stderr

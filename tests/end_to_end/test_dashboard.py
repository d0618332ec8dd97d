"""Every panel of the dashboard, asked of a real Prometheus that scrapes a real service under load."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from index_builder.publish import Store
from loadtest.stress.redis_process import free_port
from tests.untrained import build_untrained

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="prometheus (Debian's package) is not here"
)
DEPLOY = Path(__file__).parents[2] / "deploy"


@pytest.fixture(scope="module")
def service(serve: Any, tiny_bundles: Path, tmp_path_factory: Any) -> Any:
    """A service with an experiment of two arms, the second of another bundle."""
    folder = Path(shutil.copytree(tiny_bundles, tmp_path_factory.mktemp("store") / "bundles"))
    other = build_untrained(Store(folder), 1)
    settings = tmp_path_factory.mktemp("settings") / "settings.toml"
    arms = [
        {"name": "control", "bundle": "current", "share": 50},
        {"name": "b", "bundle": other, "share": 50},
    ]
    lines = ["[experiment]", 'name = "trial"', "compared = 100"]
    for arm in arms:
        lines += ["[[experiment.arms]]", *(f"{key} = {json.dumps(value)}" for key, value in arm.items())]
    settings.write_text("\n".join(lines) + "\n")
    return serve(folder, config=settings)


@pytest.fixture(scope="module")
def prometheus(service: Any, tmp_path_factory: Any) -> Iterator[str]:
    """The URL of a Prometheus with the project's own configuration, but for the target and the interval."""
    folder = tmp_path_factory.mktemp("prometheus")
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "200ms", "evaluation_interval": "1s"}
    config["scrape_configs"][0]["static_configs"] = [{"targets": [service.admin_url.removeprefix("http://")]}]
    shutil.copy(DEPLOY / "prometheus" / "alerts.yml", folder)
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    flags = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with subprocess.Popen(
        ["prometheus", *flags, f"--web.listen-address={address}"],
        stdout=subprocess.DEVNULL, stderr=(folder / "log").open("w"),
    ) as process:  # fmt: skip
        try:
            give_up = time.monotonic() + 60
            while not is_ready(f"http://{address}"):
                assert time.monotonic() < give_up, (folder / "log").read_text()
                time.sleep(0.05)
            yield f"http://{address}"
        finally:
            process.terminate()


def is_ready(prometheus: str) -> bool:
    """It listens before it can answer a query: 503 until its storage is open."""
    try:
        return httpx.get(f"{prometheus}/-/ready").is_success
    except httpx.TransportError:
        return False


def asked(prometheus: str, expression: str) -> list[dict[str, Any]]:
    answer = httpx.get(f"{prometheus}/api/v1/query", params={"query": expression}).json()
    assert answer["status"] == "success", (expression, answer)
    found: list[dict[str, Any]] = answer["data"]["result"]
    return [sample for sample in found if sample["value"][1] != "NaN"]


def test_no_panel_is_empty_while_requests_flow_and_no_alert_fires(service: Any, prometheus: str) -> None:
    panels = json.loads((DEPLOY / "grafana" / "recall.json").read_text())["panels"]
    expressions = {
        f"{panel['title']} {target['refId']}": target["expr"]
        .replace("$__rate_interval", "10s")
        .replace("$instance", ".*")
        for panel in panels
        for target in panel.get("targets", [])
    }
    assert len(expressions) > 25
    empty, give_up = set(expressions), time.monotonic() + 60
    sequence = [{"item_id": f"i{n}"} for n in range(1, 6)]
    with service.client() as client:
        while empty and time.monotonic() < give_up:
            for user in range(20):
                client.post("/recall", json={"user_id": f"u{user}", "sequence": sequence, "top_k": 5})
            client.post("/events", json={"user_id": "u1", "item_id": "i1"})
            empty = {name for name in empty if not asked(prometheus, expressions[name])}
    assert not empty
    firing = asked(prometheus, 'ALERTS{alertstate="firing"}')
    assert [alert["metric"]["alertname"] for alert in firing] == []
    assert [sample["value"][1] for sample in asked(prometheus, "up")] == ["1"]

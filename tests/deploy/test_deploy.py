"""What lies in deploy/ agrees with what the service really exports, reads and answers."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes_validate import validate

from service.metrics import Metrics
from service.openapi import OPERATIONS
from service.settings import ServiceSettings, environment_variable_of

DEPLOY = Path(__file__).parents[2] / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
KUSTOMIZATIONS = ("base", "overlays/gpu", "overlays/s3")
FILES = sorted(
    path for path in DEPLOY.rglob("*") if path.suffix in (".yaml", ".yml", ".service", ".timer", ".json")
)
SAMPLE = re.compile(r"\b(?:t2diff|process|python)_[a-z0-9_]+")
OF_HISTOGRAM = re.compile(r"_(?:bucket|sum|count)$")


def exported() -> set[str]:
    """Families that a service exports, histograms without the endings of their samples."""
    return {line.split()[2] for line in Metrics().exposition().decode().splitlines() if line[:6] == "# TYPE"}


def metrics_of(expression: str) -> set[str]:
    """What an expression asks for; `t2diff` alone is the job's label."""
    names = set(SAMPLE.findall(re.sub(r'"[^"]*"', "", expression)))
    return {OF_HISTOGRAM.sub("", name) for name in names}


def alerts() -> list[dict[str, Any]]:
    rules = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())
    return [rule for group in rules["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    return json.loads((DEPLOY / "grafana" / "recall.json").read_text())["panels"]


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_an_alert_asks_for_what_is_exported_and_says_what_to_do(rule: dict[str, Any]) -> None:
    asked = metrics_of(rule["expr"])
    assert asked <= exported()
    assert asked or "up{" in rule["expr"]
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert rule["annotations"].keys() == {"summary", "action"}


def test_every_panel_asks_for_what_is_exported() -> None:
    asked = {
        panel["title"]: metrics_of(target["expr"])
        for panel in panels()
        for target in panel.get("targets", [])
    }
    assert len(asked) >= 20
    assert {
        title: names - exported() for title, names in asked.items() if names - exported() or not names
    } == {}


def test_every_metric_of_ours_is_on_the_dashboard_or_watched() -> None:
    text = json.dumps(panels()) + json.dumps(alerts())
    ours = {name for name in exported() if name.startswith("t2diff_")}
    not_shown = {"t2diff_experiment_info", "t2diff_arm_fallbacks_total", "t2diff_arm_score_shift"}
    not_shown.add("t2diff_arm_comparisons_dropped_total")  # those four: for whoever looks into one arm
    not_shown.add("t2diff_spans_total")  # for whoever has a collector
    assert {name for name in ours if name not in text} == not_shown


@pytest.mark.skipif(shutil.which("haproxy") is None, reason="there is no haproxy on PATH")
def test_haproxy_takes_its_configuration() -> None:
    config = DEPLOY / "haproxy" / "haproxy.cfg"
    ran = subprocess.run(["haproxy", "-c", "-V", "-f", config], capture_output=True, text=True, check=False)
    assert (ran.returncode, "WARNING" in ran.stderr) == (0, False), ran.stderr


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian's prometheus) is not here")
def test_each_alert_fires_when_it_must_and_none_in_a_healthy_hour() -> None:
    folder = DEPLOY / "prometheus"
    ran = subprocess.run(
        ["promtool", "test", "rules", "alerts_test.yml"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_every_alert_has_a_unit_test() -> None:
    tests = yaml.safe_load((DEPLOY / "prometheus" / "alerts_test.yml").read_text())["tests"]
    assert [test["name"] for test in tests] == ["a healthy hour", *(rule["alert"] for rule in alerts())]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(DEPLOY)))
def test_only_settings_that_there_are(path: Path) -> None:
    known = {environment_variable_of(name) for name in ServiceSettings.model_fields}
    text = "\n".join(line for line in path.read_text().splitlines() if not line.lstrip().startswith("#"))
    assert set(re.findall(r"\bT2DIFF_[A-Z_0-9]+", text)) <= known


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not here to render with")
@pytest.mark.parametrize("folder", KUSTOMIZATIONS)
def test_what_kustomize_renders_is_valid(folder: str) -> None:
    documents = render(folder)
    for document in documents:
        if document["apiVersion"].startswith("monitoring.coreos.com"):
            continue  # the operator's own schema is not part of Kubernetes
        validate(document, "1.29", strict=True)
    kinds = {document["kind"] for document in documents}
    assert {
        "Deployment",
        "Service",
        "HorizontalPodAutoscaler",
        "PodDisruptionBudget",
        "NetworkPolicy",
    } <= kinds
    assert {"CronJob", "ServiceMonitor", "ConfigMap", "Namespace"} <= kinds


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not here to render with")
@pytest.mark.parametrize("folder", KUSTOMIZATIONS)
def test_every_container_is_confined(folder: str) -> None:
    for pod in pods(folder):
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["enableServiceLinks"] is False
        mounted = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"]
            assert not context["allowPrivilegeEscalation"]
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert {mount["name"] for mount in container["volumeMounts"]} <= mounted
            assert "memory" in container["resources"]["limits"]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not here to render with")
def test_probes_and_ports_are_those_of_the_service() -> None:
    paths = {operation.path for operation in OPERATIONS.values()}
    (container,) = next(pod for pod in pods("base") if pod["containers"][0]["name"] == "recall")["containers"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["path"] in paths
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    fields = ServiceSettings.model_fields
    assert ports == {"http": fields["port"].default, "admin": fields["admin_port"].default}
    assert container["livenessProbe"]["periodSeconds"] * container["livenessProbe"]["failureThreshold"] <= 20


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not here to render with")
def test_nights_do_not_overlap_and_only_failures_are_repeated() -> None:
    (night,) = (document for document in render("base") if document["kind"] == "CronJob")
    assert night["spec"]["concurrencyPolicy"] == "Forbid"
    job = night["spec"]["jobTemplate"]["spec"]
    assert job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [2, 3, 4]


def test_compose_starts_everything_in_order_and_publishes_on_this_machine_only() -> None:
    compose = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())
    services = compose["services"]
    assert services.keys() == {"redis", "nightly", "service", "prometheus", "grafana"}
    assert services["service"]["depends_on"]["nightly"]["condition"] == "service_completed_successfully"
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            here = (DEPLOY / "compose" / source).exists() if source.startswith("..") else True
            assert here, volume
            if not source.startswith((".", "$")):
                assert source in compose["volumes"]


def test_the_images_are_built_from_files_that_are_there() -> None:
    root = DEPLOY.parent
    dockerfile = (DEPLOY / "docker" / "Dockerfile").read_text()
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile, re.MULTILINE)
    assert copied
    sources = [source for line in copied for source in line.split()]
    assert all((root / source).exists() for source in sources)
    kept = {line[1:] for line in (root / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(sources) <= kept
    assert {"USER 10001", 'CMD ["t2diff-serve"]'} <= set(dockerfile.splitlines())


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not here to check its units")
@pytest.mark.parametrize("unit", ["t2diff-serve.service", "t2diff-nightly.service", "t2diff-nightly.timer"])
def test_systemd_understands_the_unit(unit: str, tmp_path: Path) -> None:
    for path in (DEPLOY / "systemd").iterdir():
        # Its own check asks that the program exists: one that does stands in for ours.
        (tmp_path / path.name).write_text(
            path.read_text().replace("/opt/t2diff/bin/t2diff-serve", "/bin/true")
        )
    ran = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / unit)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    complaints = [line for line in ran.stderr.splitlines() if "t2diff" in line]
    assert not complaints


def render(folder: str) -> list[dict[str, Any]]:
    ran = subprocess.run(
        ["kubectl", "kustomize", str(KUBERNETES / folder)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return list(yaml.safe_load_all(ran.stdout))


def pods(folder: str) -> list[dict[str, Any]]:
    documents = render(folder)
    found = [d["spec"]["template"]["spec"] for d in documents if d["kind"] == "Deployment"]
    nights = (d["spec"]["jobTemplate"]["spec"] for d in documents if d["kind"] == "CronJob")
    return found + [job["template"]["spec"] for job in nights]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(DEPLOY)))
def test_every_command_has_the_options_that_it_is_given(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    text = re.sub(r"\s+", " ", " ".join(lines))
    for package, words in re.findall(r"t2diff-(index|model) ((?:[a-z]+)(?: [^;&|']+)?)", text):
        if package == "index" and words.split()[0] == "nightly":
            known = subprocess.run(
                [sys.executable, "-m", "index_builder.cli", "nightly", "--help"],
                capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "200"},
            ).stdout  # fmt: skip
            assert [flag for flag in re.findall(r"--[a-z-]+", words) if flag not in known] == []


def test_the_first_night_of_compose_runs(tmp_path: Path) -> None:
    """The nightly service's own shell script, with its folders moved; no container engine runs it here."""
    compose = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())
    (shell, flags, script) = compose["services"]["nightly"]["command"]
    for name in ("logs", "state", "bundles"):
        (tmp_path / name).mkdir()
        script = re.sub(rf"(?<![\w/])/{name}\b", str(tmp_path / name), script)
    bin_folder = Path(sys.executable).parent
    script = script.replace("$$", "$").replace(
        'synthesize "$logs"', 'synthesize "$logs" --users 60 --items 40'
    )
    script = script.replace("t2diff-index nightly", "t2diff-index nightly --epochs 1 --set embedding_dim=8")
    environment = {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}"}
    ran = subprocess.run([shell, flags, script], env=environment, capture_output=True, text=True, check=False)
    assert json.loads(ran.stdout.splitlines()[-1])["outcome"] in ("published", "refused"), ran.stderr

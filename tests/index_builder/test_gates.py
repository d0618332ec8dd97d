"""Each gate refuses what it is there for, and nothing else does; what it could not look at, it skips."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from index_builder import cli, fresh_process
from index_builder.bundle import Bundle, load_bundle
from index_builder.bundle_files import CANARY, MANIFEST, check_bundle, read_manifest, seal
from index_builder.fresh_process import check_in_fresh_process
from index_builder.gate_answers import ANSWER_GATES, check_drops, check_lists, check_popular
from index_builder.gate_embeddings import (
    check_catalogue,
    check_item_embeddings,
    check_parts,
    linear_cka,
    spread,
)
from index_builder.gate_limits import GateLimits
from index_builder.gates import gate_bundle, refused, run_gates, seal_with_checks
from index_builder.newest_day_answers import Answers
from index_builder.publish import Store
from index_builder.quality import Check
from tests import forked
from tests.documents import DOCUMENTS

LIMITS = GateLimits()


@pytest.fixture(scope="module")
def bundles(built_bundles) -> list[Bundle]:
    return [load_bundle(path) for path in built_bundles]


def refusals(checks: list[Check]) -> list[str]:
    return [check.name for check in refused(checks)]


# --- embeddings ----------------------------------------------------------------------------------


def test_cka_is_one_for_a_turned_scaled_and_moved_space_and_near_zero_for_other_rows():
    rng = np.random.default_rng(0)
    items = rng.standard_normal((500, 8))
    rotation, _ = np.linalg.qr(rng.standard_normal((8, 8)))
    assert linear_cka(3 * items @ rotation + 5, items) == pytest.approx(1)
    assert linear_cka(items @ rotation @ rng.standard_normal((8, 5)), items) > 0.4
    assert linear_cka(rng.permutation(items), items) < 0.1
    assert linear_cka(np.ones((500, 8)), items) == 0


def test_cka_by_hand():
    ours, theirs = np.array([[1.0, 0], [-1, 0], [0, 0]]), np.array([[1.0], [-1], [0]])
    assert linear_cka(ours, theirs) == pytest.approx(1)
    crossed = np.array([[1.0], [1], [-2]])  # |Yᵀ X|² = 0: orthogonal to it
    assert linear_cka(ours, crossed) == pytest.approx(0)


def test_spread_is_zero_where_all_items_point_one_way():
    assert spread(np.array([[1.0, 1], [2, 2], [0.5, 0.5]])) == pytest.approx(0)
    assert spread(np.array([[1.0, 0], [0, 1]])) == pytest.approx(1)
    assert spread(np.array([[1.0, 0], [-1, 0]])) == pytest.approx(2)
    assert spread(np.zeros((3, 2))) == 0


def test_shuffled_rows_are_refused_by_their_likeness_to_the_last_bundle_alone(bundles):
    last = bundles[0]
    order = np.random.default_rng(0).permutation(len(last.item_ids)) + 1
    table = last.model.state_dict()["item_table.weight"].clone()
    table[1:] = table[order]
    shuffled = with_table(last, table)
    assert refusals(check_item_embeddings(shuffled, last, LIMITS)) == ["embedding_similarity"]
    assert refusals(check_item_embeddings(last, last, LIMITS)) == []


def test_collapsed_embeddings_are_refused_by_their_spread_alone_on_a_first_night(bundles):
    table = bundles[0].model.state_dict()["item_table.weight"].clone()
    table[1:] = table[1] + 1e-3 * table[1:]
    assert refusals(check_item_embeddings(with_table(bundles[0], table), None, LIMITS)) == [
        "embedding_spread"
    ]


def test_embeddings_that_the_item_tower_does_not_give_are_refused(bundles):
    moved = bundles[0].item_embeddings.copy()
    moved[3, 2] += 0.01
    checks = check_item_embeddings(replace(bundles[0], item_embeddings=moved), bundles[0], LIMITS)
    assert refusals(checks) == ["embedding_tower_difference"]
    assert next(check.value for check in checks if check.refused) == pytest.approx(1 / 60)


def with_table(bundle: Bundle, table) -> Bundle:
    """The bundle with another item table, its embeddings and index too."""
    import copy

    from index_builder.ann import build_index
    from index_builder.embed_items import embed_items

    model = copy.deepcopy(bundle.model)
    model.load_state_dict(model.state_dict() | {"item_table.weight": table})
    embeddings = embed_items(model)
    return replace(bundle, model=model, item_embeddings=embeddings, index=build_index(embeddings))


# --- catalogue and contract ----------------------------------------------------------------------


def test_an_id_that_occurs_twice_is_refused(bundles):
    ids = [*bundles[0].item_ids[:-1], bundles[0].item_ids[0]]
    assert refusals(check_catalogue(replace(bundles[0], item_ids=ids), None, LIMITS)) == [
        "duplicate_item_ids"
    ]


def test_a_catalogue_that_shrank_grew_or_changed_is_refused(bundles):
    last = bundles[0]
    ids = list(last.item_ids)

    def with_ids(ids: list[str]) -> Bundle:
        return replace(last, item_ids=ids, item_index_of={name: m + 1 for m, name in enumerate(ids)})

    assert refusals(check_catalogue(with_ids(ids[:54]), last, LIMITS)) == []  # 0.9 of it
    assert refusals(check_catalogue(with_ids(ids[:53]), last, LIMITS)) == ["items_ratio", "items_kept_share"]
    many = ids + [f"more-{number}" for number in range(31)]
    assert refusals(check_catalogue(with_ids(many), last, LIMITS)) == ["items_ratio"]
    renamed = [f"other-{name}" if m < 7 else name for m, name in enumerate(ids)]
    assert refusals(check_catalogue(with_ids(renamed), last, LIMITS)) == ["items_kept_share"]


def test_parts_that_say_different_things_are_refused(bundles):
    bundle = bundles[0]
    for manifest in (
        bundle.manifest | {"metric": "l2"},
        bundle.manifest | {"counts": {**bundle.manifest["counts"], "embedding_dim": 9}},
        bundle.manifest | {"index": {**bundle.manifest["index"], "kind": "hnsw"}},
    ):
        assert refusals(check_parts(replace(bundle, manifest=manifest), bundle, LIMITS)) == [
            "parts_that_disagree"
        ]


def test_another_dimension_than_the_last_bundles_is_refused_until_it_is_allowed(
    bundles, make_checkpoint, tmp_path
):
    from index_builder.build import build_bundle

    store = Store(tmp_path / "store")
    wide = load_bundle(store.bundle_url(build_bundle(make_checkpoint(embedding_dim=16), store)))
    checks = check_parts(wide, bundles[0], LIMITS)
    assert refusals(checks) == ["contract_changes"]
    assert "embedding_dim 8 -> 16" in str(refused(checks)[0])
    assert refusals(check_parts(wide, bundles[0], GateLimits(max_contract_changes=1))) == []


# --- answers -------------------------------------------------------------------------------------


def answers(rank: np.ndarray, row: np.ndarray | None = None) -> Answers:
    """Of as many users as ranks; the popular list never hits."""
    count = len(rank)
    return Answers(
        row=np.tile(np.arange(20), (count, 1)) if row is None else row,
        rank=rank,
        popular_rank=np.full(count, 21),
        answered=np.ones(count, bool),
        known_target=np.ones(count, bool),
        user_embeddings=np.ones((count, 8), np.float32),
    )


def test_recall_and_mrr_are_refused_apart():
    good = answers(np.tile([1, 5, 21, 21], 100))
    deeper = answers(np.tile([19, 20, 21, 21], 100))
    fewer = answers(np.tile([1, 21, 21, 21], 100))
    assert refusals(check_drops(good, good, LIMITS)) == []
    assert refusals(check_drops(deeper, good, LIMITS)) == ["mrr_at_20_drop"]
    assert refusals(check_drops(fewer, good, LIMITS)) == ["recall_at_20_drop", "mrr_at_20_drop"]
    first_lost = answers(np.tile([2, 21, 21, 21], 100))
    even = answers(np.tile([4, 4, 21, 21], 100))
    assert refusals(check_drops(first_lost, even, LIMITS)) == ["recall_at_20_drop"]


def test_a_drop_that_few_users_cannot_prove_is_let_pass():
    """Eight hits of 30 against ten; the same shares of 3,000 users are no accident."""
    ours, theirs = np.full(30, 21), np.full(30, 21)
    ours[2:10], theirs[:10] = 3, 3
    few = check_drops(answers(ours), answers(theirs), LIMITS)
    assert refusals(few) == []
    assert few[0].value < 0.05
    many = check_drops(answers(np.tile(ours, 100)), answers(np.tile(theirs, 100)), LIMITS)
    assert refusals(many) == ["recall_at_20_drop", "mrr_at_20_drop"]


def test_a_model_behind_its_popular_list_is_refused_without_a_last_bundle():
    ours = replace(answers(np.array([1] * 5 + [21] * 45)), popular_rank=np.array([3] * 6 + [21] * 44))
    assert refusals([check_popular(ours, LIMITS)]) == ["recall_at_20_over_popular"]
    assert refusals([check_popular(replace(ours, popular_rank=np.full(50, 21)), LIMITS)]) == []


def test_answers_that_are_alike_or_popular_are_refused(bundles):
    bundle = bundles[0]
    popular = np.array([bundle.item_index_of[item_id] - 1 for item_id in bundle.popular])  # 20 of 60
    others = np.setdiff1d(np.arange(60), popular)
    rank = np.ones(200, np.int64)
    rng = np.random.default_rng(0)
    varied = answers(rank, rng.permuted(np.tile(np.arange(60), (200, 1)), axis=1)[:, :20])
    assert refusals(check_lists(bundle, varied, bundle, varied, LIMITS)) == []

    alike = answers(rank, np.tile(others[:20], (200, 1)))
    assert refusals(check_lists(bundle, alike, bundle, varied, LIMITS)) == ["answer_coverage_ratio"]
    strict = GateLimits(min_coverage=0.4)
    assert refusals(check_lists(bundle, alike, None, None, strict)) == ["answer_coverage"]

    mixed = np.tile(np.arange(60), (200, 1))
    mixed[:, :14] = popular[:14]  # 70 % of the places, a third before
    mixed[:, 14:20] = rng.choice(others, (200, 6))
    risen = answers(rank, mixed[:, :20])
    assert refusals(check_lists(bundle, risen, bundle, varied, LIMITS)) == ["answer_popular_rise"]
    only = answers(rank, np.tile(popular, (200, 1)))
    assert refusals(check_lists(bundle, only, None, None, LIMITS)) == ["answer_popular_share"]


# --- all of them ---------------------------------------------------------------------------------


def test_without_a_last_bundle_or_a_log_gates_are_skipped_not_passed(bundles):
    checks = {check.name: check for check in run_gates(bundles[0], None, None)}
    assert refusals(list(checks.values())) == []
    for name in ("embedding_similarity", "items_ratio", "contract_changes"):
        assert checks[name].skipped == "there is no current bundle to compare with"
    for name in ("questions", *ANSWER_GATES):
        assert checks[name].skipped == "no log was given: see --logs"
    assert checks["fresh_process_failures"].skipped == "the bundle's place was not given"
    assert checks["embedding_zero_share"].passed


def test_every_gate_stands_in_the_documents(bundles):
    names = [check.name for check in run_gates(bundles[0], bundles[1], None)]
    assert len(names) == len(set(names)) == 36
    assert [name for name in names if f"`{name}`" not in DOCUMENTS] == []


def test_a_sound_bundle_loads_and_answers_in_a_fresh_process(built):
    loading, canary = check_in_fresh_process(str(built), LIMITS)
    assert loading.passed
    assert canary.passed
    assert canary.detail.startswith("3 answers on eager and ")


def resealed(bundle: Path, folder: Path, change) -> Path:
    """A copy whose files were changed before they were sealed, so that every checksum is right."""
    copy = Path(shutil.copytree(bundle, folder / bundle.name))
    manifest = read_manifest(copy)
    for key in ("format_version", "created", "files"):
        del manifest[key]
    change(copy, manifest)
    return copy.rename(folder / seal(copy, manifest))


def test_a_bundle_that_cannot_be_loaded_is_refused_and_not_loaded_here(built, tmp_path):
    def unknown_model(copy: Path, manifest: dict) -> None:
        manifest["model"]["name"] = "nobody knows"

    checks = gate_bundle(str(resealed(built, tmp_path, unknown_model)), None, None)
    assert refusals(checks) == ["fresh_process_failures"]
    assert "model must be one of" in str(checks[0])
    assert checks[1].skipped == "the bundle could not be loaded"
    assert len(checks) == 2


def test_answers_that_are_not_the_recorded_ones_are_refused(built, tmp_path):
    def other_answer(copy: Path, manifest: dict) -> None:
        cases = json.loads((copy / CANARY).read_bytes())
        cases[1]["candidates"].reverse()
        (copy / CANARY).write_bytes(json.dumps(cases).encode())

    checks = check_in_fresh_process(str(resealed(built, tmp_path, other_answer)), LIMITS)
    assert refusals(checks) == ["canary_mismatches"]
    assert checks[1].value == 2  # on the plain engine and on the fast one
    assert "canary-1 does not give its recorded answer" in str(checks[1])


def test_a_process_that_hangs_or_crashes_is_a_refusal(built, monkeypatch, tmp_path):
    (slow,) = refused(check_in_fresh_process(str(built), GateLimits(load_timeout_s=0.01)))
    assert "it did not load and answer within 0.01 s" in str(slow)
    (tmp_path / "dies.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    (tmp_path / "silent.py").write_text("print('hello')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    for program, said in (("dies", "ended by SIGSEGV"), ("silent", "it printed 'hello")):
        monkeypatch.setattr(fresh_process, "PROGRAM", program)
        assert said in str(refused(check_in_fresh_process(str(built), LIMITS))[0])


def test_checks_are_recorded_in_the_manifest_under_a_new_id(built, tmp_path):
    copy = Path(shutil.copytree(built, tmp_path / built.name))
    checks = [*run_gates(load_bundle(built), None, None), Check("of_a_kind", float("inf"), at_most=1.0)]
    bundle_id = seal_with_checks(copy, checks, forced=True)
    sealed = copy.rename(tmp_path / bundle_id)
    manifest = check_bundle(sealed)
    before = json.loads((built / MANIFEST).read_bytes())
    assert manifest["files"] == before["files"]
    assert manifest["forced"] is True
    recorded = {check["name"]: check for check in manifest["checks"]}
    assert len(recorded) == len(checks)
    assert recorded["of_a_kind"]["value"] is None
    assert recorded["of_a_kind"]["outcome"] == "refused"
    assert recorded["embedding_zero_share"]["outcome"] == "passed"
    assert recorded["embedding_zero_share"]["at_most"] == 0.01
    assert recorded["items_ratio"]["outcome"] == "skipped"
    assert load_bundle(sealed).bundle_id == bundle_id


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture
def check(monkeypatch, capsys):
    """check(…) -> (exit status, standard output, standard error)"""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["t2diff-index", "check", *map(str, arguments)])
        monkeypatch.setattr("sys.executable", forked.python())
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            cli.main()
        captured = capsys.readouterr()
        return int(exit_info.value.code or 0), captured.out, captured.err

    return run


def test_check_prints_a_table_and_exits_3_when_a_gate_refuses(check, built_bundles, fill, tmp_path):
    store, ids = fill(str(tmp_path / "store"), built_bundles[:2])
    store.publish(ids[0])
    status, out, _ = check(ids[1], "--against", store.url)
    assert status == 3  # independent and untrained: nothing alike
    lines = out.splitlines()
    assert lines[0].split() == ["gate", "figure", "at", "least", "at", "most"]
    assert any(line.split()[0] == "embedding_similarity" and "refused" in line for line in lines)
    assert lines[-2].startswith("refused: embedding_similarity is ")
    assert lines[-2].endswith("(min_similarity)")
    assert ", 1 refused, " in lines[-1]
    status, out, _ = check(ids[1], "--against", store.url, "--limit", "min_similarity=0")
    assert status == 0
    assert ", 0 refused, " in out.splitlines()[-1]
    assert store.current() == ids[0]


def test_check_asks_the_users_of_the_newest_day(check, built, tmp_path):
    now = 1_800_000_000
    rows = ["user_id,item_id,timestamp"]
    for user in range(40):
        rows += [f"u{user},film-{(user + n) % 60}-é,{now - 3_600 * (30 - 5 * n)}" for n in range(6)]
    log = tmp_path / "log.csv"
    log.write_text("\n".join(rows))
    _, out, _ = check(built, "--logs", log, "--now", now)
    table = {line.split()[0]: line.split()[1] for line in out.splitlines()[1:] if line}
    assert table["questions"] == "40"
    assert table["known_target_share"] == "1"
    assert table["answered_share"] == "1"
    assert table["log_age_hours"] == "5"


def test_check_says_what_is_wrong_in_one_line(check, built, tmp_path):
    for arguments, said in (
        ((built, "--limit", "max_recal=1"), "there is no gate limit 'max_recal'"),
        ((built, "--limits", tmp_path / "none.toml"), "cannot read the limits in"),
        ((built, "--logs", tmp_path / "none.csv"), "none.csv"),
        ((built.name,), "name its store with --against"),
    ):
        status, _, err = check(*arguments)
        assert status == 2
        assert said in err
        assert "Traceback" not in err

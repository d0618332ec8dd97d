from __future__ import annotations

from typing import Any

from model.experiments.result_table import render_tables
from model.experiments.results import summarise
from tests.model.experiments.conftest import plan


def _metrics(value: float) -> dict[str, float]:
    kinds = ("recall", "mrr", "ndcg", "coverage", "log_popularity", "head_share", "diversity")
    return {f"{kind}_at_{k}": value for kind in kinds for k in (2, 10, 20, 100)}


def _row(spec: str, value: float, dataset: str = "ML-1M") -> dict[str, Any]:
    model, _, variant = spec.partition(":")
    return {
        **{"dataset": dataset, "split": "leave_one_out", "part": "test", "model": model, "variant": variant},
        **{"users": 1_234, "seeds": [0, 1], "params": 150_000, "params_with_items": 400_000},
        **{"train_seconds": 61.0, "epochs": 9.5, "train_targets_per_second": 1e4, "ms_per_sample": 0.5},
        "metrics": _metrics(value),
        "intervals": {name: [value - 0.01, value + 0.01] for name in _metrics(value)},
        "metrics_seen_masked": _metrics(value + 0.1),
        "metrics_by_gap": {"0_s": {"users": 1_000, "metrics": _metrics(value)}},
        "recall_curve": {"1": value},
    }


def _lines(table: str, start: str) -> list[str]:
    return [line for line in table.splitlines() if line.startswith(start)]


def test_ours_stand_beside_the_papers_with_the_best_marked() -> None:
    rows = [_row("t2diff", 0.30), _row("sasrec", 0.25), _row("sasrec:lag", 0.28), _row("t2diff:log", 0.1)]
    table = render_tables({"rows": rows, "tests": []})
    (ours,) = _lines(table, "| T2Diff | 2 |")
    assert ours == (
        "| T2Diff | 2 | **0.3000 [0.290, 0.310]** | 0.0774 | **0.3000 [0.290, 0.310]** | 0.2773 "
        "| **0.3000 [0.290, 0.310]** | 0.0608 | **0.3000 [0.290, 0.310]** | 0.0873 "
        "| 0.150 | 0.187 | 0.50 | 0.68 |"
    )
    assert _lines(table, "| sasrec:lag | 2 | <u>0.2800")
    assert _lines(table, "| SASRec | 2 | 0.2500 [0.240, 0.260] | 0.0578 |")
    assert _lines(table, "| Caser | – | – | 0.0581 |")  # not run yet
    (nine,) = _lines(table, "| T2Diff over the best of the paper's baselines")
    assert "| +20.0% | +11.8% | +20.0% | +7.5% | +20.0% | +15.5% | +20.0% | +22.3% |" in nine
    (every,) = _lines(table, "| T2Diff over the best of all baselines")
    assert "| +7.1% | +11.8% |" in every
    assert "### Table 3" in table
    assert "### Table 4" not in table  # only one of its rows has been run
    assert _lines(table, "| log | 0.1000 [0.090, 0.110] | 0.0726 |")
    assert _lines(table, "| T2Diff | 0.4000 | 0.4000 |")  # seen items masked
    assert _lines(table, "| method | 0 s (1,000) |")


def test_kuairand_is_shown_at_its_own_cutoffs_and_scale_and_unknown_data_without_the_paper() -> None:
    table = render_tables({"rows": [_row("t2diff", 0.3, "KuaiRand-Pure slice")], "tests": []})
    assert "| method | seeds | Recall@10 | paper | Recall@100 | paper |" in table
    (ours,) = _lines(table, "| T2Diff | 1 |") or _lines(table, "| T2Diff | 2 |")
    assert " 0.0055 |" in ours  # 0.05505 is printed multiplied by 10
    table = render_tables(
        {"rows": [_row("t2diff", 0.3, "mine"), _row("popularity", 0.1, "mine")], "tests": []}
    )
    assert "paper |" not in table
    assert "| T2Diff over the best of all baselines |  | +200.0% |" in table
    assert "Caser" not in table


def test_tests_name_ratio_interval_and_p() -> None:
    test = {
        **{"dataset": "ML-1M", "split": "leave_one_out", "part": "test", "model": "t2diff", "variant": ""},
        **{"against_model": "sasrec", "against_variant": "lag", "seeds": [0, 1], "questions": "all"},
        **{"metric": "recall_at_20", "ratio": 1.052, "ratio_interval": [1.01, 1.09], "p_value": 0.0001},
    }
    nothing = {**test, "metric": "mrr_at_20", "ratio": None, "ratio_interval": [None, None], "p_value": 1.0}
    table = render_tables({"rows": [_row("t2diff", 0.3)], "tests": [test, nothing]})
    assert "| sasrec:lag | all | 2 | – | 1.052 [1.010, 1.090], p < 0.001 | – | – |" in table


def test_a_summary_of_no_finished_run_is_empty(split, tmp_path) -> None:  # type: ignore[no-untyped-def]
    runs = plan(split, tmp_path, "popularity")
    assert summarise(runs, dataset="x", split=split, reference="popularity") == {"rows": [], "tests": []}
    assert render_tables({"rows": [], "tests": []}).startswith("# Comparison")

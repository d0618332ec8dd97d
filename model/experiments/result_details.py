"""The sections of `table.md` that the paper has no table for: tests, pauses, masked items, lists, cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from model.experiments.markdown_cells import Row, heading, label_of, markdown, spec_of
from model.metrics import GAP_GROUPS

_GAP_NAMES = {
    **{"0_s": "0 s", "1_60_s": "1-60 s", "1_60_min": "1-60 min", "over_1_h": "> 1 h"},
    **{"unknown": "unknown", "above_0_s": "all > 0 s"},
}
assert GAP_GROUPS.keys() <= _GAP_NAMES.keys()


def detail_sections(rows: list[Row], tests: list[Row], metrics: Sequence[str], list_cutoff: int) -> list[str]:
    """Headings, words and tables.   metrics: Recall at the smaller and the larger K, then MRR at both"""
    columns = (
        ("Seen items masked", "metrics_seen_masked"),
        ("Request time hidden from the models that read it", "metrics_time_hidden"),
    )
    sections = [*_tests_table(tests, metrics), *_gap_table(rows, metrics[1], metrics[3])]
    for title, column in columns:
        sections += _column_table(title, column, rows, metrics)
    return [*sections, *_all_cutoffs_table(rows), *_list_table(rows, list_cutoff), *_cost_table(rows)]


def _tests_table(tests: list[Row], metrics: Sequence[str]) -> list[str]:
    if not tests:
        return []
    ours = label_of(spec_of(tests[0]))
    cells: dict[tuple[str, str], dict[str, str]] = {}
    seeds: dict[tuple[str, str], int] = {}
    for test in tests:
        if test["metric"] in metrics:
            against = label_of(spec_of({"model": test["against_model"], "variant": test["against_variant"]}))
            key = (against, "all" if test["questions"] == "all" else "pause > 0 s")
            seeds[key] = len(test["seeds"])
            cells.setdefault(key, {})[test["metric"]] = _ratio(test)
    lines = [
        [*key, str(seeds[key]), *(found.get(metric, "–") for metric in metrics)]
        for key, found in cells.items()
    ]
    headings = ["against", "questions", "seeds", *map(heading, metrics)]
    return [
        f"### {ours} against the others",
        f"Ratio of {ours} to the other, its 95 % interval by paired bootstrap over users and seeds, and p "
        "of a paired permutation test over users (10,000 permutations; not corrected for their number).",
        markdown(headings, lines),
    ]


def _gap_table(rows: list[Row], recall: str, mrr: str) -> list[str]:
    users = {
        gap: round(row["metrics_by_gap"][gap]["users"])
        for gap in _GAP_NAMES
        for row in rows
        if gap in row["metrics_by_gap"]
    }
    lines = []
    for row in rows:
        of_gap = [row["metrics_by_gap"].get(gap) for gap in users]
        cells = (f"{g['metrics'][recall]:.4f} / {g['metrics'][mrr]:.4f}" if g else "–" for g in of_gap)
        lines.append([label_of(spec_of(row)), *cells])
    headings = ["method", *(f"{_GAP_NAMES[gap]} ({count:,})" for gap, count in users.items())]
    title = f"### {heading(recall)} / {heading(mrr)} by the pause before the target (users)"
    return [title, markdown(headings, lines)]


def _column_table(title: str, column: str, rows: list[Row], metrics: Sequence[str]) -> list[str]:
    chosen = [row for row in rows if column in row]
    if not chosen:
        return []
    lines = [
        [label_of(spec_of(row)), *(f"{row[column][metric]:.4f}" for metric in metrics)] for row in chosen
    ]
    return [f"### {title}", markdown(["method", *map(heading, metrics)], lines)]


def _all_cutoffs_table(rows: list[Row]) -> list[str]:
    names = [f"{kind}_at_{k}" for kind in ("recall", "ndcg", "mrr") for k in (2, 10, 20, 100)]
    lines = [[label_of(spec_of(row)), *(f"{row['metrics'][name]:.4f}" for name in names)] for row in rows]
    return ["### All cutoffs", markdown(["method", *map(heading, names)], lines)]


def _list_table(rows: list[Row], cutoff: int) -> list[str]:
    columns: dict[str, Callable[[float], str]] = {
        f"coverage_at_{cutoff}": lambda value: f"{value:.1%}",
        f"log_popularity_at_{cutoff}": lambda value: f"{value:.2f}",
        f"head_share_at_{cutoff}": lambda value: f"{value:.1%}",
        f"diversity_at_{cutoff}": lambda value: f"{value:.3f}",
    }
    lines = [
        [label_of(spec_of(row)), *(shown(row["metrics"][name]) for name, shown in columns.items())]
        for row in rows
    ]
    return [
        f"### The lists of the first {cutoff}",
        "Coverage: share of the catalogue in at least one list. Popularity: mean ln(1 + count in training), "
        "and the share of head items (the most popular fifth). Diversity: 1 - mean cosine of a list's pairs, "
        "two items being near each other when the same users have them in training.",
        markdown(["method", "coverage", "log popularity", "head share", "diversity"], lines),
    ]


def _cost_table(rows: list[Row]) -> list[str]:
    lines = [
        [
            label_of(spec_of(row)),
            f"{row['params_with_items'] / 1e6:.3f}",
            f"{row['train_seconds']:,.0f}",
            f"{row['epochs']:.0f}",
            f"{row['train_targets_per_second']:,.0f}" if "train_targets_per_second" in row else "–",
            f"{row['ms_per_sample']:.3f}",
        ]
        for row in rows
    ]
    headings = ["method", "params with items (M)", "training (s)", "epochs", "targets/s", "ms/sample"]
    return ["### Cost", markdown(headings, lines)]


def _ratio(test: Row) -> str:
    if test["ratio"] is None:
        return "–"
    low, high = test["ratio_interval"]
    ends = "" if low is None else f" [{low:.3f}, {high:.3f}]"
    p_value = f"p = {test['p_value']:.3f}" if test["p_value"] >= 0.001 else "p < 0.001"
    return f"{test['ratio']:.3f}{ends}, {p_value}"

"""`table.md`: the paper's Tables 2 to 4 with the paper's figures beside ours, and what they leave out.

Drawn from `summary.json` alone; every figure of ours is a mean over seeds.
"""

from __future__ import annotations

from collections.abc import Sequence

from model.experiments.markdown_cells import (
    Row,
    heading,
    is_baseline,
    label_of,
    markdown,
    spec_of,
    with_interval,
)
from model.experiments.published import CUTOFFS, TABLE_2, TABLE_3, TABLE_4, PublishedRow, dataset_of
from model.experiments.result_details import detail_sections

OTHER_CUTOFFS = (2, 20)
"""For data that the paper does not have."""


def render_tables(summary: dict[str, list[Row]]) -> str:
    """Markdown of every data set and split in a summary; the test part."""
    sections = [
        "# Comparison of recall models",
        "Full ranking of all items; items already seen are not masked unless a heading says so; an interval "
        "is 95 % over users and training seeds. *Paper*: the figures printed in the T2Diff paper, whose "
        "split and filtering are not published. Made by `t2diff-model compare` from `summary.json`.",
    ]
    rows = [row for row in summary["rows"] if row["part"] == "test"]
    for dataset, split in dict.fromkeys((row["dataset"], row["split"]) for row in rows):
        own = [row for row in rows if (row["dataset"], row["split"]) == (dataset, split)]
        tests = [test for test in summary["tests"] if (test["dataset"], test["split"]) == (dataset, split)]
        sections += _dataset_sections(dataset, split, own, tests)
    return "\n\n".join(sections) + "\n"


def _dataset_sections(dataset: str, split: str, rows: list[Row], tests: list[Row]) -> list[str]:
    known = dataset_of(dataset)
    low, high = CUTOFFS[known] if known else OTHER_CUTOFFS
    metrics = [f"recall_at_{low}", f"recall_at_{high}", f"mrr_at_{low}", f"mrr_at_{high}"]
    sections = [
        f"## {dataset}, {split.replace('_', '-')}, test, {round(rows[0]['users']):,} users",
        _table_2(rows, metrics, known),
    ]
    if known == "ml-1m":
        sections += _small_table("Table 3: β schedules", TABLE_3, rows, metrics)
        sections += _small_table("Table 4: number of steps", TABLE_4, rows, metrics)
    return sections + detail_sections(rows, tests, metrics, high)


def _table_2(rows: list[Row], metrics: list[str], known: str | None) -> str:
    """Ours and the paper's, method by method; best bold, best baseline underlined, as the paper does."""
    of_spec = {spec_of(row): row for row in rows}
    published = {row.spec: row for row in TABLE_2} if known else {}
    specs = [*published, *(spec for spec in of_spec if spec not in published)]
    headings = ["method", "seeds"]
    for metric in metrics:
        headings += [heading(metric)] + (["paper"] if known else [])
    headings += ["params (M)", "paper", "ms/sample", "paper"] if known else ["params (M)", "ms/sample"]
    lines = []
    for spec in specs:
        row, printed = of_spec.get(spec), published.get(spec)
        cells = [label_of(spec), str(len(row["seeds"])) if row else "–"]
        for metric in metrics:
            cells.append(_marked(row, metric, rows))
            if known:
                cells.append(_published(printed, known, metric))
        for ours, theirs in (
            (row and f"{row['params'] / 1e6:.3f}", printed and printed.params),
            (row and f"{row['ms_per_sample']:.2f}", printed and printed.infer_ms),
        ):
            cells += [ours or "–", str(theirs or "–")] if known else [ours or "–"]
        lines.append(cells)
    lines += _improvements(rows, metrics, known)
    return markdown(headings, lines)


def _improvements(rows: list[Row], metrics: list[str], known: str | None) -> list[list[str]]:
    """T2Diff over the best baseline of each column: of the paper's nine as they are, and of all that ran."""
    ours = next((row for row in rows if spec_of(row) == "t2diff"), None)
    if ours is None:
        return []
    printed = {row.spec: row.metrics(known) for row in TABLE_2} if known else {}
    nine = {row.spec for row in TABLE_2 if not row.spec.startswith("t2diff")}
    every = {spec_of(row) for row in rows if is_baseline(row)}
    lines = []
    for title, specs in (("the paper's baselines", every & nine), ("all baselines", every)):
        if not specs:
            continue
        line = [f"T2Diff over the best of {title}", ""]
        for metric in metrics:
            best = max(row["metrics"][metric] for row in rows if spec_of(row) in specs)
            line.append(f"{ours['metrics'][metric] / best - 1:+.1%}" if best else "–")
            if known:
                best = max(printed[spec][metric] for spec in nine)
                line.append(f"{printed['t2diff'][metric] / best - 1:+.1%}")
        lines.append([*line, *[""] * (4 if known else 2)])
    return lines


def _small_table(title: str, table: Sequence[PublishedRow], rows: list[Row], metrics: list[str]) -> list[str]:
    of_spec = {spec_of(row): row for row in rows}
    if sum(published.spec in of_spec for published in table) < 2:
        return []
    headings = [""] + [cell for metric in metrics for cell in (heading(metric), "paper")]
    headings += ["ms/sample", "paper"]
    lines = []
    for published in table:
        row = of_spec.get(published.spec)
        cells = [published.method]
        for metric in metrics:
            cells += [with_interval(row, metric), _published(published, "ml-1m", metric)]
        time = f"{row['ms_per_sample']:.2f}" if row else "–"
        lines.append([*cells, time, str(published.infer_ms or "–")])
    return [f"### {title}", markdown(headings, lines)]


def _marked(row: Row | None, metric: str, rows: list[Row]) -> str:
    if row is None:
        return "–"
    cell = with_interval(row, metric)
    value = row["metrics"][metric]
    if value == max(other["metrics"][metric] for other in rows):
        return f"**{cell}**"
    best_baseline = max((other["metrics"][metric] for other in rows if is_baseline(other)), default=None)
    return f"<u>{cell}</u>" if is_baseline(row) and value == best_baseline else cell


def _published(row: PublishedRow | None, dataset: str, metric: str) -> str:
    figure = row.metrics(dataset).get(metric) if row else None
    return "–" if figure is None else f"{figure:.4f}"

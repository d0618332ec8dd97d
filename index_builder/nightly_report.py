"""How a night ended, as one page for whoever is paged: the outcome, every gate, the bundles before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from index_builder.publish import BundleSummary
from model.report.page import Html, chart, marked, new_figure, page, section, table

_SHOWN = 30
_MEANING = {
    "published": "A new bundle is served: the services pick it up when they next look at the store.",
    "nothing_new": "The bundle that is served was made of these very inputs; nothing was built.",
    "refused": "The new bundle was not published, the last one stays. See the refused gates; once the cause "
    "is known to be harmless, --force publishes the candidate, which is kept in the work folder.",
    "failed": "The job broke off; the last bundle stays. Run it again: it goes on where it was.",
    "bad_input": "The logs, an option or the store need a person; the last bundle stays.",
}


def night_report(told: Mapping[str, Any], bundles: Sequence[BundleSummary]) -> str:
    """HTML.   told: the night's summary, as in last.json   bundles: of the store, as `Store.summaries`"""
    outcome = told["outcome"]
    facts = [
        ("outcome", Html(escape(outcome)) if told["exit_status"] == 0 else marked(outcome)),
        ("began", told["began"]),
        ("seconds", told["seconds"]),
        ("bundle", told.get("bundle") or "-"),
        ("before", told.get("previous") or "-"),
        *((name, f"{told[key]:,}") for name, key in _COUNTS if key in told),
        ("run", told.get("run", "-")),
    ]
    sections = [section("What it means", _MEANING[outcome], _remarks(told))]
    if checks := told.get("checks"):
        sections.append(_gates(checks))
    if sound := [bundle for bundle in bundles if bundle.damage is None]:
        sections.append(_lately(sound[:_SHOWN][::-1]))
    return page(f"Nightly build: {outcome.replace('_', ' ')}", facts, sections)


_COUNTS = (
    ("interactions", "interactions"),
    ("items", "items"),
    ("new items", "new_items"),
    ("retired items", "retired_items"),
    ("questions", "questions"),
)


def _remarks(told: Mapping[str, Any]) -> Html:
    """What a person must not overlook."""
    remarks = []
    if "error" in told:
        remarks.append(told["error"])
    if told.get("forced"):
        remarks.append("FORCED: published although refused by " + ", ".join(told["refused_by"]))
    if "prune_error" in told:
        remarks.append("old bundles were not removed: " + told["prune_error"])
    return Html("".join(f"<p>{marked(remark)}</p>" for remark in remarks))


def _gates(checks: Sequence[Mapping[str, Any]]) -> Html:
    order = {"refused": 0, "skipped": 2}
    rows = []
    for check in sorted(checks, key=lambda check: order.get(check["outcome"], 1)):
        outcome = check["outcome"]
        told = (
            [check["detail"], check["remedy"]]
            if outcome == "refused"
            else [check["skipped"], check["detail"]]
        )
        why = "; ".join(filter(None, told))
        name = Html(f"{escape(check['name'])}<br><small>{escape(why)}</small>")
        shown = marked(outcome) if outcome == "refused" else outcome
        rows.append([name, "-" if outcome == "skipped" else _figure(check["value"]), _limits(check), shown])
    counts = {name: sum(check["outcome"] == name for check in checks) for name in ("passed", "refused")}
    text = f"{counts['passed']} of {len(checks)} passed, {counts['refused']} refused; a skipped one says why."
    return section("Gates", text, table(["gate", "measured", "must be", ""], rows))


def _limits(check: Mapping[str, Any]) -> str:
    least, most = check["at_least"], check["at_most"]
    if least is None:
        return "-" if most is None else f"at most {_figure(most)}"
    return f"at least {_figure(least)}" if most is None else f"{_figure(least)} to {_figure(most)}"


def _figure(value: float | None) -> str:
    return "not finite" if value is None else f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"


def _lately(bundles: Sequence[BundleSummary]) -> Html:
    """How large and how good they were.   bundles: oldest first"""
    manifests = [bundle.manifest for bundle in bundles]
    items = [manifest["counts"]["items"] for manifest in manifests]
    recall = [manifest["offline_metrics"].get("validation/recall_at_20") for manifest in manifests]
    rows = [
        [bundle.bundle_id, count, "-" if measured is None else measured, _remark(bundle.manifest)]
        for bundle, count, measured in zip(bundles, items, recall, strict=True)
    ]
    figure = new_figure(9.0, 2.6)
    left, right = figure.subplots(1, 2)
    left.plot(items, marker="o")
    left.set_title("items", fontsize=9)
    left.set_ylim(bottom=0)
    right.plot([float("nan") if measured is None else measured for measured in recall], marker="o")
    right.set_title("validation Recall@20", fontsize=9)
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.set_xticks([])
        axes.set_xlabel(f"{bundles[0].bundle_id[:8]} to {bundles[-1].bundle_id[:8]}")
    return section(
        "Lately",
        "The bundles that are in the store, newest first.",
        chart(figure, "items and validation Recall@20 of the bundles in the store, oldest to newest"),
        table(["bundle", "items", "validation Recall@20", ""], rows[::-1]),
    )


def _remark(manifest: Mapping[str, Any]) -> str | Html:
    return marked("forced") if manifest.get("forced") else ""

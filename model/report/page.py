"""The dress of every report: one HTML file with its style and its charts inside."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Sequence
from html import escape
from pathlib import Path

from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

_STYLE = """
:root { --back: #fff; --text: #1b1f24; --faint: #667085; --line: #d9dee5; --card: #f6f8fa; }
@media (prefers-color-scheme: dark) {
  :root { --back: #0f1318; --text: #e6e9ee; --faint: #98a2b3; --line: #2b323b; --card: #171c23; }
}
body { margin: 0 auto; max-width: 70rem; padding: 1rem; background: var(--back); color: var(--text);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; } p { max-width: 45rem; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .5rem; }
dl div { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .4rem .7rem; }
dt { color: var(--faint); font-size: .8rem; } dd { margin: 0; overflow-wrap: anywhere; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th { color: var(--faint); font-weight: 500; text-align: left; }
th, td { padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td + td { text-align: right; } th + th { text-align: right; }
.scroll { overflow-x: auto; } .bad { color: #c2410c; font-weight: 600; }
svg { max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line); border-radius: .5rem; }
"""


class Html(str):
    """Text that is markup already; everything else is escaped."""


def page(title: str, facts: Sequence[tuple[str, object]], sections: Sequence[Html]) -> str:
    """The whole file.   facts: name and value, shown at the top"""
    tiles = "".join(f"<div><dt>{escape(name)}</dt><dd>{_cell(value)}</dd></div>" for name, value in facts)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(title)}</h1><dl>{tiles}</dl>{''.join(sections)}</body></html>\n"
    )


def section(title: str, text: str, *parts: Html) -> Html:
    """A heading, a sentence or two of what is to be seen, and charts and tables."""
    return Html(f"<h2>{escape(title)}</h2><p>{escape(text)}</p>{''.join(parts)}")


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> Html:
    """The first column names the row, the others are figures."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return Html(
        f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def marked(text: str) -> Html:
    """Text that must not be overlooked."""
    return Html(f'<span class="bad">{escape(text)}</span>')


def new_figure(width: float = 9.0, height: float = 3.2) -> Figure:
    """An empty figure, in inches; draw on `figure.subplots()`, then `chart` it."""
    return Figure(figsize=(width, height), layout="constrained")


def chart(figure: Figure, label: str) -> Html:
    """The figure as SVG.   label: for those who cannot see it"""
    text = io.StringIO()
    with rc_context({"svg.fonttype": "none"}):
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None})
    drawn = text.getvalue()
    start = drawn.index("<svg")
    return Html(f'<svg role="img" aria-label="{escape(label)}"' + drawn[start + 4 :])


def write_page(path: Path, text: str) -> None:
    """Whole or not at all."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, encoding="utf-8", delete=False) as handle:
        handle.write(text)
    os.chmod(handle.name, 0o644)
    os.replace(handle.name, path)


def _cell(value: object) -> str:
    if isinstance(value, Html):
        return value
    if isinstance(value, float):
        return f"{value:.4g}"
    return escape(str(value))

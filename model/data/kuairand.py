"""KuaiRand logs: clicks of the main feed, `tab = 1` and `is_click = 1`, as in the paper.

Reads the published CSV files (`log_*.csv`: user_id, video_id, time_ms, ...) and Parquet files with the
same columns. Gao et al., "KuaiRand: An Unbiased Sequential Recommendation Dataset with Randomly
Exposed Videos" (CIKM 2022).
"""

from __future__ import annotations

from collections.abc import Sequence

from model.data.event_log import Layout

FOLDER_PATTERNS = ("log_*.csv", "log_*.csv.gz", "impressions.parquet")
"""What is read of a KuaiRand folder; its feature tables are not logs."""

_ITEM_COLUMNS = ("video_id", "item_id")
_KEEP = (("tab", 1), ("is_click", 1))


def table_layout(names: Sequence[str]) -> Layout:
    """The layout of a CSV or Parquet file with these columns."""
    item = next((name for name in _ITEM_COLUMNS if name in names), _ITEM_COLUMNS[0])
    return Layout("kuairand", "user_id", item, "time_ms", "ms", keep=_KEEP)


def is_table(names: Sequence[str]) -> bool:
    """Whether the columns are those of a KuaiRand log."""
    return set(table_layout(names).columns) <= set(names)

"""What was added and deleted between two nights, in a running service before and after the night."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from index_builder.bundle import load_bundle
from index_builder.delta import DeltaFile
from index_builder.publish import Store
from tests.end_to_end.test_new_items import t2diff_index
from tests.index_builder.small_night import DAY, FLAGS, NOW, write_rows
from tests.waiting import eventually

EVENING = [{"item_id": f"i{n}", "timestamp": NOW - 5 * DAY + 60 * n} for n in (2, 3, 4)]


def walk(days: int) -> list[tuple[str, str, int]]:
    """Thirty users walk through twenty items in their order, four a day, each from another place."""
    return [
        (f"u{user}", f"i{(user + 4 * day + step) % 20}", NOW - 10 * DAY + day * DAY + 60 * step + user)
        for user in range(30)
        for day in range(days)
        for step in range(4)
    ]


def test_an_added_item_is_recalled_before_and_after_the_night_and_a_deleted_one_never(
    serve: Callable[..., Any], tmp_path: Path
) -> None:
    log, store = tmp_path / "log.csv", tmp_path / "bundles"

    def night(rows: list[tuple[str, str, int]], *flags: str) -> dict[str, Any]:
        write_rows(log, rows)
        asked = ["nightly", "--logs", log, "--store", store, "--work", tmp_path / "work", *FLAGS, *flags]
        return json.loads(t2diff_index(*asked).splitlines()[-1])

    first = night(walk(6))["bundle"]
    served = serve(store, reload_poll_s=0.3)
    with served.client() as client:

        def model() -> dict[str, Any]:
            return client.get("/v2/models/recall").json()

        def recalled() -> set[str]:
            found = set()
            for seed in range(5):
                body = {"user_id": "u", "top_k": 30, "seed": seed, "sequence": EVENING}
                answer = client.post("/recall", json={**body, "exclude_seen": False}).json()
                found |= {candidate["item_id"] for candidate in answer["candidates"]}
            return found

        assert "i9" in recalled()
        definitions = tmp_path / "new.csv"
        definitions.write_text("item_id,similar_item_ids\nbrand-new,i4|i5\n")
        t2diff_index("add-items", store, "--items", definitions)
        t2diff_index("delete-items", store, "--ids", "i9")
        eventually(lambda: "brand-new" in recalled(), "the new item is not recalled from the delta")
        eventually(lambda: "i9" not in recalled(), "the deleted item is still recalled")
        assert (model()["bundle"], model()["delta"]["new_items"]) == (first, 1)

        second = night(walk(6))
        assert (second["outcome"], second["new_items"]) == ("published", 1)
        assert "brand-new" in load_bundle(Store(store).bundle_url(second["bundle"])).item_ids
        eventually(lambda: model()["bundle"] == second["bundle"], "not swapped in")
        assert model()["delta"]["new_items"] == 0, "the bundle's own wins"
        assert "brand-new" in recalled()
        assert "i9" not in recalled()
        assert [item.item_id for item in DeltaFile(store).entries()] == ["brand-new"]

        later = [*walk(6), ("u3", "i9", NOW - 4 * DAY)]  # somebody still shows it
        third = night(later, "--keep-added", "0", "--keep-deleted", "0")
        assert third["outcome"] == "published"
        assert (DeltaFile(store).entries(), DeltaFile(store).deleted()) == ([], [])
        eventually(
            lambda: (model()["bundle"], model()["delta"]["deleted_items"]) == (third["bundle"], 0),
            "the empty delta is not followed",
        )
        assert "brand-new" in recalled()
        assert "i9" not in recalled()

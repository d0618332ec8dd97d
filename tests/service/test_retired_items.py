"""A bundle that serves only some of its vocabulary: retired items are read, never answered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index_builder import item_ids
from index_builder.bundle import Bundle, load_bundle
from index_builder.item_rows import ItemRows
from index_builder.publish import Store
from service.engine import Engine
from tests.untrained import NUM_ITEMS, build_untrained

pytestmark = pytest.mark.anyio
RETIRED = [f"i{number}" for number in (1, 4, 5, 20, 60)]
SEQUENCE = [{"item_id": f"i{n}", "timestamp": 1_600_000_000 + n} for n in (3, 4, 7, 20, 9)]


@pytest.fixture(scope="module")
def partly_served(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The bundle of `bundles`, less the retired items."""
    store = Store(tmp_path_factory.mktemp("retired"))
    served = np.array([f"i{number}" not in RETIRED for number in range(1, NUM_ITEMS + 1)])
    return store.bundle_url(build_untrained(store, 0, rows=ItemRows.of_served(served)))


@pytest.fixture(params=["dict", "mapped"])
def bundle(request: pytest.FixtureRequest, partly_served: str, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """It, with item ids held as a small and as a large catalogue's."""
    if request.param == "mapped":
        monkeypatch.setattr(item_ids, "MAX_DICT_ITEMS", 0)
    return load_bundle(partly_served)


async def ask(running: Any, **fields: Any) -> dict[str, Any]:
    response = await running.client.post("/recall", json={"user_id": "u", **fields})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


@pytest.mark.parametrize("exclude_seen", [True, False])
async def test_retired_items_are_read_as_before_and_left_out_of_the_answers(
    start: Any, bundle: Bundle, exclude_seen: bool
) -> None:
    """Item for item and score for score what the full bundle gives when they are excluded."""
    running = await start()
    asked = {"top_k": 20, "sequence": SEQUENCE, "exclude_seen": exclude_seen}
    for excluded in ([], ["i2", "i40", "i41", "i5"]):
        running.service.swap(Engine(load_bundle(full_bundle(running)), device="cpu"))
        full = await ask(running, **asked, exclude_item_ids=[*excluded, *RETIRED])
        running.service.swap(Engine(bundle, device="cpu"))
        partly = await ask(running, **asked, exclude_item_ids=excluded)
        assert [c["item_id"] for c in partly["candidates"]] == [c["item_id"] for c in full["candidates"]]
        np.testing.assert_allclose(
            [c["score"] for c in partly["candidates"]], [c["score"] for c in full["candidates"]], rtol=1e-5
        )
    without = [behaviour for behaviour in SEQUENCE if behaviour["item_id"] not in RETIRED]
    skipped = await ask(running, **{**asked, "sequence": without})
    assert [c["score"] for c in skipped["candidates"]] != [c["score"] for c in partly["candidates"]]


def full_bundle(running: Any) -> str:
    url = Path(running.service.settings.bundles)
    return Store(url).bundle_url(str(Store(url).current()))


async def test_the_popular_items_and_the_shortfall_know_of_served_items_only(
    start: Any, bundle: Bundle
) -> None:
    running = await start()
    running.service.swap(Engine(bundle, device="cpu"))
    popular = await ask(running, top_k=60)
    recalled = [candidate["item_id"] for candidate in popular["candidates"]]
    assert len(recalled) == len(set(recalled)) == NUM_ITEMS - len(RETIRED)
    assert not set(RETIRED) & set(recalled)
    assert "the catalogue has 55 items" in popular["shortfall"]
    assert "the catalogue has 55 items" in (await ask(running, top_k=60, sequence=SEQUENCE))["shortfall"]


async def test_a_user_of_retired_items_alone_is_answered_by_the_model(start: Any, bundle: Bundle) -> None:
    running = await start()
    running.service.swap(Engine(bundle, device="cpu"))
    answer = await ask(running, sequence=[{"item_id": "i4", "timestamp": 1_600_000_000}])
    assert answer["route"] == "t2diff"


async def test_the_engine_warms_up_on_it(bundle: Bundle) -> None:
    Engine(bundle, device="cpu").warm_up(4)

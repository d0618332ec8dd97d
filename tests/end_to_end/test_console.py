"""The console: its calls over HTTP, and the page in a real browser against a real service."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from index_builder.publish import Store
from tests.untrained import NUM_ITEMS, build_untrained
from tests.waiting import eventually

TITLES = {f"i{n}": f"Film number {n}" for n in range(1, NUM_ITEMS)}  # the last one has none
SCREENSHOTS = os.environ.get("CONSOLE_SCREENSHOTS")
browser_is_here = pytest.mark.skipif(
    None in (shutil.which("chromedriver"), shutil.which("chromium"), find_spec("selenium")),
    reason="chromium, chromedriver (Debian's packages) and selenium are not here: `make console` says how",
)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: Any) -> tuple[Path, str]:
    """A store whose current bundle knows titles, and the id of another bundle that knows none."""
    store = Store(tmp_path_factory.mktemp("console"))
    other = build_untrained(store, 1)
    store.publish(build_untrained(store, 0, titles=TITLES))
    return Path(store.url), other


@pytest.fixture(scope="module")
def service(serve: Any, bundles: tuple[Path, str]) -> Any:
    served = serve(bundles[0])
    events = [{"user_id": "ann", "item_id": f"i{n}", "timestamp": 1_600_000_000 + n} for n in range(1, 9)]
    events.append({"user_id": "ann", "item_id": "gone", "timestamp": 1_600_000_004})
    with served.client() as client:
        assert client.post("/events", json=events).status_code == 200
    return served


def asked(service: Any, **body: Any) -> dict[str, Any]:
    response = httpx.post(f"{service.admin_url}/console/recall", json={"user_id": "ann", **body}, timeout=30)
    assert response.status_code == 200, response.text
    answered: dict[str, Any] = response.json()
    return answered


def test_the_explained_answer_is_the_one_that_recall_gives(service: Any) -> None:
    with service.client() as client:
        plain = client.post("/recall", json={"user_id": "ann", "top_k": 10}).json()
    (answer,) = asked(service, top_k=10)["answers"]
    assert answer["bundle"] == plain["bundle"] == service.bundle
    assert [c["item_id"] for c in answer["candidates"]] == [c["item_id"] for c in plain["candidates"]]
    assert {"store", "queue", "tower", "search"} <= answer["timings_ms"].keys()


def test_the_sequence_says_what_the_model_reads_and_where_its_session_begins(service: Any) -> None:
    (answer,) = asked(service)["answers"]
    rows = answer["sequence"]
    assert [row["item_id"] for row in rows] == ["i1", "i2", "i3", "i4", "gone", "i5", "i6", "i7", "i8"]
    assert [row["item_id"] for row in rows if row["read"]] == ["i3", "i4", "i5", "i6", "i7", "i8"]
    assert [row["item_id"] for row in rows if row["in_session"]] == ["i6", "i7", "i8"]
    assert [row["title"] for row in rows[3:5]] == ["Film number 4", None]


def test_the_nearest_behaviour_is_the_nearest(service: Any, bundles: tuple[Path, str]) -> None:
    from index_builder.bundle import load_bundle

    store = Store(bundles[0])
    bundle = load_bundle(store.bundle_url(str(store.current())))
    table = bundle.item_embeddings / np.linalg.norm(bundle.item_embeddings, axis=1, keepdims=True)
    (answer,) = asked(service, top_k=5)["answers"]
    for candidate in answer["candidates"]:
        cosine = table[:8] @ table[bundle.item_index_of[candidate["item_id"]] - 1]
        assert candidate["near"]["item_id"] == f"i{cosine.argmax() + 1}"
        assert candidate["near"]["cosine"] == pytest.approx(cosine.max(), abs=1e-3)


def test_the_diffusion_ends_where_the_tower_says(service: Any) -> None:
    (answer,) = asked(service)["answers"]
    watched = answer["generation"]
    assert watched["steps"] == [4, 3, 2, 1]
    assert len(watched["cosine"]) == len(watched["noised"]) == len(watched["predicted"]) == 4
    assert watched["cosine"][-1] == pytest.approx(1, abs=1e-3)  # z_0 is ẑ_0 of the last step
    assert watched["predicted"][-1] == pytest.approx(watched["final"], abs=1e-2)
    assert len(watched["history"]) == 6


def test_a_second_bundle_answers_beside_the_first(service: Any, bundles: tuple[Path, str]) -> None:
    first, second = asked(service, compare=bundles[1])["answers"]
    assert (first["bundle"], second["bundle"]) == (service.bundle, bundles[1])
    assert [c["item_id"] for c in first["candidates"]] != [c["item_id"] for c in second["candidates"]]
    assert {c["title"] for c in second["candidates"]} == {None}
    listed = httpx.get(f"{service.admin_url}/console/bundles").json()
    assert listed == {"served": service.bundle, "bundles": sorted((service.bundle, bundles[1]), reverse=True)}


def test_users_without_history_and_wrong_questions_are_answered(service: Any) -> None:
    (answer,) = asked(service, user_id="nobody")["answers"]
    assert (answer["route"], answer["reason"], answer["sequence"]) == ("popular", "no_history", [])
    assert answer["generation"] is None
    assert all(candidate["near"] is None for candidate in answer["candidates"])
    for body, named in (({"top_k": 0}, "top_k"), ({"compare": "../x"}, "compare"), ({"user": "a"}, "user")):
        response = httpx.post(
            f"{service.admin_url}/console/recall", json={"user_id": "ann", **body}, timeout=30
        )
        assert 400 <= response.status_code < 500
        assert named in response.json()["detail"]


def test_the_page_asks_no_other_host_and_is_not_on_the_public_port(service: Any) -> None:
    page = httpx.get(f"{service.admin_url}/console")
    assert page.status_code == 200
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for path in ("/console/console.js", "/console/charts.js", "/console/console.css"):
        found = httpx.get(f"{service.admin_url}{path}")
        assert found.status_code == 200
        assert "http" not in found.text.replace("http://www.w3.org/2000/svg", "")
    with service.client() as client:
        assert client.get("/console").status_code == 404


@pytest.fixture
def browser(browser_of_strangers: Any) -> Iterator[Any]:
    """The same; its console is read afterwards, an error in it fails the test."""
    yield browser_of_strangers
    complaints = [line for line in browser_of_strangers.get_log("browser") if line["level"] == "SEVERE"]
    assert complaints == []


@pytest.fixture
def browser_of_strangers(tmp_path: Path) -> Iterator[Any]:
    """Headless Chromium, which logs each refused call as an error."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    quiet = (
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-quic",
    )
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", *quiet):
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path / 'browser'}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    driver.set_window_size(1280, 1000)
    yield driver
    driver.quit()


@browser_is_here
def test_the_page_shows_a_user_live_figures_and_a_changed_answer(
    service: Any, bundles: tuple[Path, str], browser: Any
) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    def texts(selector: str) -> list[str]:
        """In one call: the page replaces its live figures, and what was found may be gone when it is read."""
        script = "return Array.from(document.querySelectorAll(arguments[0]), found => found.innerText.trim())"
        found: list[str] = browser.execute_script(script, selector)
        return found

    done = threading.Event()
    load = threading.Thread(target=_keep_asking, args=(service, done))
    load.start()
    try:
        browser.get(f"{service.admin_url}/console")
        field = browser.find_element(By.ID, "user")
        field.send_keys("ann", Keys.ENTER)  # no mouse needed
        eventually(lambda: len(texts("#answers article")) == 1, "no answer")
        assert service.bundle in texts("#answers article")[0]
        assert "Film number 8 (i8)" in texts("#answers article")[0]
        lines = browser.find_elements(By.CSS_SELECTOR, "article polyline")
        assert len(lines) == 3  # the cosine, and the two paths
        assert all(len(line.get_attribute("points").split()) == 4 for line in lines)
        assert len(texts("article tr.session")) == 3
        assert len(texts("article tr.boundary")) == 1

        before = texts("article table:nth-of-type(1) tbody tr")
        first = browser.find_element(By.CSS_SELECTOR, "article button.small")
        first.send_keys(Keys.ENTER)
        eventually(
            lambda: "stored:" in browser.find_element(By.ID, "message").text, "the event was not stored"
        )
        assert texts("article table:nth-of-type(1) tbody tr") != before

        eventually(lambda: bundles[1] in texts("#compare option"), "the other bundle is not listed")
        browser.find_element(By.CSS_SELECTOR, f'#compare option[value="{bundles[1]}"]').click()
        browser.find_element(By.CSS_SELECTOR, "#ask button").click()
        eventually(lambda: len(texts("#answers article")) == 2, "no second answer")

        def tiles() -> dict[str, str]:
            return dict(zip(texts("#tiles dt"), texts("#tiles dd"), strict=True))

        eventually(
            lambda: tiles().get("recalls / s", "–") not in ("–", "0.0") and tiles()["p99"] != "–", "no rates"
        )
        assert tiles()["bundle's age"].endswith(("min", "h"))
        browser.set_window_size(390, 844)
        wide = browser.execute_script("return document.documentElement.scrollWidth > window.innerWidth")
        assert not wide, "the page must not scroll sideways on a phone"
    finally:
        done.set()
        load.join()


@browser_is_here
def test_with_keys_on_the_page_asks_for_one_and_goes_on(
    serve: Any, bundles: tuple[Path, str], tmp_path: Path, browser_of_strangers: Any
) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    keys = tmp_path / "keys"
    made = _command("serve", "keys", "new", "--file", keys, "--caller", "me", "--scopes", "admin").stdout
    key = next(word for word in made.split() if word.startswith("t2diff_"))
    served = serve(bundles[0], api_keys=keys)
    browser = browser_of_strangers
    browser.get(f"{served.admin_url}/console")
    field = browser.find_element(By.ID, "key")
    WebDriverWait(browser, 30).until(lambda _: field.is_displayed())
    assert served.bundle not in browser.find_element(By.ID, "bundle").text
    field.send_keys(key, Keys.ENTER)
    WebDriverWait(browser, 30).until(lambda _: served.bundle in browser.find_element(By.ID, "bundle").text)
    assert key not in browser.page_source


@browser_is_here
@pytest.mark.skipif(SCREENSHOTS is None, reason="only `make console` takes pictures")
def test_pictures_of_a_trained_model(serve: Any, browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    log, run, store = tmp_path / "log.csv", tmp_path / "run", tmp_path / "bundles"
    catalogue = tmp_path / "catalogue.csv"
    _command("model", "synthesize", log, "--users", 800, "--items", 500)
    _command("model", "train", "--data", log, "--out", run, "--epochs", 3, "--set", "embedding_dim=32")
    with log.open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    items = sorted({row["item_id"] for row in rows})
    lines = [f"{item},Made-up title {number}" for number, item in enumerate(items)]
    catalogue.write_text("\n".join(["item_id,title", *lines]) + "\n")
    for _ in range(2):
        _command("index", "build", run, "--out", store, "--catalogue", catalogue)
    served = serve(store)
    user = rows[len(rows) // 2]["user_id"]
    events = [row | {"timestamp": int(row["timestamp"])} for row in rows if row["user_id"] == user]
    with served.client() as client:
        assert client.post("/events", json=events).status_code == 200
    done = threading.Event()
    load = threading.Thread(target=_keep_asking, args=(served, done, user))
    load.start()
    try:
        for name, size in (("console", (1280, 2050)), ("console-phone", (430, 1800))):
            browser.set_window_size(*size)
            browser.get(f"{served.admin_url}/console")
            browser.find_element(By.ID, "user").send_keys(user, Keys.ENTER)
            time.sleep(9)  # some polls for the line of rates
            browser.execute_script("window.scrollTo(0, 0)")
            browser.save_screenshot(str(Path(str(SCREENSHOTS)) / f"{name}.png"))
    finally:
        done.set()
        load.join()


def _command(package: str, *arguments: Any) -> subprocess.CompletedProcess[str]:
    module = {"model": "model.cli", "index": "index_builder.cli", "serve": "service.cli"}[package]
    words = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(words, check=True, capture_output=True, text=True)


def _keep_asking(service: Any, done: threading.Event, user: str = "ann") -> None:
    with service.client() as client:
        while not done.wait(0.02):
            client.post("/recall", json={"user_id": user, "top_k": 5})

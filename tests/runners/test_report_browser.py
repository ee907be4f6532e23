"""The page of a run in a real browser: what it shows, how it is worked, what it does not do."""

import base64
import gzip
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile_run import BELL, CHOSEN, DEPTHS, IMAGE, LONG, SCRIPT, write_hostile_run

from runners.report_page.page import rendered, run_payload

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
Keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
support = pytest.importorskip("selenium.webdriver.support.ui")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason="needs chromium and chromedriver: apt-get install chromium chromium-driver",
)
FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run"
FLAGS += " --disable-background-networking --disable-component-update --disable-sync"


@pytest.fixture(scope="module")
def payload(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_payload(write_hostile_run(tmp_path_factory.mktemp("hostile") / "run <b>1"))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


class Page:
    """The page in the browser."""

    def __init__(self, browser: Any, path: Path) -> None:
        self.browser = browser
        self.open(path.as_uri())

    def open(self, address: str) -> None:
        self.browser.get(address)
        self.wait("return document.getElementById('heads').children.length === 8")

    def run(self, script: str, *arguments: Any) -> Any:
        return self.browser.execute_script(script, *arguments)

    def wait(self, condition: str) -> None:
        support.WebDriverWait(self.browser, 60).until(lambda _: self.run(condition))

    def find(self, selector: str) -> Any:
        return self.browser.find_element("css selector", selector)

    def text(self, selector: str) -> str:
        """All text of an element, hidden or not."""
        return str(self.run("return document.querySelector(arguments[0]).textContent", selector))

    def texts(self, selector: str) -> list[str]:
        script = "return [...document.querySelectorAll(arguments[0])].map(one => one.textContent)"
        return list(self.run(script, selector))

    def count(self, selector: str) -> int:
        return int(self.run("return document.querySelectorAll(arguments[0]).length", selector))

    def show(self, words: str) -> None:
        """Search for a query, which shows the first that is found."""
        field = self.find("#search")
        field.clear()
        field.send_keys(words)

    def device(self, width: int, height: int, *, dark: bool = False) -> None:
        likes = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        likes.append({"name": "prefers-reduced-motion", "value": "reduce"})  # clicks do not wait
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": likes})
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 700}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)


@pytest.fixture
def page(browser: Any, payload: dict[str, Any], tmp_path: Path) -> Iterator[Page]:
    path = tmp_path / "report.html"
    path.write_text(rendered(payload), encoding="ascii")
    shown = Page(browser, path)
    shown.device(1200, 900)
    yield shown
    # Whatever was done: nothing went wrong in a script, was refused by the policy, or was fetched.
    assert browser.get_log("browser") == []
    assert shown.run("return performance.getEntriesByType('resource').length") == 0
    assert shown.run("return window.owned === undefined")


# --- what it shows ---------------------------------------------------------------------------


def test_title_table_and_settings(page: Page) -> None:
    assert page.browser.title == "run <b>1 – a run of maw_gym"
    assert page.text("h1") == "run <b>1"
    assert page.text("#about").startswith(f"{SCRIPT} on ")
    assert "0.5 entropy + 0.25 focus + 0.25 nDCG@10" in page.text("#about")
    names = [IMAGE, "random depth", f"{SCRIPT} (this run)", "oracle, upper bound"]
    assert page.texts("#table tbody th") == names
    # Of four queries two digits tell something.
    assert page.texts("#table tr.own td")[:3] == ["0.63", "0.50", "0.50"]
    assert page.texts("#config td")[-1] == IMAGE


def test_texts_are_text_whatever_they_hold(page: Page) -> None:
    page.show("honey script")
    assert page.text("#text") == f"{SCRIPT} honey"
    assert SCRIPT in page.text("#rankings")
    page.show("tides")
    assert page.text("#text") == f"{IMAGE} tides &amp; &lt;b&gt;moon&lt;/b&gt;"
    page.show("bell")
    # What draws nothing or turns the line is shown by its number.
    shown = BELL.replace("\x07", "\\u{0007}").replace("\x1b", "\\u{001b}")
    assert page.text("#text") == shown.replace("\u202e", "\\u{202e}") + " bread"
    assert "d8\\u{001b}\\u{2066}" in page.text("#rankings")
    page.show("abcdefghij")
    assert page.text("#text") == LONG[:999] + "…"
    assert page.count("script") == 2
    assert page.count("img, iframe, object, embed, link, b, i") == 0


@pytest.mark.parametrize("width", [360, 768, 1200])
def test_no_word_is_wider_than_the_page(page: Page, width: int) -> None:
    page.device(width, 800)
    for words in ("honey script", "abcdefghij"):
        page.show(words)
        for selector in ("html", "body"):
            element = f"document.querySelector({selector!r})"
            assert page.run(f"return {element}.scrollWidth") <= width


def test_terms_are_those_of_the_query(page: Page, payload: dict[str, Any]) -> None:
    page.show("tides")
    query = next(one for one in payload["sample"]["queries"] if "tides" in one["text"])
    terms = query["terms"]
    says = page.text("#says")
    assert f"reward {terms['reward'][CHOSEN]:.3f} = entropy {terms['entropy'][CHOSEN]:.3f}" in says
    assert "the router's choice" in says
    page.run("document.querySelector('#terms details').open = true")
    page.wait("return document.querySelectorAll('#terms tbody tr').length === 4")
    shown = np.array([float(text) for text in page.texts("#terms tbody :is(td, th)")]).reshape(
        DEPTHS, 5
    )
    paid = [0.5 * np.array(terms["entropy"]), 0.25 * np.array(terms["focus"])]
    paid += [0.25 * np.array(terms["alignment"]), np.array(terms["reward"])]
    assert shown == pytest.approx(np.array([np.arange(DEPTHS), *paid]).T, abs=1e-3)
    assert page.count("#terms svg .bar") == 3 * DEPTHS


def test_relevant_documents_are_marked_and_side_by_side(
    page: Page, payload: dict[str, Any]
) -> None:
    page.show("honey script")
    query = next(one for one in payload["sample"]["queries"] if "honey" in one["text"])
    columns = (CHOSEN, query["best"], DEPTHS)
    for column, place in enumerate(columns, start=1):
        here = f"#rankings > section:nth-child({column})"
        ranking = query["rankings"][place]
        relevant = [str(document) in query["relevant"] for document, _ in ranking]
        assert page.count(f"{here} li") == len(ranking) == 10
        classes = page.run(
            "return [...document.querySelectorAll(arguments[0])].map(one => one.className)",
            f"{here} li",
        )
        assert [name == "relevant" for name in classes] == relevant
        assert f"nDCG@10 {query['ndcg'][place]:.3f}" in page.text(here)
    assert page.texts("#rankings .badge") == ["✓ relevant, grade 2"] * 3


# --- how it is worked ------------------------------------------------------------------------


def test_depths_by_slider_buttons_and_bars(page: Page) -> None:
    page.show("tides")
    slider = page.find("#depth")
    slider.send_keys(Keys.HOME)
    slider.send_keys(Keys.ARROW_RIGHT)
    assert page.text("#number") == "1"
    assert page.text("#says").startswith("Depth 1")
    assert page.text("#attention-title") == "Attention at depth 1, head 1"
    assert page.text("#rankings h4") == "Shown: depth 1"
    page.browser.find_element("xpath", "//button[text()='Standard attention']").click()
    assert page.text("#attention-title") == "Attention at standard attention, head 1"
    assert page.text("#says").startswith("Standard attention: nDCG@10 ")
    chart = page.find("#terms svg[tabindex]")
    chart.send_keys(Keys.END)
    assert page.text("#terms .readout").startswith("depth 3: 0.5 × entropy ")
    chart.send_keys(Keys.ENTER)
    assert page.text("#number") == "3"
    assert page.run("return location.hash").endswith(",3")
    # The view is in the address.
    address = page.browser.current_url
    page.browser.get("about:blank")
    page.open(address)
    assert page.text("#number") == "3"
    assert "tides" in page.text("#text")


def test_queries_by_search_list_and_buttons(page: Page) -> None:
    assert page.count("#query option") == 4
    page.show("honey")
    assert page.count("#query option") == 1
    assert page.text("#matches") == "1 of 4 queries"
    page.show("no such words")
    assert page.text("#matches") == "0 of 4 queries"
    assert not page.find("#query").is_enabled()
    page.show("")
    page.find("#search").send_keys("q")
    before = page.text("#text")
    seen = []
    for _ in range(4):
        page.find("#next").click()
        seen.append(page.text("#text"))
    assert len(set(seen)) == 4
    assert seen[-1] == before
    page.find("#previous").click()
    assert page.text("#text") == seen[-2]


def test_weights_are_read_with_arrow_keys(page: Page, payload: dict[str, Any]) -> None:
    page.show("honey script")
    query = next(one for one in payload["sample"]["queries"] if "honey" in one["text"])
    page.wait("return document.getElementById('attention-title').textContent.includes('depth 2')")
    page.find("#heads button:nth-child(3)").click()
    assert page.run("return document.querySelectorAll('#heads [aria-pressed=true]').length") == 1
    matrix = page.find("#matrix")
    for key in (Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_RIGHT):
        matrix.send_keys(key)  # the first shows where one is
    numbers = gzip.decompress(base64.b64decode(query["attention"]))
    n = len(query["tokens"])
    at = ((CHOSEN * 8 + 2) * n + 1) * n + 1
    weight = (numbers[at] / 255) ** 2
    token = query["tokens"][1]
    assert page.text("#cell") == f"“{token}” attends to “{token}”: {weight:.3f} (token 2 to 2)"
    assert "head 3 at depth 2" in matrix.get_attribute("aria-label")


def test_columns_sort_and_say_so(page: Page) -> None:
    head = page.find("#table th:nth-child(2) button")
    head.click()
    assert page.texts("#table tbody tr td:nth-child(2)") == ["0.75", "0.63", "0.50", "–"]
    assert page.find("#table th:nth-child(2)").get_attribute("aria-sort") == "descending"
    head.click()
    assert page.texts("#table tbody tr td:nth-child(2)") == ["0.50", "0.63", "0.75", "–"]
    assert page.find("#table th:nth-child(2)").get_attribute("aria-sort") == "ascending"


def test_curves_can_be_chosen_and_read(page: Page) -> None:
    assert page.texts("#curve option") == ["Mean reward, validation queries", "train/" + IMAGE]
    support.Select(page.find("#curve")).select_by_index(1)
    page.find("#curves svg").send_keys(Keys.END)
    assert page.text("#curves .readout") == f"training queries 20: train/{IMAGE} 0.7500"


def test_light_and_dark(page: Page) -> None:
    def ground() -> str:
        return str(page.run("return getComputedStyle(document.body).backgroundColor"))

    light = ground()
    page.device(1200, 900, dark=True)
    dark = ground()
    assert light != dark
    seen = []
    for _ in range(3):
        page.find("#theme").click()
        seen.append((page.text("#theme"), ground()))
    assert seen == [("Theme: light", light), ("Theme: dark", dark), ("Theme: system", dark)]


def test_everything_can_be_reached_with_the_keyboard_and_has_a_name(page: Page) -> None:
    wanted = {"theme", "search", "query", "next", "previous", "depth", "matrix", "curve"}
    reached = set()
    for _ in range(120):
        page.browser.switch_to.active_element.send_keys(Keys.TAB)
        reached.add(page.run("return document.activeElement.id"))
    assert wanted <= reached
    unnamed = page.run(
        """return [...document.querySelectorAll(
            "button, input, select, canvas[tabindex], svg[role]"
        )].filter(one => !(one.textContent.trim() || one.getAttribute("aria-label") ||
            (one.labels && one.labels.length))).map(one => one.outerHTML)"""
    )
    assert unnamed == []
    assert page.run("return document.documentElement.lang") == "en"


def test_a_page_without_queries_or_curves_says_so(
    browser: Any, payload: dict[str, Any], tmp_path: Path
) -> None:
    empty = json.loads(json.dumps(payload))
    empty["sample"]["queries"], empty["curves"] = [], []
    path = tmp_path / "empty.html"
    path.write_text(rendered(empty), encoding="ascii")
    browser.get(path.as_uri())
    script = "return document.getElementById(arguments[0]).innerText"
    assert browser.execute_script(script, "problem") == "The run has no test query to look at."
    assert "no learning curves" in browser.execute_script(script, "curves")
    assert browser.get_log("browser") == []

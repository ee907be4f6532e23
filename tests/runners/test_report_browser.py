"""The page of a run in a real browser: what it shows, how it is worked, what it does not do."""

import base64
import gzip
import shutil

import numpy as np
import pytest
from hostile_run import BELL, CHOSEN, DEPTHS, IMAGE, LONG, SCRIPT

from maw_gym.runners.report_page.page import rendered, run_payload

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
def payload(hostile):
    return run_payload(hostile)


def query_of(payload, words):
    return next(one for one in payload["sample"]["queries"] if words in one["text"])


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
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

    def __init__(self, browser, address):
        self.browser = browser
        self.open(address)

    def open(self, address):
        self.browser.get(address)
        self.wait("document.getElementById('heads').children.length === 8")

    def run(self, expression, *arguments):
        return self.browser.execute_script(f"return {expression}", *arguments)

    def wait(self, condition):
        support.WebDriverWait(self.browser, 60).until(lambda _: self.run(condition))

    def find(self, selector):
        return self.browser.find_element("css selector", selector)

    def all(self, selector, what="textContent"):
        script = f"[...document.querySelectorAll(arguments[0])].map(one => one.{what})"
        return list(self.run(script, selector))

    def text(self, selector):
        """All text of an element, hidden or not."""
        return str(self.all(selector)[0])

    def show(self, words):
        """Search for a query, which shows the first that is found."""
        self.find("#search").clear()
        self.find("#search").send_keys(words)

    def device(self, width, height, theme="light"):
        likes = [{"name": "prefers-color-scheme", "value": theme}]
        likes.append({"name": "prefers-reduced-motion", "value": "reduce"})  # clicks do not wait
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": likes})
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 700}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)


@pytest.fixture
def page(browser, payload, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(rendered(payload), encoding="ascii")
    shown = Page(browser, path.as_uri())
    shown.device(1200, 900)
    yield shown
    # Whatever was done: nothing went wrong in a script, was refused by the policy, or was fetched.
    assert browser.get_log("browser") == []
    assert shown.run("performance.getEntriesByType('resource').length") == 0
    assert shown.run("window.owned === undefined")


def test_title_table_and_settings(page):
    assert page.browser.title == "run <b>1 – a run of maw_gym"
    assert page.text("h1") == "run <b>1"
    assert page.text("#about").startswith(f"{SCRIPT} on ")
    assert "0.5 entropy + 0.25 focus + 0.25 nDCG@10" in page.text("#about")
    names = [IMAGE, "random depth", f"{SCRIPT} (this run)", "oracle, upper bound"]
    assert page.all("#table tbody th") == names
    # Of four queries two digits tell something.
    assert page.all("#table tr.own td")[:3] == ["0.63", "0.50", "0.50"]
    assert page.all("#config td")[-1] == IMAGE
    head = page.find("#table th:nth-child(2) button")
    for order, values in (
        ("descending", ["0.75", "0.63", "0.50", "–"]),
        ("ascending", ["0.50", "0.63", "0.75", "–"]),
    ):
        head.click()
        assert page.all("#table tbody tr td:nth-child(2)") == values
        assert page.find("#table th:nth-child(2)").get_attribute("aria-sort") == order


def test_texts_are_text_whatever_they_hold(page):
    # What draws nothing or turns the line is shown by its number.
    bell = BELL.replace("\x07", "\\u{0007}").replace("\x1b", "\\u{001b}")
    for words, text, found in (
        ("honey script", f"{SCRIPT} honey", SCRIPT),
        ("tides", f"{IMAGE} tides &amp; &lt;b&gt;moon&lt;/b&gt;", IMAGE),
        ("bell", bell.replace("\u202e", "\\u{202e}") + " bread", "d8\\u{001b}\\u{2066}"),
        ("abcdefghij", LONG[:999] + "…", LONG[:599] + "…"),
    ):
        page.show(words)
        assert page.text("#text") == text
        assert found in page.text("#rankings")
        for width in (360, 768, 1200):  # and no word is wider than the page
            page.device(width, 800)
            assert max(page.all("html, body", "scrollWidth")) <= width
    assert len(page.all("script")) == 2
    assert page.all("img, iframe, object, embed, link, b, i") == []


def test_terms_are_those_of_the_query(page, payload):
    page.show("tides")
    terms = {k: np.array(one) for k, one in query_of(payload, "tides")["terms"].items()}
    says = page.text("#says")
    assert f"reward {terms['reward'][CHOSEN]:.3f} = entropy {terms['entropy'][CHOSEN]:.3f}" in says
    assert "the router's choice" in says
    page.browser.execute_script("document.querySelector('#terms details').open = true")
    page.wait("document.querySelectorAll('#terms tbody tr').length === 4")
    shown = np.array([float(text) for text in page.all("#terms tbody :is(td, th)")])
    expected = [np.arange(DEPTHS), 0.5 * terms["entropy"], 0.25 * terms["focus"]]
    expected += [0.25 * terms["alignment"], terms["reward"]]
    assert shown.reshape(DEPTHS, 5) == pytest.approx(np.array(expected).T, abs=1e-3)
    assert len(page.all("#terms svg .bar")) == 3 * DEPTHS


def test_relevant_documents_are_marked_and_side_by_side(page, payload):
    page.show("honey script")
    query = query_of(payload, "honey")
    for column, place in enumerate((CHOSEN, query["best"], DEPTHS), start=1):
        here = f"#rankings > section:nth-child({column})"
        ranking = query["rankings"][place]
        marked = ["relevant" * (str(document) in query["relevant"]) for document, _ in ranking]
        assert page.all(f"{here} li", "className") == marked
        assert len(marked) == 10
        assert f"nDCG@10 {query['ndcg'][place]:.3f}" in page.text(here)
    assert page.all("#rankings .badge") == ["✓ relevant, grade 2"] * 3


def test_depths_by_slider_buttons_and_bars(page):
    page.show("tides")
    page.find("#depth").send_keys(Keys.HOME + Keys.ARROW_RIGHT)
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
    # The view is in the address.
    address = page.browser.current_url
    page.browser.get("about:blank")
    page.open(address)
    assert page.text("#number") == "3"
    assert "tides" in page.text("#text")


def test_queries_by_search_list_and_buttons(page):
    for words, found in (("honey", 1), ("no such words", 0), ("q", 4)):
        page.show(words)
        assert len(page.all("#query option")) == found
        assert page.find("#query").is_enabled() == (found > 0)
        assert page.text("#matches") == f"{found} of 4 queries"
    before, seen = page.text("#text"), []
    for _ in range(4):
        page.find("#next").click()
        seen.append(page.text("#text"))
    assert (len(set(seen)), seen[-1]) == (4, before)
    page.find("#previous").click()
    assert page.text("#text") == seen[-2]


def test_weights_are_read_with_arrow_keys(page, payload):
    page.show("honey script")
    query = query_of(payload, "honey")
    page.wait("document.getElementById('attention-title').textContent.includes('depth 2')")
    page.find("#heads button:nth-child(3)").click()
    assert len(page.all("#heads [aria-pressed=true]")) == 1
    matrix = page.find("#matrix")
    matrix.send_keys(Keys.ARROW_DOWN + Keys.ARROW_DOWN + Keys.ARROW_RIGHT)  # the first shows where
    numbers = gzip.decompress(base64.b64decode(query["attention"]))
    n, token = len(query["tokens"]), query["tokens"][1]
    weight = (numbers[((CHOSEN * 8 + 2) * n + 1) * n + 1] / 255) ** 2
    assert page.text("#cell") == f"“{token}” attends to “{token}”: {weight:.3f} (token 2 to 2)"
    assert "head 3 at depth 2" in matrix.get_attribute("aria-label")


def test_curves_can_be_chosen_and_read(page):
    assert page.all("#curve option") == ["Mean reward, validation queries", "train/" + IMAGE]
    support.Select(page.find("#curve")).select_by_index(1)
    page.find("#curves svg").send_keys(Keys.END)
    assert page.text("#curves .readout") == f"training queries 20: train/{IMAGE} 0.7500"


def test_light_and_dark(page):
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.run(ground)
    page.device(1200, 900, "dark")
    dark = page.run(ground)
    assert light != dark
    for theme, colour in (("light", light), ("dark", dark), ("system", dark)):
        page.find("#theme").click()
        assert (page.text("#theme"), page.run(ground)) == (f"Theme: {theme}", colour)


def test_everything_can_be_reached_with_the_keyboard_and_has_a_name(page):
    reached = set()
    for _ in range(60):
        page.browser.switch_to.active_element.send_keys(Keys.TAB)
        reached.add(page.run("document.activeElement.id"))
    assert reached >= {"theme", "search", "query", "next", "previous", "depth", "matrix", "curve"}
    name = "textContent.trim() || one.getAttribute('aria-label') || (one.labels || []).length"
    assert all(page.all("button, input, select, canvas[tabindex], svg[role]", name))
    assert page.run("document.documentElement.lang") == "en"


def test_a_page_without_queries_or_curves_says_so(page, payload, tmp_path):
    empty = payload | {"sample": payload["sample"] | {"queries": []}, "curves": []}
    (tmp_path / "empty.html").write_text(rendered(empty), encoding="ascii")
    page.browser.get((tmp_path / "empty.html").as_uri())
    assert page.text("#problem") == "The run has no test query to look at."
    assert "no learning curves" in page.text("#curves")

"""The console as a person meets it: asks, sees who answered, opens the attempts, by mouse and by keyboard."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.unit.apps.conftest import Running

Pair = tuple[Running, Running]
WAIT_S = 15
EVIL = "<img src=x onerror=\"document.title='pwned'\"><b>bold</b>"


class Page:
    """What the tests do on the page, and what they read of it."""

    def __init__(self, browser: Any, running: Running) -> None:
        self.browser = browser
        browser.get(running.url.removesuffix("/v1") + "/")

    def all(self, css: str) -> list[Any]:
        return list(self.browser.find_elements("css selector", css))

    def one(self, css: str) -> Any:
        return self.browser.find_element("css selector", css)

    def wait(self, true: Callable[[], Any], what: str) -> Any:
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.support.wait import WebDriverWait

        waiting = WebDriverWait(self.browser, WAIT_S, 0.05, (StaleElementReferenceException,))
        return waiting.until(lambda _: true(), f"waited in vain for {what}")

    def live(self) -> Page:
        self.wait(lambda: self.one("#connection").text == "live", "the feed")
        return self

    def run(self, script: str, *arguments: Any) -> Any:
        return self.browser.execute_script(script, *arguments)

    def ask(self, text: str, policy: str = "auto", ends: str = "to first token") -> str:
        """Ask with the Enter key; return the line below the answer."""
        before = len(self.all("article.answer"))
        self.run("document.querySelector('#policy').value = arguments[0]", policy)
        self.one("#message").send_keys(text, "\n")
        self.wait(lambda: len(self.all("article.answer")) > before, "the answer's place")
        self.wait(lambda: ends in self.all("article.answer .foot")[-1].text, f"'{ends}'")
        return str(self.all("article.answer .foot")[-1].text)

    def focused(self) -> Any:
        return self.browser.switch_to.active_element


@pytest.fixture
def page(chromium: Any, pair: Pair) -> Iterator[Page]:
    opened = Page(chromium, pair[0]).live()
    opened.run("localStorage.clear(); sessionStorage.clear()")
    yield opened
    problems = [entry for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"]
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert problems == []


def test_chat_says_who_answered_and_opens_the_attempts(page: Page) -> None:
    foot = page.ask("How do I defrost the windscreen?", "cloud-first")
    assert foot.startswith("cloud")
    assert "link" in foot
    assert "quick brown fox" in page.all("article.answer .text")[-1].text
    page.wait(lambda: page.all("#requests > li"), "the request")
    page.all("article.answer .foot button")[-1].click()
    waterfall = page.wait(lambda: page.all("#requests .waterfall"), "the attempts")[0].text
    assert "answered" in waterfall
    assert "first token after" in waterfall
    assert "/v1/chat/completions" in waterfall
    assert page.focused().get_attribute("aria-expanded") == "true"


def test_the_conversation_goes_on_and_can_be_left(page: Page) -> None:
    assert page.ask("one", "vehicle-only").startswith("vehicle")
    page.ask("two", "vehicle-only")
    assert [question.text for question in page.all("article.question")] == ["one", "two"]
    page.one("#forget").click()
    assert page.all("#talk article") == []


def test_requests_of_other_clients_show_up_live_with_their_figures(page: Page, pair: Pair) -> None:
    import openai

    before = int(page.one("#figures dd").text)
    client = openai.OpenAI(base_url=pair[0].url, api_key="none", max_retries=0)
    client.chat.completions.create(
        model="codriver",
        messages=[{"role": "user", "content": "hi"}],
        extra_body={"codriver": {"policy": "vehicle-only"}},
    )
    page.wait(lambda: int(page.one("#figures dd").text) == before + 1, "the request to be counted")
    assert page.one("#requests > li b").text == "vehicle"
    assert page.all("#strip svg .turn.vehicle.good")
    assert "The link was up" in page.one("#strip svg").get_attribute("aria-label")


def test_requests_are_walked_by_keyboard(page: Page) -> None:
    from selenium.webdriver.common.keys import Keys

    page.ask("one")
    page.ask("two")
    page.wait(lambda: len(page.all("#requests > li")) >= 2, "two requests")
    buttons = page.all("#requests > li > button")
    page.run("arguments[0].focus()", buttons[0])
    page.focused().send_keys(Keys.ARROW_DOWN)
    assert page.focused() == buttons[1]
    page.focused().send_keys(Keys.ENTER)
    assert buttons[1].get_attribute("aria-expanded") == "true"
    page.focused().send_keys(Keys.ENTER)
    assert buttons[1].get_attribute("aria-expanded") == "false"


def test_settings_and_engines_are_shown(page: Page) -> None:
    assert [title.text for title in page.all("#engines h3")] == ["vehicle", "cloud"]
    rows = {row.find_element("css selector", "th").text: row for row in page.all("[data-section=route] tbody tr")}
    assert rows["policy"].find_element("css selector", ".value").text == "auto"
    assert page.all("#settings input, #settings button, #settings select") == []


def test_light_and_dark_follow_the_system_and_the_switch(page: Page) -> None:
    def ground() -> str:
        return str(page.run("return getComputedStyle(document.body).backgroundColor"))

    def system(scheme: str) -> None:
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)

    page.browser.refresh()
    page.live()
    system("light")
    light = ground()
    system("dark")
    dark = ground()
    assert light != dark
    page.one("#theme").click()
    assert (page.one("#theme").text, ground()) == ("Theme: light", light)
    page.browser.refresh()
    assert ground() == light
    page.one("#theme").click()
    system("light")
    assert (page.one("#theme").text, ground()) == ("Theme: dark", dark)


@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_is_wider_than_the_window(page: Page, width: int) -> None:
    page.ask("one")
    page.browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    )
    page.wait(lambda: page.all("#requests > li"), "the request")
    page.all("#requests > li > button")[0].click()
    assert page.run("return document.documentElement.scrollWidth") <= width


def test_all_that_is_loaded_is_the_servers_own(page: Page, pair: Pair) -> None:
    page.ask("one")
    names = page.run("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    base = pair[0].url.removesuffix("/v1")
    assert len(names) >= 3
    assert [name for name in names if not name.startswith(base)] == []


def test_a_refusal_is_told(page: Page, pair: Pair) -> None:
    page.run("document.querySelector('#model').replaceChildren(new Option('nobody'))")
    assert "The model 'nobody' does not exist here" in page.ask("one", ends="does not exist")
    page.browser.get_log("browser")  # the browser notes the 404 itself


def test_a_cloud_shows_itself_without_routing(chromium: Any, pair: Pair) -> None:
    page = Page(chromium, pair[1]).live()
    page.wait(lambda: page.one("#kind").text.startswith("cloud"), "the cloud's name")
    assert not page.one("#policy-label").is_displayed()
    page.one("#message").send_keys("hello\n")
    foot = page.wait(lambda: [f for f in page.all("article.answer .foot") if "first token" in f.text], "the answer")
    assert foot[0].text.startswith("cloud")


def test_the_page_asks_for_a_key_where_there_are_keys(chromium: Any, begin: Any) -> None:
    page = Page(chromium, begin("vehicle", "--set", "gateway.api_keys=sesame"))
    page.wait(lambda: page.one("#key-dialog").is_displayed(), "the question for a key")
    page.one("#key").send_keys("barley\n")
    page.wait(lambda: "Incorrect API key" in page.one("#key-error").text, "the refusal")
    page.one("#key").send_keys("sesame\n")
    page.live()
    assert page.ask("one").startswith("vehicle")
    chromium.get_log("browser")  # the browser notes the 401s itself


def test_a_server_that_ends_is_shown_as_offline(chromium: Any, begin: Any) -> None:
    running = begin("vehicle")
    page = Page(chromium, running).live()
    running.stop()
    page.wait(lambda: page.one("#connection").text == "offline", "the loss of the feed")
    chromium.get_log("browser")


@pytest.mark.parametrize("cut", [False, True])
def test_an_answer_is_text_and_a_cut_one_says_so(chromium: Any, begin: Any, cut: bool) -> None:
    with upstream(cut) as url:
        page = Page(chromium, begin("cloud", "--upstream-url", url)).live()
        page.one("#message").send_keys(EVIL, "\n")
        ends = "The answer was cut" if cut else "to first token"
        page.wait(lambda: any(ends in foot.text for foot in page.all("article.answer .foot")), ends)
        assert [text.text for text in page.all("article .text")] == [EVIL, EVIL]
    assert page.all("article img, article .text b") == []
    assert page.browser.title == "Codriver console: cloud"


@contextmanager
def upstream(cut: bool) -> Iterator[str]:
    """A server whose answer is markup, whole or cut before its end."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(b'{"object":"list","data":[{"id":"m","object":"model"}]}', "application/json")

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            parts = [(EVIL, None)] if cut else [(EVIL, None), ("", "stop")]
            events = b"".join(b"data: " + _chunk(*part) + b"\n\n" for part in parts)
            self._answer(events + (b"" if cut else b"data: [DONE]\n\n"), "text/event-stream")

        def _answer(self, body: bytes, kind: str) -> None:
            self.send_response(200)
            self.send_header("content-type", kind)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()


def _chunk(text: str, finish: str | None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return json.dumps(
        {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    ).encode()

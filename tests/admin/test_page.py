"""The page of --admin in a real browser: its figures are those of the JSON, and it says when the server has gone."""

from __future__ import annotations

import os
import re
import signal
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.admin import ADMIN, address_of, workers_of
from tests.support.browser import CHROMIUM, Browser
from tests.support.client import Hammer, dial
from tests.support.server import APPS
from tests.support.wait import eventually
from tests.support.web import fetch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import AppWriter, Serve

pytestmark = pytest.mark.slow

OBEY = f"{APPS / 'obey.py'}:handle"
NO_BROWSER = "there is no browser here; on Debian: apt-get install chromium"
# What is shown, and the document that it comes from, of one moment.
SHOWN = """({seen, figures: [...document.querySelectorAll('[data-figure]')]
  .filter(e => e.getClientRects().length).map(e => [e.dataset.figure, e.textContent])})"""
IN_PARTS = {  # of a worker; or left out
    "accepted", "rate", "errors_by_kind", "queue_wait", "threads", "busy", "work", "slow", "serving",
    "serving_s",
}  # fmt: skip
UNITS = {"": 1.0, "k": 1024.0, "M": 1024.0**2, "G": 1024.0**3, "T": 1024.0**4, "%": 0.01}
PARTS_OF_A_SECOND = {"s": 1, "ms": 1e3, "us": 1e6}
TIMES_S = {"µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def in_a_browser(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.skipif(CHROMIUM is None, reason=NO_BROWSER)(test)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    (tmp_path / "profile").mkdir()
    with Browser(tmp_path / "profile") as made:
        yield made


def at(document: Any, place: str) -> Any:
    """What stands at `workers.0.pid`; a cause may hold dots, and is the rest of its place."""
    head, _, rest = place.partition(".")
    if isinstance(document, list):
        return at(document[int(head)], rest)
    if place in document:
        return document[place]
    return at(document[head], rest)


def number(text: str, unit: str) -> float:
    """Read a figure as a person does; `unit` is that of its key, for times."""
    if unit in PARTS_OF_A_SECOND:
        parts = re.findall(r"(-?[0-9.]+) (\S+)", text)
        return sum(float(value) * TIMES_S[name] for value, name in parts) * PARTS_OF_A_SECOND[unit]
    found = re.fullmatch(r"(-?[0-9.,]+) ?(\D?)", text)
    assert found, text
    return float(found[1].replace(",", "")) * UNITS[found[2]]


def assert_shown(place: str, text: str, value: Any) -> None:
    if value is None:
        assert text == "-", place
    elif isinstance(value, str):
        assert text == value, place
    else:
        unit = place.rpartition("_")[2]
        rounding = 60 if re.search(r"\d [dh] ", text) else 0.51 if unit == "s" and "m" in text else 0.0051
        assert number(text, unit) == pytest.approx(value, rel=0.006, abs=rounding), place


def ready(browser: Browser) -> None:
    eventually(lambda: browser.evaluate("seen && document.getElementById('state').textContent"), within_s=20)


@pytest.mark.parametrize("workers", [4, 64])
@in_a_browser
def test_what_it_shows_is_what_the_server_says(serve: Serve, browser: Browser, workers: int) -> None:
    server = serve("talkback", "--workers", str(workers), *ADMIN)
    address = address_of(server)
    with Hammer(server.address, clients=3) as hammer:
        hammer.wait_more(400)
        os.kill(min(workers_of(server)), signal.SIGKILL)
        server.wait_log("spawned .*cause=respawn")
        hammer.wait_more(50)
        browser.open(f"http://{address}/")
        eventually(lambda: (browser.evaluate("seen?.totals.respawns.SIGKILL")) == 1, within_s=20)
        eventually(lambda: browser.evaluate("series.rate.filter(rate => rate > 0).length") > 2, within_s=20)
        shown = browser.evaluate(SHOWN)
    document, figures = shown["seen"], shown["figures"]
    for place, text in figures:
        assert_shown(place, text, at(document, place))
    places = {place for place, _text in figures}
    wanted = {f"workers.{row}.{key}" for row in range(workers) for key in document["workers"][row].keys() - IN_PARTS}
    wanted |= {f"totals.{key}" for key in ("accepted", "requests", "errors", "connections", "bytes_in", "p99_us")}
    wanted |= {f"totals.errors_by_kind.{kind}" for kind in document["totals"]["errors_by_kind"]}
    wanted |= {"totals.respawns.SIGKILL", "totals.queue_wait.p99_ms", "listeners.0.queue", "server.version"}
    assert not wanted - places
    assert len(document["workers"]) == workers
    assert browser.evaluate("document.querySelector('#rate .curve').getAttribute('d').length") > 10
    assert browser.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert not browser.complaints
    assert {url.split("?")[0] for url in browser.requests} <= {
        f"http://{address}{path}" for path in ("/", "/status.json", "/healthz")
    } | {"data:,"}


@in_a_browser
def test_it_says_when_the_server_is_gone_and_when_it_is_back(serve: Serve, browser: Browser) -> None:
    server = serve("talkback", "--workers", "1", *ADMIN)
    address = address_of(server)
    browser.open(f"http://{address}/", width=390)
    ready(browser)
    state = "document.getElementById('state').textContent"
    told = "document.getElementById('trouble').checkVisibility() && document.getElementById('trouble').textContent"
    assert (browser.evaluate(state), browser.evaluate(told)) == ("ready", False)
    assert server.stop() == 0
    said = eventually(lambda: browser.evaluate(told), within_s=20)
    assert said.startswith("The server does not answer. This is how it was at ")
    assert (browser.evaluate(state), browser.evaluate("document.title")) == ("gone", "gone · prefork")
    serve("echo", "--workers", "2", "--admin", address)
    eventually(lambda: browser.evaluate(state) == "ready", within_s=20, what="the next server is seen")
    assert browser.evaluate(told) is False
    eventually(lambda: browser.evaluate("document.querySelector('h1').textContent") == "echo", within_s=20)
    complaints = [each for each in browser.complaints if "ERR_CONNECTION_REFUSED" not in each]
    assert not complaints


@in_a_browser
def test_it_shows_a_name_as_it_is_by_day_and_by_night(serve: Serve, browser: Browser, app: AppWriter) -> None:
    source = "def handle(conn):\n    conn.readline()\n"
    name = app(source, name="<img src=x onerror=alert(1)>&.py")
    server = serve(name, "--workers", "1", *ADMIN)
    grounds = set()
    for dark in (False, True):
        browser.open(f"http://{address_of(server)}/", dark=dark)
        ready(browser)
        assert browser.evaluate("document.querySelector('h1').textContent") == name
        grounds.add(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(grounds) == 2
    assert not browser.complaints


@in_a_browser
def test_busy_workers_are_seen_as_such(serve: Serve, browser: Browser) -> None:
    server = serve(OBEY, "--workers", "2", "--graceful-timeout", "100ms", *ADMIN)
    with dial(server.address) as stuck:
        stuck.sendall(b"spin\n")
        browser.open(f"http://{address_of(server)}/")
        busy = "[...document.querySelectorAll('#strip span')].map(each => each.className).sort().join()"
        eventually(lambda: browser.evaluate(busy) == "BUSY,IDLE", within_s=20)
        text = "document.getElementById('workers').textContent"
        peer = "{}:{}".format(*stuck.getsockname())
        eventually(lambda: re.search(rf"{peer}.* for [0-9.]+ s", browser.evaluate(text)), within_s=20)
        assert server.stop(signal.SIGQUIT) == 0


def test_the_page_needs_nothing_from_elsewhere(serve: Serve) -> None:
    answer = fetch(address_of(serve("talkback", "--workers", "1", *ADMIN)))
    page = answer.body.decode()
    assert answer.fields["content-type"] == "text/html; charset=utf-8"
    assert answer.fields["content-security-policy"].startswith("default-src 'none'; ")
    assert set(re.findall(r"https?://[^\"' ]+", page)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<script[^>]+src|<link[^>]+href=\"(?!data:)|@import|url\(", page)
    assert "innerHTML" not in page

"""Repeated errors: one line a second for each event, and no complaint is lost from the count."""

from __future__ import annotations

import json
import logging
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest

from prefork.core.log import open_log
from prefork.engines.error_log import RateLimitedLog
from prefork.http.head import Request
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator


class Heard:
    """A RateLimitedLog, and the lines that it made so far."""

    def __init__(self) -> None:
        self._read_end, self._fd = os.pipe()
        os.set_blocking(self._read_end, False)
        self.complaints = RateLimitedLog(open_log(style="json", fd=self._fd))
        self._lines: list[dict[str, Any]] = []

    def lines(self) -> list[dict[str, Any]]:
        try:
            while piece := os.read(self._read_end, 65536):
                self._lines += [json.loads(line) for line in piece.splitlines()]
        except BlockingIOError:
            pass
        return self._lines

    def close(self) -> None:
        os.close(self._read_end)
        os.close(self._fd)


@pytest.fixture
def heard() -> Iterator[Heard]:
    logger = logging.getLogger("prefork")
    before = logger.handlers[:], logger.level, logger.propagate
    made = Heard()
    yield made
    made.close()
    logger.handlers[:], level, logger.propagate = before
    logger.setLevel(level)


def test_an_error_is_logged_with_its_traceback_and_its_client(heard: Heard) -> None:
    request = Request("GET", b"/a?" + b"b" * 9999, b"/a", b"", b"h", 1)
    heard.complaints.add(LookupError("no such"), "127.0.0.1:40312", request)
    (line,) = heard.lines()
    assert (line["event"], line["level"], line["peer"]) == ("handler failed", "error", "127.0.0.1:40312")
    assert line["error"] == "LookupError"
    assert line["request"] == "GET /a?" + "b" * 197
    assert "LookupError: no such" in line["detail"]
    assert "also" not in line


def test_every_event_has_its_own_second(heard: Heard) -> None:
    for _ in range(3):
        heard.complaints.note("accept paused")
        heard.complaints.add(ValueError(), "unix:")
    assert [line["event"] for line in heard.lines()] == ["accept paused", "handler failed"]


def test_each_line_counts_those_that_were_held_back_by_all_threads(heard: Heard) -> None:
    each, threads = 300, 4
    start = threading.Barrier(threads)

    def complain() -> None:
        start.wait(10)
        for _ in range(each):
            heard.complaints.note("accept paused", reason="Too many open files")

    running = [threading.Thread(target=complain) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(20)
    calls = each * threads
    told = len(heard.lines())

    def complain_again() -> bool:
        nonlocal calls
        calls += 1
        heard.complaints.note("accept paused", reason="Too many open files")
        return len(heard.lines()) == told + 2

    eventually(complain_again, within_s=10, what="two more lines")
    first, *others = heard.lines()
    assert "also" not in first
    assert all(line["also"] > 0 for line in others)
    assert len(heard.lines()) + sum(line["also"] for line in others) == calls

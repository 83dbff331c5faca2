"""What all HTTP connections of a worker share: the times of the configuration, and when each response is the last."""

from __future__ import annotations

from prefork.config.config import resolve
from prefork.engines.http_context import HttpContext


def context(**flags: str) -> HttpContext:
    return HttpContext(resolve("talkback", {name.replace("_", "-"): text for name, text in flags.items()}, {}))


def test_by_default_a_client_has_75_seconds_for_its_next_request_and_10_for_its_first() -> None:
    found = context()
    assert found.idle_ns(served=True) == found.keep_alive_ns == 75_000_000_000
    assert found.idle_ns(served=False) == found.header_ns == 10_000_000_000
    assert not found.draining


def test_each_of_these_times_can_be_given() -> None:
    found = context(keep_alive="1500ms", header_timeout="3")
    assert (found.idle_ns(served=True), found.idle_ns(served=False)) == (1_500_000_000, 3_000_000_000)


def test_without_keep_alive_every_response_is_the_last_whatever_becomes_of_the_worker() -> None:
    found = context(keep_alive="0")
    assert found.draining
    found.drain(last=False)
    assert found.draining


def test_a_worker_that_retires_may_have_nobody_to_give_to_and_then_somebody() -> None:
    found = context()
    found.drain()
    assert found.draining
    found.drain(last=False)
    assert not found.draining

"""The fuzzer: a short run of it, and that it would notice."""

from __future__ import annotations

import itertools

import pytest

from prefork.http import head
from prefork.http.fields import FieldTable
from prefork.http.head import Request
from prefork.http.limits import Limits
from tests.http import fuzz
from tests.http.outcome import outcome
from tests.http.peers import PEERS, difference

TWO = b"POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET /2 HTTP/1.1\r\nHost: a\r\n\r\n"


def test_a_short_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert fuzz.main(["--inputs", "1500", "--seed", "7"]) == 0
    printed = capsys.readouterr().out
    assert "1,500 inputs in " in printed
    assert "slowest input " in printed


def test_the_same_seed_gives_the_same_inputs() -> None:
    first, second = fuzz.Fuzzer(3).inputs, fuzz.Fuzzer(3).inputs
    assert [first.next() for _ in range(100)] == [second.next() for _ in range(100)]


def test_a_run_ends_when_its_time_is_over(capsys: pytest.CaptureFixture[str]) -> None:
    assert fuzz.main(["--seconds", "0.2"]) == 0
    assert "1,000,000 inputs" not in capsys.readouterr().out


def test_a_parser_that_raises_is_noticed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(*_: object) -> None:
        raise IndexError("as if")

    monkeypatch.setattr(head, "settle", fails)
    assert fuzz.main(["--inputs", "100", "--seed", "1"]) == 1
    assert "to be kept as a case: b" in capsys.readouterr().err


def test_a_verdict_that_depends_on_the_cut_is_noticed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What comes in one piece is read otherwise than the same line by line."""
    really = head.settle
    counted = itertools.count()

    def odd(request: Request, fields: list[object], limits: Limits) -> Request:
        request.method = f"{request.method}{next(counted) % 2}"
        return really(request, fields, limits)  # type: ignore[arg-type]

    monkeypatch.setattr(head, "settle", odd)
    assert fuzz.main(["--inputs", "1000", "--seed", "1"]) == 1
    assert "it gives another outcome" in capsys.readouterr().err


@pytest.mark.parametrize("peer", PEERS)
def test_another_reading_than_a_peers_is_noticed(peer: str) -> None:
    right = outcome([TWO], table=FieldTable())
    assert difference(peer, TWO, right) == ""
    longer = outcome([TWO])
    longer.requests[0].body = b"abcG"
    assert "reads" in difference(peer, TWO, longer)
    more = outcome([TWO])
    more.requests.append(more.requests[1])
    assert "wants more bytes" in difference(peer, TWO, more)
    fewer = outcome([TWO])
    fewer.requests.pop()
    assert "beyond" in difference(peer, TWO, fewer)
    assert "refuses" in difference(peer, TWO.replace(b"Host: a", b"Host : a"), right)

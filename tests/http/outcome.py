"""What a parser makes of bytes, however they are cut: the requests with their bodies, and the refusal if there is one.

Reading the events checks their grammar as well: what may follow what, and that nothing follows a refusal.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prefork.http.head import Request
from prefork.http.limits import Limits, Refusal
from prefork.http.parser import END, RequestParser

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable, Iterator

    from prefork.http.fields import FieldTable

ATTRIBUTES = tuple(name for name in Request.__slots__ if name not in ("fields", "plain"))


@dataclass(kw_only=True)
class Seen:
    """One request: its attributes, its fields as pairs of bytes, its body, and whether that came to its end."""

    attributes: dict[str, object]
    fields: list[tuple[bytes, bytes]]
    body: bytes = b""
    finished: bool = False


@dataclass(kw_only=True)
class Outcome:
    """All that came of some bytes. `at_eof`: the status of the refusal if the client ends here; 0 if there is none.

    `head`: what is refused, or is unfinished, is a HEAD.
    """

    requests: list[Seen] = field(default_factory=list)
    status: int = 0
    reason: str = ""
    at_eof: int = 0
    head: bool = False

    def __str__(self) -> str:
        requests = [
            f"{seen.attributes['method']} {seen.attributes['target']!r} {seen.body!r}" for seen in self.requests
        ]
        return f"{requests} {self.status} {self.reason}"


def outcome(
    pieces: Iterable[bytes], *, limits: Limits | None = None, table: FieldTable | None = None, upgrades: bool = False
) -> Outcome:
    """Feed the pieces one after the other to a new parser."""
    parser = RequestParser(limits or Limits(), table, upgrades=upgrades)
    seen = Outcome()
    for piece in pieces:
        for event in parser.feed(piece):
            note(seen, event)
    for event in parser.eof():
        assert isinstance(event, Refusal)
        seen.at_eof = event.status
        seen.head = event.head
    assert parser.feed(b"GET / HTTP/1.0\r\n\r\n") == []
    assert parser.backlog_bytes == 0
    return seen


def note(seen: Outcome, event: object) -> None:
    assert not seen.status, f"{event!r} after a refusal"
    last = seen.requests[-1] if seen.requests else None
    if isinstance(event, Request):
        assert last is None or last.finished, "a request within another's body"
        seen.requests.append(
            Seen(
                attributes={name: getattr(event, name) for name in ATTRIBUTES},
                fields=[(name.lower, value) for name, value in event.fields],
                finished=event.complete,
            )
        )
    elif isinstance(event, Refusal):
        assert event.reason.isprintable()
        assert event.reason.isascii()
        seen.status, seen.reason, seen.head = event.status, event.reason, event.head
    else:
        assert last is not None, "a body of nothing"
        assert not last.finished, "a body after its end"
        if event is END:
            last.finished = True
        else:
            assert isinstance(event, bytes)
            assert event
            last.body += event


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def cut_at_random(data: bytes, rng: random.Random, most: int = 12) -> list[bytes]:
    """Up to `most` pieces; some of them may be empty."""
    ends = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randrange(1, most)))
    return [data[start:end] for start, end in zip([0, *ends], [*ends, len(data)], strict=True)]


def cuts(data: bytes, rng: random.Random, *, random_ones: int) -> Iterator[tuple[str, list[bytes]]]:
    """Ways to cut the bytes, named."""
    yield "whole", [data]
    yield "byte by byte", cut(data, 1)
    yield "by 10 bytes", cut(data, 10)
    for number in range(random_ones):
        yield f"at random, {number}", cut_at_random(data, rng)

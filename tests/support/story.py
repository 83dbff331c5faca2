"""The server's log as a list of events: what happened, when, to whom. For tests that ask how long something took."""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass

# TIME LEVEL [who=..] event key=value: see prefork/log.py
_LINE = re.compile(r"^(?P<time>\S+Z) (?P<level>[A-Z]+) \[(?P<who>[^\]]*)\] (?P<rest>.*)$", re.MULTILINE)
_FIELD = re.compile(r' ([a-z_]+)=("(?:[^"\\]|\\.)*"|\S*)')


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One line of the log. `at_s` is seconds since the epoch, to the millisecond."""

    at_s: float
    level: str
    name: str
    fields: dict[str, str]

    @property
    def pid(self) -> int:
        """The worker it is about."""
        return int(self.fields["pid"])


def events(log: str, name: str | None = None) -> list[Event]:
    """Read a log; with `name`, only the events called so."""
    found = []
    for match in _LINE.finditer(log):
        rest = match["rest"]
        first = _FIELD.search(rest)
        called = rest[: first.start()] if first else rest
        if name is None or called == name:
            when = datetime.datetime.fromisoformat(match["time"])
            fields = {key: value.strip('"') for key, value in _FIELD.findall(rest)}
            found.append(Event(at_s=when.timestamp(), level=match["level"], name=called, fields=fields))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Strength:
    """How many workers there were after an event: those that accept, and all that were alive."""

    event: Event
    serving: int
    alive: int


def strengths(log: str) -> list[Strength]:
    """Follow the number of workers from the moment the server was ready. Needs `--log-level debug`."""
    alive: set[int] = set()
    serving: set[int] = set()
    followed: list[Strength] = []
    ready = False
    for event in events(log):
        match event.name:
            case "spawned":
                alive.add(event.pid)
            case "worker ready":
                alive.add(event.pid)
                serving.add(event.pid)
            case "retiring" | "killing worker":
                serving.discard(event.pid)
            case "worker retired" | "worker died":
                serving.discard(event.pid)
                alive.discard(event.pid)
            case "ready":
                ready = True
            case _:
                continue
        if ready:
            followed.append(Strength(event=event, serving=len(serving), alive=len(alive)))
    return followed

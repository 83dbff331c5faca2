"""The values that a plan's keys and the command line's flags take: one parser each, used by both.

A parser takes what TOML or the shell gave and returns the value, or raises ValueError saying what it wants instead.
"""

from __future__ import annotations

import re
import shlex
from decimal import Decimal
from difflib import get_close_matches
from typing import TYPE_CHECKING

from loadtest.plan import addresses, request
from loadtest.plan.plan import ARRIVALS, ENGINES, MESSAGES, ORDERS, RAW, SCENARIOS, Pin

if TYPE_CHECKING:
    from collections.abc import Iterable

_UNITS_S = (3600.0, 60.0, 1.0, 0.001)
_NUMBER = re.compile(r"[0-9]{1,9}(?:\.[0-9]+)?")
_SHARE = re.compile(r"([0-9]{1,2}(?:\.[0-9]+)?)%|(0?\.[0-9]+)")
_DURATION = re.compile("".join(rf"(?:([0-9]{{1,9}}(?:\.[0-9]+)?){unit})?" for unit in ("h", "m(?!s)", "s", "ms")))
_LOCUSTFILE = re.compile(r"(.*\.py)(?::[A-Za-z_]\w*)?")


def decimal(value: object) -> str:
    """A number in digits, without an exponent."""
    return f"{Decimal(str(value)).normalize():f}"


def text(value: object) -> str:
    """Parse a text that is not empty."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{value!r} is not a text; write it in quotes")
    return value


def count(value: object) -> int:
    """Parse a whole number from 1."""
    return _whole(value, 1)


def whole(value: object) -> int:
    """Parse a whole number from 0: a seed, or how many bytes."""
    return _whole(value, 0)


def _whole(value: object, least: int) -> int:
    number = int(value) if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value) else value
    if isinstance(number, bool) or not isinstance(number, int) or number < least:
        raise ValueError(f"{value!r} is not a whole number from {least}")
    return number


def flag(value: object) -> bool:
    """Parse true or false."""
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is neither true nor false")
    return value


def pause_s(value: object) -> float:
    """Parse a length of time, zero included; return seconds."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = decimal(value)
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        return float(value)
    match = _DURATION.fullmatch(value) if isinstance(value, str) and value else None
    if match is None:
        raise ValueError(f"{value!r} is not a length of time; write seconds, or 500ms, 10s, 1m30s, 2h")
    return sum(float(part) * unit_s for part, unit_s in zip(match.groups(), _UNITS_S, strict=True) if part)


def span(seconds: float) -> str:
    """Write a length of time as `pause_s` reads it: 90 as 1m30s."""
    if seconds < 60:
        return f"{decimal(round(seconds, 3))}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = ((hours, "h"), (minutes, "m"), (rest, "s"))
    return "".join(f"{number}{unit}" for number, unit in parts if number)


def duration_s(value: object) -> float:
    """Parse a length of time in which something can be measured; return seconds."""
    seconds = pause_s(value)
    if seconds < 0.2:
        raise ValueError(f"{value!r} is too short to measure anything in; 0.2 s is the least")
    return seconds


def limit_s(value: object) -> float:
    """Parse how long to wait at most, above zero; return seconds."""
    seconds = pause_s(value)
    if not seconds:
        raise ValueError(f"{value!r} is no time to wait; write seconds, or 500ms, 10s, 1m30s, 2h")
    return seconds


def share(value: object) -> float:
    """Parse a part of a whole above 0: 2% or 0.02."""
    written = decimal(value) if isinstance(value, float) else value
    match = _SHARE.fullmatch(written) if isinstance(written, str) else None
    part = (float(match[1]) / 100 if match[1] else float(match[2])) if match else 0.0
    if not part:
        raise ValueError(f"{value!r} is not a part of a whole; write 2% or 0.02")
    return part


def scenario(value: object) -> str:
    """Parse the name of a scenario."""
    return RAW if value == RAW else _one_of(SCENARIOS, "a scenario", value)


def locustfile(value: object) -> str:
    """Parse FILE.py or FILE.py:Class."""
    written = text(value)
    if not _LOCUSTFILE.fullmatch(written):
        raise ValueError(f"{written!r} is not a locustfile; write FILE.py, or FILE.py:Class for one of its classes")
    return written


def engine(value: object) -> str:
    """Parse the name of an engine of the generator."""
    return _one_of(ENGINES, "an engine", value)


def arrivals(value: object) -> str:
    """Parse how arrivals are spread."""
    return _one_of(ARRIVALS, "a way to arrive", value)


def message(value: object) -> str:
    """Parse a kind of WebSocket messages."""
    return _one_of(MESSAGES, "a kind of message", value)


def rate_per_s(value: object) -> float:
    """Parse a number per second, above 0."""
    written = decimal(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value
    if not isinstance(written, str) or not _NUMBER.fullmatch(written) or not float(written):
        raise ValueError(f"{value!r} is not a rate; write a number per second, such as 200 or 0.5")
    return float(written)


def _one_of(known: tuple[str, ...], kind: str, value: object) -> str:
    if value not in known:
        raise ValueError(f"{value!r} is not {kind}{near(str(value), known)}; there are {', '.join(known)}")
    return str(value)


def pin(value: object) -> Pin:
    """Parse SERVER_CPUS:LOAD_CPUS, each like 0 or 0,2 or 0-3."""
    server, separator, load = value.partition(":") if isinstance(value, str) else ("", "", "")
    if not separator:
        raise ValueError(f"{value!r} is not SERVER_CPUS:LOAD_CPUS; for example 0:1, or 0-1:2,3")
    return Pin(server=_cpus(server), load=_cpus(load))


def _cpus(value: str) -> tuple[int, ...]:
    found: set[int] = set()
    for part in value.split(","):
        match = re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", part)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise ValueError(f"{value!r} is not a list of CPUs; for example 0 or 0,2 or 0-3")
        found.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return tuple(sorted(found))


def command(value: object) -> str:
    """Parse a command line with a placeholder for the server's address."""
    line = text(value)
    try:
        shlex.split(line)
    except ValueError as error:
        raise ValueError(f"{line!r} is not a command line: {error}") from None
    tcp = "{address}" in line or "{port}" in line
    unix = "{unix}" in line
    if not tcp and not unix:
        hint = "put {address} or {port} where it belongs, or {unix} for the path of a Unix socket"
        raise ValueError(f"{line!r} says nowhere which port to serve on; {hint}")
    if tcp and unix:
        raise ValueError(f"{line!r} names a port and {{unix}}; the load goes to one of them, so leave the other out")
    return line


def environment(value: object) -> dict[str, str]:
    """Parse a table of texts."""
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise ValueError(f"{value!r} is not a table of texts; for example env = {{ PYTHONHASHSEED = '0' }}")
    return dict(value)


def endpoint(value: object) -> str:
    """Parse HOST:PORT or unix:PATH of a running server."""
    written = text(value)
    try:
        addresses.endpoint(written)
    except ValueError as error:
        hint = "for example 127.0.0.1:1935 or [::1]:1935, or unix:PATH"
        raise ValueError(f"{written!r} is not HOST:PORT: {error}; {hint}") from None
    return written


def method(value: object) -> str:
    """Parse the method of a request."""
    return request.method(text(value))


def paths(value: object) -> str | tuple[str, ...]:
    """Parse the path of requests, or a list of several; each may be @FILE. One alone is not a list."""
    if not isinstance(value, (list, tuple)):
        written = text(value)
        return written if re.fullmatch("@.+", written) else request.path(written)
    found = [paths(text(each)) for each in value]
    if not found:
        raise ValueError(f"{value!r} has no path; write ['/items/1', '/items/2'], or '@FILE'")
    return str(found[0]) if len(found) == 1 else tuple(map(str, found))


def order(value: object) -> str:
    """Parse the order of several paths."""
    return _one_of(ORDERS, "an order of paths", value)


def headers(value: object) -> tuple[str, ...]:
    """Parse header lines `Name: value`, given as a list or as a table."""
    lines = [f"{name}: {content}" for name, content in value.items()] if isinstance(value, dict) else value
    if not isinstance(lines, (list, tuple)) or not all(isinstance(line, str) for line in lines):
        raise ValueError(f"{value!r} is neither a table nor a list of headers; write ['Name: value']")
    return tuple(request.header(line) for line in lines)


def body(value: object) -> str:
    """Parse TEXT or @FILE."""
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a text; write it in quotes, or '@FILE'")
    return value


def status(value: object) -> str:
    """Parse the statuses of good responses."""
    return request.status(str(value) if isinstance(value, int) else text(value))


def near(word: str, known: Iterable[str]) -> str:
    """Return a suggestion for an unknown word, as part of a message; empty when no known word is similar."""
    close = get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""

"""What the figures of the scoreboard mean, one sentence each, for everybody who shows one; and errors by kind. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

# By the names of scoreboard.COUNTERS, and of what is made of them.
MEANINGS: Final = {
    "accepted": "Connections taken from the kernel.",
    "completed": "Units of work done: requests of HTTP, connections of a stream handler.",
    "errors": "Units of work whose handler or application raised or broke its protocol.",
    "idle_closed": "Connections of stream handlers closed because the client was silent for --idle-timeout.",
    "too_long": "Connections of stream handlers closed because a line passed its limit.",
    "client_gone": "Units of work whose client left before they were done.",
    "refused": "Requests that the server answered itself, malformed or beyond a limit: status 400, 413, 414, 431, 501.",
    "timed_out": "Requests of which the rest did not come in time (status 408), and responses not read in time.",
    "aborted": "Of the errors, those whose response had begun: the client got a part of it, and no end.",
    "bytes_in": "Bytes read from clients.",
    "bytes_out": "Bytes handed to the kernel for clients; not those of an asyncio.Protocol, which gives them to the "
    "loop itself.",
    "busy_ns": "Time inside units of work, without waits for the client; of an event loop, its processor time.",
    "queue_wait": "How long connections waited in the kernel until a worker took them, in steps of 0, 1, 3, 7, 15 ms "
    "and so on; TCP only, and not with --accept per-worker on an event loop of asyncio.",
    "work": "What each busy thread serves, and for how long; of an event loop of asyncio, its oldest request, as it "
    "was at the last beat.",
    "slow": "The latest requests that took longer than --slow.",
}


# Disjoint, so that they can be added up: what they count, and how it is made of the counters.
ERROR_KINDS: Final[Mapping[str, tuple[str, tuple[str, ...], tuple[str, ...]]]] = {
    "app": ("The application failed, and the client was told (500), or its connection closed.",
            ("errors",), ("aborted",)),
    "aborted": ("The application failed in the midst of a response.", ("aborted",), ()),
    "refused": ("The server refused a request: malformed, or beyond a limit.", ("refused", "too_long"), ()),
    "timeout": ("The client did not send or read in time.", ("timed_out", "idle_closed"), ()),
    "client_gone": ("The client left before its response was complete.", ("client_gone",), ()),
}  # fmt: skip


def errors_by_kind(counters: Mapping[str, int]) -> dict[str, int]:
    """The failures among what the counters count, each of them once."""
    return {
        kind: sum(counters[name] for name in plus) - sum(counters[name] for name in minus)
        for kind, (_meaning, plus, minus) in ERROR_KINDS.items()
    }

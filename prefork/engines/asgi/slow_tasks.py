"""WORKER. Which requests of an event loop are slow, and what they await: looked at with each beat.

They are told to the master, which writes the slow log (slow_log.py): one a beat with its stack, of the others how many.
Streams of events are meant to last. Those of coroutine handlers: see streams.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from time import monotonic_ns
from typing import TYPE_CHECKING

from prefork.engines.aio.tasks import stack_of

if TYPE_CHECKING:
    from prefork.engines.asgi.request import Exchange
    from prefork.runtime.master_link import Life


class SlowTasks:
    """WORKER. `running`: the calls of the application, in the order of their beginnings."""

    def __init__(self, running: Mapping[Exchange, asyncio.Task[None]], slow_ns: int, life: Life) -> None:
        self._running = running
        self._slow_ns = slow_ns
        self._life = life
        self._until_ns = 0  # what began before was judged

    def look(self) -> None:
        """Tell the master who has become slow."""
        now_ns = monotonic_ns()
        since_ns, self._until_ns = self._until_ns, now_ns - self._slow_ns
        found = [(exchange, task) for exchange, task in self._old() if exchange.began_ns > since_ns]
        if found:
            exchange, task = found[0]
            elapsed_s = (now_ns - exchange.began_ns) / 1e9
            self._life.slow(exchange.text, elapsed_s, stack_of(task), also=len(found) - 1)

    def _old(self) -> Iterator[tuple[Exchange, asyncio.Task[None]]]:
        for exchange, task in self._running.items():
            if exchange.began_ns > self._until_ns:
                return
            if not exchange.response.done and not exchange.response.streams_events:
                yield exchange, task

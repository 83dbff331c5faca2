"""WORKER. The lifespan of an ASGI application: it is told when the worker begins to serve, and when it has ended.

An application need not know of it: an exception on its scope means that. Only lifespan.startup.failed keeps a worker
from serving.
"""

from __future__ import annotations

import asyncio
from typing import Any

from prefork.core.log import Log
from prefork.errors import BootError

_STARTUP, _SHUTDOWN = "lifespan.startup", "lifespan.shutdown"


class Lifespan:
    """WORKER. `state` is the application's: what it puts there, each request gets."""

    def __init__(self, app: Any, name: str, log: Log, state: dict[str, Any]) -> None:
        self._app = app
        self._name = name
        self._log = log
        self._state = state
        self._orders: asyncio.Queue[str] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._answered = asyncio.Event()
        self._over = asyncio.Event()  # it has returned, or asks for an order behind the last one
        self._failure: str | None = None
        self._asked = False  # it has asked for the first order: it knows of lifespans
        self._last = False  # it was given the last one
        self._stopping = False

    async def start(self) -> None:
        """Have it start up. Raises BootError if it says that it cannot."""
        self._task = asyncio.get_running_loop().create_task(self._run())
        await self._tell(_STARTUP)
        if self._failure is not None:
            lines = self._failure.splitlines()
            what = f": {lines[-1]}" if lines else ""
            raise BootError(f"{self._name!r} says that it cannot start{what}", self._failure if len(lines) > 1 else "")

    async def stop(self, timeout_s: float) -> None:
        """Have it shut down, for at most so long."""
        if self._task is None or self._task.done():
            return
        self._stopping = True
        try:
            async with asyncio.timeout(timeout_s):
                await self._tell(_SHUTDOWN)
                await self._over.wait()  # what is wrapped around the application may have its own things to close
        except TimeoutError:
            self._log.warning("lifespan cut", app=self._name, after=f"{timeout_s:.1f}s")
        if self._failure is not None:
            self._log.error("lifespan shutdown failed", app=self._name, reason=self._failure)

    async def _tell(self, order: str) -> None:
        self._answered.clear()
        self._orders.put_nowait(order)
        await self._answered.wait()

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self._state}
        try:
            await self._app(scope, self._receive, self._send)
        except BaseException as error:  # noqa: BLE001 - the border of the application
            if self._stopping and isinstance(error, asyncio.CancelledError):
                pass  # there was no more to do, or it was cut, which is told
            elif not self._asked:
                self._log.debug("no lifespan", app=self._name, error=repr(error))
            elif "\n" not in (self._failure or "").strip():  # else it has told its traceback itself
                self._log.warning("lifespan given up", app=self._name, exc=error)
        self._answered.set()
        self._over.set()

    async def _receive(self) -> dict[str, Any]:
        self._asked = True
        if self._last:
            self._over.set()
        order = await self._orders.get()
        self._last = order == _SHUTDOWN
        return {"type": order}

    async def _send(self, message: dict[str, Any]) -> None:
        what = message["type"]
        if what in ("lifespan.startup.failed", "lifespan.shutdown.failed"):
            self._failure = str(message.get("message", ""))
        elif what not in ("lifespan.startup.complete", "lifespan.shutdown.complete"):
            raise RuntimeError(f"a message of type {what!r} cannot be sent here")
        self._answered.set()

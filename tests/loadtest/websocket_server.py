"""A real WebSocket server for tests, of the library `websockets`, in a thread; it remembers what it was asked."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

from websockets.asyncio.server import ServerConnection, serve, unix_serve
from websockets.exceptions import ConnectionClosed

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable

    Handler = Callable[[ServerConnection], Awaitable[None]]


async def echo(connection: ServerConnection) -> None:
    """Send every message back as it came."""
    async for message in connection:
        await connection.send(message)


class WebSocketServer:
    """Listens on a free port, or at `path`. `received` has the messages, `requests` paths and heads."""

    def __init__(
        self,
        handler: Handler = echo,
        *,
        tls: ssl.SSLContext | None = None,
        path: str = "",
        **options: Any,
    ) -> None:
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.closed: list[int | None] = []  # the codes of clients' close frames; None without one
        self.address: Any = path
        self._handler = handler
        self._options = {"ssl": tls, **options}
        self._listening = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._over = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=[self._serve()])
        self._thread.start()
        assert self._listening.wait(10)

    async def _serve(self) -> None:
        if self.address:
            server = await unix_serve(self._serve_one, self.address, **self._options)
        else:
            server = await serve(self._serve_one, "127.0.0.1", 0, **self._options)
            self.address = next(iter(server.sockets)).getsockname()
        self._listening.set()
        async with server:
            await self._over.wait()

    async def _serve_one(self, connection: ServerConnection) -> None:
        assert connection.request
        self.requests.append((connection.request.path, dict(connection.request.headers.raw_items())))
        try:
            await self._handler(connection)
        except ConnectionClosed:
            pass  # the client went first
        await connection.wait_closed()
        self.closed.append(connection.protocol.close_rcvd.code if connection.protocol.close_rcvd else None)

    def close(self) -> None:
        """Close every connection and wait for the end."""
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(10)
        assert not self._thread.is_alive()
        self._loop.close()

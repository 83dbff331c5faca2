"""The application of peers-asgi: that of peers-wsgi over ASGI, and WebSockets that are echoed. No framework."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    Event = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Event]]
    Send = Callable[[Event], Awaitable[None]]

_HELLO = b"Hello, world!\n"
_LARGE = b"0123456789abcdef" * 6400  # 100 KB


async def app(scope: Event, receive: Receive, send: Send) -> None:
    """Answer /, /large, and a POST with the number of bytes that came; echo what comes through a WebSocket."""
    if scope["type"] == "http":
        await respond(scope, receive, send)
    elif scope["type"] == "websocket":
        await echo(receive, send)
    else:
        await live(receive, send)


async def respond(scope: Event, receive: Receive, send: Send) -> None:
    if scope["method"] == "POST":
        size, more = 0, True
        while more:
            event = await receive()
            size += len(event.get("body", b""))
            more = event.get("more_body", False)
        body = b"%d\n" % size
    else:
        body = _LARGE if scope["path"] == "/large" else _HELLO
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def echo(receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (event := await receive())["type"] == "websocket.receive":
        if event.get("text") is not None:
            await send({"type": "websocket.send", "text": event["text"]})
        else:
            await send({"type": "websocket.send", "bytes": event["bytes"]})


async def live(receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})

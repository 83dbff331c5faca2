"""The ASGI application of the tests: what routes.py answers, and what only ASGI can; WebSockets, too."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import traceback
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from tests.apps.asking import pass_gate as wait_at_gate
from tests.apps.routes import BLOCK, READS, Answer, Request, answer, hello

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    Scope = dict[str, Any]
    Receive = Callable[[], Awaitable[dict[str, Any]]]
    Send = Callable[[dict[str, Any]], Awaitable[None]]
    Deed = Callable[[Scope, Receive, Send], Awaitable[None]]

TEXT = [(b"content-type", b"text/plain")]
EVENTS = [(b"content-type", b"text/event-stream")]


def argument(scope: Scope) -> str:
    return unquote(scope["query_string"].decode("ascii"))


async def start(send: Send, status: int = 200, headers: Iterable[tuple[bytes, bytes]] = TEXT, **more: object) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [*headers], **more})


async def give(send: Send, body: bytes = b"", *, more: bool = False) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


async def give_all(send: Send, body: bytes, headers: Iterable[tuple[bytes, bytes]] = TEXT) -> None:
    await start(send, 200, headers)
    await give(send, body)


async def say(send: Send, said: Answer) -> None:
    headers = [(name.lower().encode(), value.encode("latin1")) for name, value in said.headers]
    await start(send, said.status, headers)
    if said.file:
        await send({"type": "http.response.pathsend", "path": said.file})
    elif isinstance(said.pieces, list):
        await give(send, b"".join(said.pieces))
    else:
        try:
            for piece in said.pieces:
                await give(send, piece, more=True)
        except OSError:
            said.pieces.close()  # type: ignore[attr-defined] # of Endless and of generators
            raise
        await give(send)


async def greet(send: Send) -> None:
    await say(send, hello())


async def request_of(scope: Scope, receive: Receive) -> Request:
    """Read the body as well, if the path's deed wants it."""
    host = next((value.decode("latin1") for name, value in scope["headers"] if name == b"host"), "")
    address, port = scope["client"] or ("", 0)
    return Request(
        method=scope["method"],
        path=scope["path"],
        query=scope["query_string"].decode("latin1"),
        scheme=scope["scheme"],
        host=host,
        client=(address, str(port or "")),
        body=await body_of(receive) if scope["path"] in READS else b"",
    )


async def body_of(receive: Receive) -> bytes:
    """Read it all; an AssertionError if the client leaves."""
    pieces, more = [], True
    while more:
        message = await receive()
        assert message["type"] == "http.request", message
        pieces.append(message["body"])
        more = message["more_body"]
    return b"".join(pieces)


def note(scope: Scope, text: str) -> None:
    """Leave a mark in the file that the query names."""
    with open(argument(scope), "a") as file:
        file.write(text + "\n")


async def show_scope(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer what the application is told, as JSON."""
    text = json.dumps(scope, default=lambda value: value.decode("latin1"))
    await give_all(send, text.encode(), headers=[(b"content-type", b"application/json")])


async def say_back_at_once(_: Scope, receive: Receive, send: Send) -> None:
    """Answer each piece as it comes."""
    await start(send)
    more = True
    while more:
        message = await receive()
        more = message.get("more_body", False)
        await give(send, message.get("body", b""), more=more)


async def pass_gate(scope: Scope, receive: Receive, send: Send) -> None:
    """Stand at the test's gate (tests/support/gate.py) until it opens, then greet."""
    await wait_at_gate()
    await greet(send)


async def work(scope: Scope, receive: Receive, send: Send) -> None:
    await asyncio.sleep(float(argument(scope)))
    await greet(send)


async def watch(scope: Scope, receive: Receive, send: Send) -> None:
    """Say that it has begun, and note when the client leaves; after that, what `send` does."""
    await start(send)
    await give(send, b"watching\n", more=True)
    while (message := await receive())["type"] == "http.request":
        pass
    note(scope, message["type"])
    try:
        while True:
            await give(send, BLOCK, more=True)
            await asyncio.sleep(0)
    except OSError as error:
        note(scope, type(error).__name__)


async def outlive(scope: Scope, receive: Receive, send: Send) -> None:
    """Go on after the response, as background tasks do."""
    await greet(send)
    assert (await receive())["type"] == "http.request"
    note(scope, (await receive())["type"])
    await asyncio.sleep(0.2)
    note(scope, "done")


async def outlive_client(scope: Scope, receive: Receive, send: Send) -> None:
    """Note that nobody cancels it when the client leaves."""
    note(scope, "begun")
    while (await receive())["type"] == "http.request":
        pass
    await asyncio.sleep(0.2)
    note(scope, "done")
    await greet(send)


async def listen_late(_: Scope, receive: Receive, send: Send) -> None:
    """Answer without the body, and only then ask for it, as a listener for the client's leaving does."""
    await start(send)
    await give(send, b"not read, ", more=True)
    first = asyncio.ensure_future(receive())
    await asyncio.sleep(0.05)
    await give(send, b"not asked for\n")
    await first


async def answer_too_late(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer as soon as the client has left; the query names a file for the mark."""
    note(scope, "begun")
    await wait_to_leave(receive)
    with contextlib.suppress(OSError):
        await greet(send)
    note(scope, "answered")


async def return_early(_: Scope, receive: Receive, send: Send) -> None:
    """Break the protocol: no response."""


async def return_midway(_: Scope, receive: Receive, send: Send) -> None:
    await start(send)
    await give(send, b"a part", more=True)


async def say_too_much(_: Scope, receive: Receive, send: Send) -> None:
    await greet(send)
    await give(send, b"more")
    await asyncio.sleep(0.01)  # the client may have left
    await start(send, 404)
    await give(send, b"more", more=True)
    await send({"type": "http.response.trailers", "headers": []})


async def trail(_: Scope, receive: Receive, send: Send) -> None:
    await start(send, trailers=True)
    await give(send, b"body")
    await send({"type": "http.response.trailers", "headers": [(b"x-sum", b"4")]})


async def hint(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.early_hint", "links": [b"</a.css>; rel=preload", b"</b.js>; rel=preload"]})
    await greet(send)


async def tick(scope: Scope, receive: Receive, send: Send) -> None:
    """Send events until the client leaves or the server asks to end; `?deaf` asks for no such news."""
    await start(send, headers=EVENTS)
    leaving = None if argument(scope) == "deaf" else asyncio.ensure_future(wait_to_leave(receive))
    number = 0
    while leaving is None or not leaving.done():
        await give(send, b"data: %d\n\n" % number, more=True)
        number += 1
        await asyncio.sleep(0.02)
    await give(send, b"data: end\n\n")


async def wait_to_leave(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def keep_state(scope: Scope, receive: Receive, send: Send) -> None:
    """Count in a state of the request's own, and in one that is shared."""
    scope["state"]["own"] = scope["state"].get("own", 0) + 1
    scope["state"]["shared"].append(1)
    await give_all(send, b"%d %d" % (scope["state"]["own"], len(scope["state"]["shared"])))


async def be_slow_to_read(scope: Scope, receive: Receive, send: Send) -> None:
    """Take a piece of the body, stand at the gate, take the rest."""
    first = await receive()
    await wait_at_gate()
    rest = await body_of(receive) if first["more_body"] else b""
    await give_all(send, b"%d" % (len(first["body"]) + len(rest)))


DEEDS: dict[str, Deed] = {
    "/scope": show_scope,
    "/echo-at-once": say_back_at_once,
    "/gate": pass_gate,
    "/work": work,
    "/watch": watch,
    "/outlive": outlive,
    "/outlive-client": outlive_client,
    "/listen-late": listen_late,
    "/too-late": answer_too_late,
    "/return": return_early,
    "/return-midway": return_midway,
    "/too-much": say_too_much,
    "/trail": trail,
    "/hint": hint,
    "/tick": tick,
    "/state": keep_state,
    "/slow-to-read": be_slow_to_read,
}


# --- WebSockets


async def ws_echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Say back what comes; the query names a file for the code of the end."""
    await send({"type": "websocket.accept"})
    while (event := await receive())["type"] == "websocket.receive":
        await send({**event, "type": "websocket.send"})
    if argument(scope):
        note(scope, f"{event['type']} {event['code']}")


async def ws_offer(scope: Scope, receive: Receive, send: Send) -> None:
    """Take the last subprotocol that is offered, and say what was told in the handshake."""
    offered = scope["subprotocols"]
    await send(
        {
            "type": "websocket.accept",
            "subprotocol": offered[-1] if offered else None,
            "headers": [(b"x-from", b"the application"), (b"set-cookie", b"a=1")],
        }
    )
    await send({"type": "websocket.send", "text": json.dumps(scope, default=lambda value: value.decode("latin1"))})
    await send({"type": "websocket.close"})


async def ws_deny(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "websocket.close", "code": 4000})


async def ws_deny_with(scope: Scope, receive: Receive, send: Send) -> None:
    """Deny with a response of its own: its size is in the query."""
    await send({"type": "websocket.http.response.start", "status": 401, "headers": [(b"x-why", b"no ticket")]})
    for _ in range(int(argument(scope) or "1")):
        await send({"type": "websocket.http.response.body", "body": b"no ticket\n", "more_body": True})
    await send({"type": "websocket.http.response.body"})


async def ws_deny_at_length(scope: Scope, receive: Receive, send: Send) -> None:
    """Deny with more than a kernel takes at once, in one piece; the query names a file for the end."""
    await send({"type": "websocket.http.response.start", "status": 401, "headers": []})
    await send({"type": "websocket.http.response.body", "body": BLOCK * 320})
    note(scope, "denied")


async def ws_hesitate(scope: Scope, receive: Receive, send: Send) -> None:
    """Wait for what comes of a handshake that is not answered."""
    event = await receive()
    note(scope, f"{event['type']} {event['code']}")


async def ws_deny_midway(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "websocket.http.response.start", "status": 401, "headers": []})
    await send({"type": "websocket.http.response.body", "body": b"a part", "more_body": True})
    raise RuntimeError("a secret of the application")


async def ws_close(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.close", "code": int(argument(scope)), "reason": "as you wish"})
    event = await receive()
    while event["type"] != "websocket.disconnect":
        event = await receive()
    try:
        await send({"type": "websocket.send", "text": "too late"})
    except OSError as error:
        print(f"after close: {event['type']} {type(error).__name__}")


async def ws_fail(scope: Scope, receive: Receive, send: Send) -> None:
    if argument(scope) != "early":
        await send({"type": "websocket.accept"})
    raise RuntimeError("a secret of the application")


async def ws_return(scope: Scope, receive: Receive, send: Send) -> None:
    if argument(scope) != "early":
        await send({"type": "websocket.accept"})


async def ws_flood(scope: Scope, receive: Receive, send: Send) -> None:
    """Send messages of 64 KiB without an end, and note how many were taken."""
    await send({"type": "websocket.accept"})
    number = 0
    with open(argument(scope), "wb", buffering=0) as file:
        try:
            while True:
                await send({"type": "websocket.send", "bytes": BLOCK})
                number += 1
                os.pwrite(file.fileno(), b"%9d" % number, 0)
        except OSError:
            os.pwrite(file.fileno(), b"   closed", 0)
            raise


async def ws_sink(scope: Scope, receive: Receive, send: Send) -> None:
    """Accept, stand at the gate, then count what has come until an empty message."""
    await send({"type": "websocket.accept"})
    await wait_at_gate()
    total = 0
    while (event := await receive())["type"] == "websocket.receive" and (event.get("bytes") or event.get("text")):
        total += len(event.get("bytes") or event["text"])
    await send({"type": "websocket.send", "text": str(total)})


async def ws_gate(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer the handshake behind the gate."""
    await wait_at_gate()
    await ws_echo(scope, receive, send)


SOCKETS: dict[str, Deed] = {
    "/": ws_echo,
    "/offer": ws_offer,
    "/deny": ws_deny,
    "/deny-with": ws_deny_with,
    "/deny-at-length": ws_deny_at_length,
    "/deny-midway": ws_deny_midway,
    "/hesitate": ws_hesitate,
    "/close": ws_close,
    "/raise": ws_fail,
    "/return": ws_return,
    "/flood": ws_flood,
    "/sink": ws_sink,
    "/gate": ws_gate,
}


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Do the deed of the path."""
    if scope["type"] == "lifespan":
        await live(scope, receive, send)
        return
    deeds = DEEDS if scope["type"] == "http" else SOCKETS
    if scope["type"] == "websocket":
        assert (await receive())["type"] == "websocket.connect"
    if scope["path"] in deeds:
        await deeds[scope["path"]](scope, receive, send)
    elif scope["type"] == "http":
        await say(send, answer(await request_of(scope, receive)))
    else:
        await send({"type": "websocket.close"})


async def live(scope: Scope, receive: Receive, send: Send) -> None:
    """Begin and end as the environment has it: LIFESPAN is a word of a test, LIFESPAN_MARK a file for its end."""
    how = os.environ.get("LIFESPAN", "")
    if how == "raise":
        raise RuntimeError("no lifespan here")
    assert (await receive())["type"] == "lifespan.startup"
    if how == "fail":
        await send({"type": "lifespan.startup.failed", "message": "the database is not there"})
        return
    if how == "fail-and-raise":  # as Starlette does
        try:
            raise RuntimeError("the database is not there")
        except RuntimeError:
            await send({"type": "lifespan.startup.failed", "message": traceback.format_exc()})
            raise
    if how == "raise-late":
        raise RuntimeError("began, and gave up")
    if how == "gate":
        await wait_at_gate()
    if how == "eager":
        asyncio.get_running_loop().set_task_factory(getattr(asyncio, "eager_task_factory"))  # noqa: B009 - from 3.12 on
    scope["state"]["shared"] = []
    await send({"type": "lifespan.startup.complete"})
    assert (await receive())["type"] == "lifespan.shutdown"
    if mark := os.environ.get("LIFESPAN_MARK"):
        with open(mark, "a") as file:
            file.write(f"shut down after {len(scope['state']['shared'])}\n")
    if how == "shutdown-fails":
        await send({"type": "lifespan.shutdown.failed", "message": "the database did not close"})
    else:
        await send({"type": "lifespan.shutdown.complete"})
    await outlive(how, receive)


async def outlive(how: str, receive: Receive) -> None:
    """Do something behind the answer to lifespan.shutdown."""
    if how == "ask-again":
        await receive()
    if how == "close-behind":
        await asyncio.sleep(0.05)
        print("closed behind it")
    if how == "never-return":
        await asyncio.Event().wait()

"""The ASGI twin of web.py, and what only ASGI can: one path, one deed, its argument in the query; WebSockets, too."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
import traceback
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, unquote_to_bytes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    Scope = dict[str, Any]
    Receive = Callable[[], Awaitable[dict[str, Any]]]
    Send = Callable[[dict[str, Any]], Awaitable[None]]
    Deed = Callable[[Scope, Receive, Send], Awaitable[None]]

HELLO = b"hello over HTTP\n"
BLOCK = bytes(range(256)) * 256  # 64 KiB
TEXT = [(b"content-type", b"text/plain")]
EVENTS = [(b"content-type", b"text/event-stream")]


def argument(scope: Scope) -> str:
    return unquote(scope["query_string"].decode("ascii"))


async def start(send: Send, status: int = 200, headers: Iterable[tuple[bytes, bytes]] = TEXT, **more: object) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [*headers], **more})


async def give(send: Send, body: bytes = b"", *, more: bool = False) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


async def answer(send: Send, body: bytes, status: int = 200, headers: Iterable[tuple[bytes, bytes]] = TEXT) -> None:
    await start(send, status, headers)
    await give(send, body)


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


async def hello(_: Scope, receive: Receive, send: Send) -> None:
    await answer(send, HELLO, headers=[*TEXT, (b"content-length", b"%d" % len(HELLO))])


async def show_scope(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer what the application is told, as JSON."""
    text = json.dumps(scope, default=lambda value: value.decode("latin1"))
    await answer(send, text.encode(), headers=[(b"content-type", b"application/json")])


async def say_back(_: Scope, receive: Receive, send: Send) -> None:
    await answer(send, await body_of(receive))


async def say_back_at_once(_: Scope, receive: Receive, send: Send) -> None:
    """Answer each piece as it comes."""
    await start(send)
    more = True
    while more:
        message = await receive()
        more = message.get("more_body", False)
        await give(send, message.get("body", b""), more=more)


async def measure(_: Scope, receive: Receive, send: Send) -> None:
    total, more = 0, True
    while more:
        message = await receive()
        assert message["type"] == "http.request", message
        total += len(message["body"])
        more = message["more_body"]
    await answer(send, b"%d" % total)


async def be_big(scope: Scope, receive: Receive, send: Send) -> None:
    await answer(send, BLOCK * int(argument(scope)))


async def stream(scope: Scope, receive: Receive, send: Send) -> None:
    await start(send)
    for _ in range(int(argument(scope))):
        await give(send, BLOCK, more=True)
    await give(send)


async def send_file(scope: Scope, receive: Receive, send: Send) -> None:
    await start(send)
    await send({"type": "http.response.pathsend", "path": argument(scope)})


async def never_end(scope: Scope, receive: Receive, send: Send) -> None:
    """Stream until the client leaves; the query names a file for the mark."""
    await start(send)
    try:
        while True:
            await give(send, BLOCK, more=True)
    except OSError:
        note(scope, "closed")
        raise


async def fail(_: Scope, receive: Receive, send: Send) -> None:
    raise RuntimeError("a secret of the application")


async def fail_late(_: Scope, receive: Receive, send: Send) -> None:
    await start(send)
    await give(send, BLOCK, more=True)
    raise RuntimeError("a secret of the application")


async def promise(scope: Scope, receive: Receive, send: Send) -> None:
    await answer(send, b"0123456789", headers=[(b"content-length", scope["query_string"])])


async def split(scope: Scope, receive: Receive, send: Send) -> None:
    said = unquote_to_bytes(scope["query_string"])
    await answer(send, b"", headers=[(b"x-said", said), (b"content-length", b"0")])


async def be_silent(_: Scope, receive: Receive, send: Send) -> None:
    await answer(send, b"", 204, ())


async def pass_gate(scope: Scope, receive: Receive, send: Send) -> None:
    """Stand at the test's gate (tests/support/gate.py) until it opens, then greet."""
    await wait_at_gate()
    await hello(scope, receive, send)


async def wait_at_gate() -> None:
    host, _, port = os.environ["GATE_ADDRESS"].rpartition(":")
    try:
        reader, writer = await asyncio.open_connection(host, int(port))
        await reader.read(1)
        writer.close()
    except ConnectionError:
        pass  # open


async def work(scope: Scope, receive: Receive, send: Send) -> None:
    await asyncio.sleep(float(argument(scope)))
    await hello(scope, receive, send)


async def block(scope: Scope, receive: Receive, send: Send) -> None:
    """Keep the whole loop waiting."""
    time.sleep(float(argument(scope)))
    await hello(scope, receive, send)


async def spin_forever(_: Scope, receive: Receive, send: Send) -> None:
    while True:
        pass


async def say_pid(_: Scope, receive: Receive, send: Send) -> None:
    await answer(send, b"%d" % os.getpid())


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
    await hello(scope, receive, send)
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
    await hello(scope, receive, send)


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
        await hello(scope, receive, send)
    note(scope, "answered")


async def return_early(_: Scope, receive: Receive, send: Send) -> None:
    """Break the protocol: no response."""


async def return_midway(_: Scope, receive: Receive, send: Send) -> None:
    await start(send)
    await give(send, b"a part", more=True)


async def say_too_much(_: Scope, receive: Receive, send: Send) -> None:
    await hello(_, receive, send)
    await give(send, b"more")


async def trail(_: Scope, receive: Receive, send: Send) -> None:
    await start(send, trailers=True)
    await give(send, b"body")
    await send({"type": "http.response.trailers", "headers": [(b"x-sum", b"4")]})


async def hint(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.early_hint", "links": [b"</a.css>; rel=preload", b"</b.js>; rel=preload"]})
    await hello(scope, receive, send)


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
    await answer(send, b"%d %d" % (scope["state"]["own"], len(scope["state"]["shared"])))


async def be_slow_to_read(scope: Scope, receive: Receive, send: Send) -> None:
    """Take a piece of the body, stand at the gate, take the rest."""
    first = await receive()
    await wait_at_gate()
    rest = await body_of(receive) if first["more_body"] else b""
    await answer(send, b"%d" % (len(first["body"]) + len(rest)))


async def count_sent(scope: Scope, receive: Receive, send: Send) -> None:
    """Stream so many blocks, and note how many of them were taken each time."""
    await start(send)
    count, path = argument(scope).split(" ")
    with open(path, "wb", buffering=0) as file:
        for number in range(int(count)):
            await give(send, BLOCK, more=True)
            os.pwrite(file.fileno(), b"%9d" % (number + 1), 0)
    await give(send)


DEEDS: dict[str, Deed] = {
    "/": hello,
    "/scope": show_scope,
    "/echo": say_back,
    "/echo-at-once": say_back_at_once,
    "/length": measure,
    "/big": be_big,
    "/stream": stream,
    "/file": send_file,
    "/endless": never_end,
    "/raise": fail,
    "/raise-late": fail_late,
    "/promise": promise,
    "/split": split,
    "/204": be_silent,
    "/gate": pass_gate,
    "/work": work,
    "/block": block,
    "/spin": spin_forever,
    "/pid": say_pid,
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
    "/count": count_sent,
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
        await answer(send, b"no such deed\n", 404)
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

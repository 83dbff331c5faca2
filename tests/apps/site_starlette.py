"""A small site in Starlette, with the same paths as those beside it, events and a WebSocket."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request
    from starlette.websockets import WebSocket

FILE = Path(__file__).with_name("web.py")
DONE: list[str] = []


async def hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"hello {request.query_params.get('name', 'you')}")


async def form(request: Request) -> PlainTextResponse:
    given = await request.form()
    return PlainTextResponse("&".join(f"{key}={value}" for key, value in sorted(given.items())))


async def upload(request: Request) -> PlainTextResponse:
    given: Any = (await request.form())["file"]
    return PlainTextResponse(f"{given.filename} {len(await given.read())}")


async def say_json(request: Request) -> JSONResponse:
    return JSONResponse(await request.json())


async def stream(_: Request) -> StreamingResponse:
    async def lines() -> AsyncIterator[bytes]:
        for number in range(10):
            yield b"line %d\n" % number

    return StreamingResponse(lines(), media_type="text/plain")


async def file(_: Request) -> FileResponse:
    return FileResponse(FILE)


async def cookie(request: Request) -> PlainTextResponse:
    visits = int(request.cookies.get("visits", 0)) + 1
    answer = PlainTextResponse(str(visits))
    answer.set_cookie("visits", str(visits))
    answer.set_cookie("second", "x")
    return answer


async def fail(_: Request) -> PlainTextResponse:
    raise RuntimeError("a secret of the application")


async def later(request: Request) -> PlainTextResponse:
    """Say what was done in the background, and do one thing more."""
    return PlainTextResponse(" ".join(DONE), background=BackgroundTask(DONE.append, request.query_params["what"]))


async def tick(_: Request) -> EventSourceResponse:
    async def events() -> AsyncIterator[dict[str, str]]:
        number = 0
        while True:
            yield {"data": str(number)}
            number += 1
            await asyncio.sleep(0.02)

    return EventSourceResponse(events())


async def endless(_: Request) -> StreamingResponse:
    async def blocks() -> AsyncIterator[bytes]:
        while True:
            yield bytes(65536)

    return StreamingResponse(blocks())


async def chat(socket: WebSocket) -> None:
    await socket.accept()
    async for text in socket.iter_text():
        await socket.send_text(text)


site = Starlette(
    routes=[
        Route("/", hello),
        Route("/form", form, methods=["POST"]),
        Route("/upload", upload, methods=["POST"]),
        Route("/json", say_json, methods=["POST"]),
        Route("/stream", stream),
        Route("/file", file),
        Route("/cookie", cookie),
        Route("/fail", fail),
        Route("/later", later),
        Route("/tick", tick),
        Route("/endless", endless),
        WebSocketRoute("/chat", chat),
    ]
)

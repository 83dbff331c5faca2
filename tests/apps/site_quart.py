"""A small site in Quart, with the same paths as those beside it, and a WebSocket."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from quart import Quart, Response, jsonify, request, send_file, websocket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

FILE = Path(__file__).with_name("web.py")

site = Quart(__name__)


@site.get("/")
async def hello() -> str:
    return f"hello {request.args.get('name', 'you')}"


@site.post("/form")
async def form() -> str:
    return "&".join(f"{key}={value}" for key, value in sorted((await request.form).items()))


@site.post("/upload")
async def upload() -> str:
    given = (await request.files)["file"]
    return f"{given.filename} {len(given.read())}"


@site.post("/json")
async def say_json() -> Any:
    return jsonify(await request.get_json())


@site.get("/stream")
async def stream() -> Response:
    async def lines() -> AsyncIterator[bytes]:
        for number in range(10):
            yield b"line %d\n" % number

    return Response(lines(), content_type="text/plain")


@site.get("/file")
async def file() -> Any:
    return await send_file(FILE)


@site.get("/cookie")
async def cookie() -> Response:
    visits = int(request.cookies.get("visits", 0)) + 1
    answer = Response(str(visits))
    answer.set_cookie("visits", str(visits))
    answer.set_cookie("second", "x")
    return answer


@site.get("/fail")
async def fail() -> str:
    raise RuntimeError("a secret of the application")


@site.websocket("/chat")
async def chat() -> None:
    while True:
        await websocket.send(await websocket.receive())

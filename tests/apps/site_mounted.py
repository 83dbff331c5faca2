"""A FastAPI site that is mounted somewhere, with a site of its own below: each says where it believes to be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import PlainTextResponse
from fastapi.staticfiles import StaticFiles


def where(request: Request) -> dict[str, str]:
    """The site's view of the request's address, and the addresses that it would give others."""
    return {
        "url": str(request.url),
        "base": str(request.base_url),
        "item": str(request.url_for("item", name="c")),
        "root_path": request.scope["root_path"],
        "path": request.scope["path"],
        "raw_path": request.scope["raw_path"].decode("ascii"),
    }


async def item(request: Request, name: str) -> dict[str, str]:
    return {**where(request), "name": name}


async def talk(socket: WebSocket, name: str) -> None:
    await socket.accept()
    await socket.send_json({"name": name, "url": str(socket.url), "path": socket.scope["path"]})
    await socket.close()


def site(*, docs: bool) -> FastAPI:
    made = FastAPI(docs_url="/docs" if docs else None)
    made.get("/items/{name}", name="item")(item)
    made.websocket("/talk/{name}")(talk)
    return made


app = site(docs=True)
app.mount("/below", site(docs=False))
app.mount("/static", StaticFiles(directory=Path(__file__).parent), name="static")


async def told(scope: Any, receive: Any, send: Any) -> None:
    """Answer the path, whatever it is."""
    if scope["type"] != "http":
        raise ValueError("no lifespan")
    await PlainTextResponse(scope["path"])(scope, receive, send)

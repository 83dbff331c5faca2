"""A small site in Litestar, with the same paths as those beside it, a lifespan and a WebSocket."""

from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from litestar import Litestar, MediaType, Request, Response, get, head, post, websocket_listener
from litestar.response import File, Stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

FILE = Path(__file__).with_name("web.py")


@asynccontextmanager
async def lifespan(app: Litestar) -> Any:
    app.state.greeting = "hello"
    yield
    print("litestar ends")


@get("/", media_type=MediaType.TEXT, sync_to_thread=True)
def hello(request: Request[Any, Any, Any], name: str = "you") -> str:
    """In a thread, as it is no coroutine."""
    return f"{request.app.state.greeting} {name}"


@head("/", media_type=MediaType.TEXT)
async def hello_head() -> None: ...


@post("/form", media_type=MediaType.TEXT, status_code=200)
async def form(request: Request[Any, Any, Any]) -> str:
    given = await request.form()
    return "&".join(f"{key}={value}" for key, value in sorted(given.items()))


@post("/upload", media_type=MediaType.TEXT, status_code=200)
async def upload(request: Request[Any, Any, Any]) -> str:
    given: Any = (await request.form())["file"]
    return f"{given.filename} {len(await given.read())}"


@post("/json", status_code=200)
async def say_json(data: dict[str, Any]) -> dict[str, Any]:
    return data


@get("/stream")
async def stream() -> Stream:
    async def lines() -> "AsyncIterator[bytes]":
        for number in range(10):
            yield b"line %d\n" % number

    return Stream(lines(), media_type="text/plain")


@get("/file")
async def file() -> File:
    return File(FILE)


@get("/cookie")
async def cookie(request: Request[Any, Any, Any]) -> Response[str]:
    visits = int(request.cookies.get("visits", 0)) + 1
    answer = Response(str(visits), media_type=MediaType.TEXT)
    answer.set_cookie("visits", str(visits))
    answer.set_cookie("second", "x")
    return answer


@get("/fail")
async def fail() -> None:
    raise RuntimeError("a secret of the application")


@websocket_listener("/chat")
async def chat(data: str) -> str:
    return data


site = Litestar(
    [hello, hello_head, form, upload, say_json, stream, file, cookie, fail, chat],
    lifespan=[lifespan],
    openapi_config=None,
)

"""A small site in FastAPI, with the same paths as those beside it, a lifespan and a WebSocket."""

from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import Cookie, FastAPI, Request, UploadFile, WebSocket
from fastapi.responses import FileResponse, PlainTextResponse, StreamingResponse

FILE = Path(__file__).with_name("web.py")


@asynccontextmanager
async def lifespan(_: FastAPI) -> Any:
    print("fastapi begins")
    yield {"greeting": "hello"}
    print("fastapi ends")


site = FastAPI(lifespan=lifespan)


@site.api_route("/", methods=["GET", "HEAD"])
def hello(request: Request, name: str = "you") -> PlainTextResponse:
    """In a thread, as it is no coroutine."""
    return PlainTextResponse(f"{request.state.greeting} {name}")


@site.post("/form")
async def form(request: Request) -> PlainTextResponse:
    given = await request.form()
    return PlainTextResponse("&".join(f"{key}={value}" for key, value in sorted(given.items())))


@site.post("/upload")
async def upload(file: UploadFile) -> PlainTextResponse:
    return PlainTextResponse(f"{file.filename} {len(await file.read())}")


@site.post("/json")
async def say_json(given: dict[str, Any]) -> dict[str, Any]:
    return given


@site.get("/stream")
async def stream() -> StreamingResponse:
    return StreamingResponse((b"line %d\n" % number for number in range(10)), media_type="text/plain")


@site.get("/file")
async def file() -> FileResponse:
    return FileResponse(FILE)


@site.get("/cookie")
async def cookie(visits: int = Cookie(0)) -> PlainTextResponse:
    answer = PlainTextResponse(str(visits + 1))
    answer.set_cookie("visits", str(visits + 1))
    answer.set_cookie("second", "x")
    return answer


@site.get("/fail")
async def fail() -> None:
    raise RuntimeError("a secret of the application")


@site.websocket("/chat")
async def chat(socket: WebSocket) -> None:
    await socket.accept()
    async for text in socket.iter_text():
        await socket.send_text(text)

"""A small site in Bottle, with the same paths as those beside it (see tests/engines/test_frameworks.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bottle import Bottle, request, response, static_file

FILE = Path(__file__).with_name("web.py")

site = Bottle()


@site.get("/")
def hello() -> str:
    return f"hello {request.query.getunicode('name') or 'you'}"


@site.post("/form")
def form() -> str:
    return "&".join(f"{key}={request.forms.getunicode(key)}" for key in sorted(request.forms))


@site.post("/upload")
def upload() -> str:
    given = request.files["file"]
    return f"{given.filename} {len(given.file.read())}"


@site.post("/json")
def json() -> Any:
    return request.json


@site.get("/stream")
def stream() -> Any:
    response.content_type = "text/plain"
    return (b"line %d\n" % number for number in range(10))


@site.get("/file")
def file() -> Any:
    return static_file(FILE.name, root=str(FILE.parent))


@site.get("/cookie")
def cookie() -> str:
    visits = int(request.get_cookie("visits", "0")) + 1
    response.set_cookie("visits", str(visits))
    response.set_cookie("second", "x")
    return str(visits)


@site.get("/fail")
def fail() -> str:
    raise RuntimeError("a secret of the application")

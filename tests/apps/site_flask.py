"""A small site in Flask, with the same paths as those beside it (see tests/engines/test_frameworks.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flask import Flask, jsonify, make_response, request, send_file

FILE = Path(__file__).with_name("web.py")

site = Flask(__name__, static_folder=None)


@site.get("/")
def hello() -> str:
    return f"hello {request.args.get('name', 'you')}"


@site.post("/form")
def form() -> str:
    return "&".join(f"{key}={value}" for key, value in sorted(request.form.items()))


@site.post("/upload")
def upload() -> str:
    given = request.files["file"]
    return f"{given.filename} {len(given.read())}"


@site.post("/json")
def json() -> Any:
    return jsonify(request.get_json())


@site.get("/stream")
def stream() -> Any:
    return site.response_class((b"line %d\n" % number for number in range(10)), mimetype="text/plain")


@site.get("/file")
def file() -> Any:
    return send_file(FILE)


@site.get("/cookie")
def cookie() -> Any:
    visits = int(request.cookies.get("visits", 0)) + 1
    answer = make_response(str(visits))
    answer.set_cookie("visits", str(visits))
    answer.set_cookie("second", "x")
    return answer


@site.get("/fail")
def fail() -> str:
    raise RuntimeError("a secret of the application")

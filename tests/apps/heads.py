"""Answers with the head that the query asks for, and says which fields of the request it was given.

The query is JSON, quoted: a status, and pairs of name and value. The body is JSON: an object of the names as the
interface spells them. A WebSocket is accepted with these fields, or, if the status is not 101, denied.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import unquote
from wsgiref.validate import validator

from prefork.http.limits import phrase


def _asked(query: str) -> tuple[int, list[tuple[str, str]]]:
    status, *headers = json.loads(unquote(query) or "[200]")
    return status, [(name, value) for name, value in headers]


def wsgi(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    status, headers = _asked(environ["QUERY_STRING"])
    start_response(f"{status} {phrase(status)}", headers)
    return [json.dumps({key: text for key, text in environ.items() if key.startswith("HTTP_")}).encode()]


def _echo(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [body or b"nothing"]


validated = validator(_echo)


async def _has_come(receive: Any) -> bool:
    """Wait for the end of the request's body; whether it came, and the client did not leave."""
    while (message := await receive())["type"] == "http.request":
        if not message["more_body"]:
            return True
    return False


async def asgi(scope: dict[str, Any], receive: Any, send: Any) -> None:
    assert scope["type"] != "lifespan", "there is none"
    status, headers = _asked(scope["query_string"].decode("ascii"))
    pairs = [(name.encode("latin1"), value.encode("latin1")) for name, value in headers]
    body = json.dumps({name.decode("latin1"): value.decode("latin1") for name, value in scope["headers"]}).encode()
    kind = "http" if scope["type"] == "http" else "websocket.http"
    if kind == "websocket.http":
        await receive()
        if status == 101:
            await send({"type": "websocket.accept", "headers": pairs})
            await send({"type": "websocket.send", "bytes": body})
            return
    elif not await _has_come(receive):
        return
    await send({"type": f"{kind}.response.start", "status": status, "headers": pairs})
    await send({"type": f"{kind}.response.body", "body": body})

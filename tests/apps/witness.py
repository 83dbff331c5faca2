"""Says back what a request was taken for: the same over WSGI and over ASGI."""

from __future__ import annotations

import json
from typing import Any


def _account(method: str, path: str, query: str, host: str, body: bytes) -> bytes:
    return json.dumps([method, path, query, host, len(body), body[:1000].decode("latin1")]).encode()


def wsgi(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    body = environ["wsgi.input"].read()
    path = environ["PATH_INFO"].encode("latin1").decode("utf-8", "replace") or "*"  # which is no path, says CGI
    start_response("200 OK", [("Content-Type", "application/json")])
    host = environ.get("HTTP_HOST", "")
    return [_account(environ["REQUEST_METHOD"], path, environ["QUERY_STRING"], host, body)]


async def asgi(scope: dict[str, Any], receive: Any, send: Any) -> None:
    assert scope["type"] == "http", "websockets are denied, and there is no lifespan"
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message["body"]
        more = message["more_body"]
    host = next((value.decode("latin1") for name, value in scope["headers"] if name == b"host"), "")
    account = _account(scope["method"], scope["path"], scope["query_string"].decode("latin1"), host, body)
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"Content-Type", b"application/json")]},
    )
    await send({"type": "http.response.body", "body": account})

"""The `scope` of ASGI: what holds for a listener, and what a connection and its request add to it. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote_to_bytes

if TYPE_CHECKING:
    from prefork.http.fields import Field
    from prefork.http.forwarded import Origin
from prefork.http.head import Request

Scope = dict[str, Any]
Headers = list[tuple[bytes, bytes]]

_ASGI = {"version": "3.0", "spec_version": "2.5"}
_FROM_1_1: Scope = {"http.response.pathsend": {}, "http.response.early_hint": {}}
_FROM_1_0: Scope = {"http.response.pathsend": {}}
_WEBSOCKET: Scope = {"websocket.http.response": {}}


def for_listener(*, server: tuple[str, int | None], scheme: str, root_path: str) -> Scope:
    """Prepare what is the same for all requests of a listener.

    `server`: address and port, or the path of a Unix socket and None. `scheme`: http or https. `root_path`: where the
    application is mounted, decoded; "" or with a slash before it and none behind.
    """
    return {
        "type": "http",
        "asgi": _ASGI,
        "http_version": "1.1",
        "server": server,
        "client": None,
        "scheme": scheme,
        "root_path": root_path,
        "query_string": b"",
    }


class Scopes:
    """The scopes of one connection's requests. `client`: None on a Unix socket, where it has no address.

    A client that keeps its connection sends the same fields again; the parser then gives the very same list of them,
    and what they become is remembered (measured: 0.9 us less for a browser's request). Until then nothing is: most
    connections wait for a next request.
    """

    __slots__ = ("_client", "_fields", "_headers", "_listener", "_tls", "_trailers")

    def __init__(self, listener: Scope, client: tuple[str, int] | None) -> None:
        self._listener = listener
        self._client = client
        self._fields: list[Field] | None = None
        self._headers: Headers | None = None
        self._trailers = False  # the client takes them
        self._tls: Scope | None = None

    def secure(self, tls: Scope) -> None:
        """The connection is under TLS: tell it in all scopes (the extension `tls`)."""
        self._tls = {"tls": tls}

    def of(self, request: Request, state: Scope) -> Scope:
        """Return a new scope for one request. `state`: of the lifespan; it is copied."""
        scope = self._listener.copy()
        scope["client"] = self._client
        scope["method"] = request.method
        path = scope["raw_path"] = request.path
        scope["path"] = unquote_to_bytes(path).decode("utf-8", "replace") if b"%" in path else path.decode()  # ASCII
        if scope["root_path"]:
            _mount(scope, scope["root_path"])
        if request.query:
            scope["query_string"] = request.query
        fields = request.fields
        if fields is not self._fields:
            self._fields, self._headers = fields if request.plain else None, None
            headers = scope["headers"] = [(name.lower, value) for name, value in fields]
            self._trailers = any(name == b"te" and b"trailers" in value.lower() for name, value in headers)
        else:
            if self._headers is None:
                self._headers = [(name.lower, value) for name, value in fields]
            scope["headers"] = self._headers.copy()
        if request.minor:
            extensions = scope["extensions"] = _FROM_1_1.copy()
            if self._trailers:
                extensions["http.response.trailers"] = {}
        else:
            scope["http_version"] = "1.0"
            extensions = scope["extensions"] = _FROM_1_0.copy()
        if self._tls is not None:
            extensions.update(self._tls)
        scope["state"] = state.copy()
        return scope


def _mount(scope: Scope, root_path: str) -> None:
    """Let the path begin with the root path (asgiref #229), whether or not a proxy has taken that away.

    A path that begins with it is left alone, so a proxy that takes it away must not serve `/api/api` below `/api`.
    """
    path: str = scope["path"]
    if path.startswith("/") and path != root_path and not path.startswith(root_path + "/"):
        scope["path"] = root_path + path
        scope["raw_path"] = quote(root_path).encode("ascii") + scope["raw_path"]


def apply_forwarded(scope: Scope, origin: Origin) -> None:
    """Put the client in the place of the trusted proxies that stand before it."""
    if origin.address != (scope["client"] or ("unix:",))[0]:
        scope["client"] = (origin.address, origin.port)
    if origin.scheme:
        scope["scheme"] = origin.scheme
    if origin.host:
        scope["headers"] = [(name, origin.host if name == b"host" else value) for name, value in scope["headers"]]


def of_websocket(scope: Scope, subprotocols: list[str]) -> Scope:
    """Make the scope of a request that of the WebSocket which its connection becomes."""
    del scope["method"]
    scope["type"] = "websocket"
    scope["scheme"] = "wss" if scope["scheme"] == "https" else "ws"
    scope["subprotocols"] = subprotocols
    extensions = scope["extensions"]
    scope["extensions"] = {**_WEBSOCKET, **{name: extensions[name] for name in ("tls",) if name in extensions}}
    return scope

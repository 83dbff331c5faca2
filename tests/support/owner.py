"""The application that owns its worker (tests/apps/owner.py) in each kind, and a client for it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.client import dial, read_to_end
from tests.support.server import APPS

if TYPE_CHECKING:
    from tests.support.server import RunningServer

OWNER = APPS / "owner.py"
Kind = tuple[str, ...]  # the application and its options


def _kind(name: str, *options: str) -> Kind:
    return (f"{OWNER}:{name}", *options)


STREAM, WSGI, ASGI = _kind("handle", "--threads", "4"), _kind("wsgi"), _kind("asgi")
KINDS = {
    "stream": STREAM,
    "coroutine": _kind("talk"),
    "coroutine-asyncio": _kind("talk", "--loop", "asyncio"),
    "protocol": _kind("Talk"),
    "protocol-asyncio": _kind("Talk", "--loop", "asyncio"),
    "wsgi": WSGI,
    "wsgi-threads": _kind("wsgi", "--threads", "2"),
    "asgi": ASGI,
    "asgi-asyncio": _kind("asgi", "--loop", "asyncio"),
}
EACH_KIND = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
EACH_ENGINE = pytest.mark.parametrize("kind", [STREAM, WSGI, ASGI], ids=["stream", "wsgi", "asgi"])
LOOPS = pytest.mark.parametrize("kind", [KINDS[name] for name in ("coroutine", "protocol-asyncio", "asgi")])


def question(kind: Kind, deed: str) -> bytes:
    """What a client sends to ask for a deed."""
    if kind[0].endswith(("wsgi", "asgi")):
        path = deed.replace(" ", "/")
        return f"GET /{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
    return f"{deed}\n".encode()


def ask(server: RunningServer, kind: Kind, deed: str, *, timeout_s: float = 10.0) -> str:
    """Ask for a deed on a connection of its own; return the answer once the server has ended the connection."""
    with dial(server.address, timeout_s=timeout_s) as client:
        client.sendall(question(kind, deed))
        answer = read_to_end(client)
    return answer.rpartition(b"\r\n\r\n")[2].decode()


def links(pid: int, *, kinds: tuple[str, ...] = ("socket:", "pipe:")) -> set[str]:
    """What the descriptors of a process lead to, but for its standard streams: what two processes can share."""
    found, standard = set(), set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            link = os.readlink(entry)
        except OSError:
            continue  # closed meanwhile
        (standard if int(entry.name) <= 2 else found).add(link)
    return {link for link in found - standard if link.startswith(kinds)}

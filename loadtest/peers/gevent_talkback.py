"""Talkback on gevent's StreamServer, a greenlet for each connection: `python gevent_talkback.py HOST PORT`.

TCP_NODELAY is set on the listener, from which connections inherit it.
"""

from __future__ import annotations

import sys
from typing import Any

from gevent import socket
from gevent.server import StreamServer

GREETING = b"hello from prefork\n"
BACKLOG = 2048


def talkback(client: Any, _address: object) -> None:
    client.sendall(GREETING)
    line = b""
    while b"\n" not in line and (data := client.recv(65536)):
        line += data
    client.sendall(b"you said: " + line.partition(b"\n")[0].removesuffix(b"\r") + b"\n")


def main() -> None:
    host, port = sys.argv[1:]
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.bind((host, int(port)))
    listener.listen(BACKLOG)
    StreamServer(listener, talkback).serve_forever()


main()

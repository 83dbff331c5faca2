"""Talkback on the standard library's own concurrent servers: `python socketserver_talkback.py fork|thread HOST PORT`.

As one would write it from the library's page, but for the accept queue: the library's five places would overflow
under any load, and then retransmitted SYNs would be measured instead of the server.
"""

from __future__ import annotations

import socketserver
import sys

BACKLOG = 2048


class Talkback(socketserver.StreamRequestHandler):
    disable_nagle_algorithm = True

    def handle(self) -> None:
        self.wfile.write(b"hello from prefork\n")
        line = self.rfile.readline().rstrip(b"\r\n")
        self.wfile.write(b"you said: " + line + b"\n")


class Forking(socketserver.ForkingTCPServer):
    allow_reuse_address = True
    request_queue_size = BACKLOG


class Threading(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    request_queue_size = BACKLOG
    daemon_threads = True


def main() -> None:
    kind, host, port = sys.argv[1:]
    server = {"fork": Forking, "thread": Threading}[kind]
    with server((host, int(port)), Talkback) as running:
        running.serve_forever()


main()

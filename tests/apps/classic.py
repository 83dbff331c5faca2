"""socketserver handlers as their users wrote them: nothing here knows of prefork."""

from __future__ import annotations

import socketserver


class Shout(socketserver.StreamRequestHandler):
    """Answer one line in capitals, with the client's address."""

    def handle(self) -> None:
        line = self.rfile.readline().strip()
        self.wfile.write(line.upper() + b" " + self.client_address[0].encode() + b"\n")


class EveryLine(socketserver.StreamRequestHandler):
    """Answer every line until the client ends."""

    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line[::-1].strip() + b"\n")


class Raw(socketserver.BaseRequestHandler):
    """Use the socket itself; setup and finish run around handle."""

    def setup(self) -> None:
        self.request.sendall(b"setup ")

    def handle(self) -> None:
        data = self.request.recv(1024)
        self.request.sendall(data.strip())

    def finish(self) -> None:
        self.request.sendall(b" finish\n")


class Impatient(socketserver.StreamRequestHandler):
    """Has a timeout of its own, as socketserver offers it."""

    timeout = 0.2

    def handle(self) -> None:
        try:
            self.rfile.readline()
        except TimeoutError:
            self.wfile.write(b"too slow\n")


class Fails(socketserver.BaseRequestHandler):
    """Raises in handle; finish runs all the same."""

    def handle(self) -> None:
        raise ValueError("a classic failure")

    def finish(self) -> None:
        self.request.sendall(b"finished\n")

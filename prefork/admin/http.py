"""ADMIN. One client: a request in, an answer out, the end. Nothing here waits, and nobody stays beyond a deadline."""

from __future__ import annotations

import select
import socket
import time

from prefork.admin.admin_answers import Answer, Answers
from prefork.http.limits import Limits
from prefork.http.parser import RequestParser
from prefork.http.refusal import phrase
from prefork.http.request import Request
from prefork.http.response import error_response, stamp

CLIENT_S = 5.0  # for the request, and again for the answer
LINGER_S = 1.0  # to read the answer's end, while what still comes is thrown away: close(2) would reset it
_LINGER_BYTES = 1 << 20
_CHUNK = 16384


class AdminClient:
    """ADMIN. `until_s`: when to lose patience; `interest`: what to wait for; `over`: close it."""

    def __init__(self, sock: socket.socket, now_s: float) -> None:
        self.sock = sock
        self.until_s = now_s + CLIENT_S
        self.interest = select.EPOLLIN
        self.over = False
        self.asked = False  # its request was understood, or refused
        self._parser = RequestParser(Limits())
        self._unsent = b""
        self._left = _LINGER_BYTES
        sock.setblocking(False)

    def attend(self, answers: Answers, now_s: float) -> None:
        """Its socket is ready. Raises what goes wrong with an answer."""
        try:
            if self.interest == select.EPOLLOUT:
                self._send(now_s)
                return
            data = self.sock.recv(_CHUNK)
            if not data:
                self.over = True
            elif self.asked:
                self._left -= len(data)
                self.over = self._left < 0
            elif events := self._parser.feed(data):
                self._answer(events[0], answers, now_s)
        except BlockingIOError:
            pass
        except OSError:
            self.over = True  # it has gone

    def fail(self, now_s: float) -> None:
        """There is no answer, by a fault of ours."""
        self._say(error_response(500, stamp(time.time())), now_s)

    def close(self) -> None:
        """End it."""
        self.sock.close()

    def _answer(self, event: object, answers: Answers, now_s: float) -> None:
        self.asked = True
        if isinstance(event, Request):
            head = event.method == "HEAD"
            self._say(_written(answers.answer(event.method, event.path), head=head), now_s)
        else:
            self._say(error_response(getattr(event, "status", 400), stamp(time.time())), now_s)

    def _say(self, response: bytes, now_s: float) -> None:
        self.asked = True
        self._unsent = response
        self.until_s = now_s + CLIENT_S
        self.interest = select.EPOLLOUT
        try:
            self._send(now_s)
        except BlockingIOError:
            pass
        except OSError:
            self.over = True

    def _send(self, now_s: float) -> None:
        self._unsent = self._unsent[self.sock.send(self._unsent) :]
        if not self._unsent:
            self.sock.shutdown(socket.SHUT_WR)
            self.until_s = now_s + LINGER_S
            self.interest = select.EPOLLIN


def _written(answer: Answer, *, head: bool) -> bytes:
    fields = [
        ("Content-Type", answer.kind),
        ("Content-Length", str(len(answer.body))),
        ("Connection", "close"),
        ("Cache-Control", "no-store"),
        ("X-Content-Type-Options", "nosniff"),
        *answer.fields,
    ]
    lines = [f"HTTP/1.1 {answer.status} {phrase(answer.status)}", *(f"{name}: {value}" for name, value in fields), ""]
    return "\r\n".join(lines).encode("latin1") + stamp(time.time()) + (b"" if head else answer.body)

"""MASTER. The protocol of the control socket, and one client of it: a line of JSON in, lines of JSON out, then the end.

In:  {"command": "scale", "workers": 8}
Out: {"progress": "6 of 8 workers serve"}, any number of times; then {"ok": true, "answer": {...}} or
     {"ok": false, "error": "why not"}.

A command is a generator (CommandSteps). Each turn of the master's loop takes one step of it: it yields Progress,
returns the answer, or raises RefusedError with the reason why there is none. The first step carries the command out,
the others only watch it, so a client that leaves early undoes nothing. Nothing here blocks, and every
client has a deadline: a request that is not finished, or an answer that is not read, within CLIENT_S ends the
conversation.
"""

from __future__ import annotations

import json
import select
import socket
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from prefork.errors import PreforkError

REQUEST_MOST = 64 * 1024  # bytes
CLIENT_S = 10.0
HEARTBEAT_S = 5.0  # at least one line in this time: otherwise the client takes the master for stopped

_NEVER = float("inf")


class RefusedError(PreforkError):
    """A command cannot be done, or was not: the message is for the user."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a command has come, and when to look again if nothing else happens (monotonic seconds)."""

    text: str
    wake_s: float = _NEVER


@dataclass(frozen=True, slots=True)
class Peer:
    """The process at the other end, as the kernel reports it (unix(7), SO_PEERCRED)."""

    pid: int
    uid: int

    def __str__(self) -> str:
        return f"pid {self.pid} uid {self.uid}"


Request = dict[str, Any]
CommandSteps = Generator[Progress, None, dict[str, Any]]


class Conversation:
    """MASTER. One control client. `until_s` is its deadline, `wake_s` when to call `step` at the latest."""

    def __init__(self, sock: socket.socket, peer: Peer, now_s: float) -> None:
        self.sock = sock
        self.peer = peer
        self.until_s = now_s + CLIENT_S
        self.over = False
        self._request = bytearray()
        self._command: CommandSteps | None = None
        self._answered = False
        self._unsent = bytearray()
        self._told = ""
        self._heartbeat_s = _NEVER
        self._command_s = _NEVER
        sock.setblocking(False)

    @property
    def wake_s(self) -> float:
        """The next deadline (monotonic seconds)."""
        return min(self.until_s, self._command_s, _NEVER if self._unsent else self._heartbeat_s)

    @property
    def interest(self) -> int:
        """The events for epoll; it reports a closed connection in any case."""
        if self._unsent:
            return select.EPOLLOUT
        return 0 if self._command or self._answered else select.EPOLLIN

    # --- in

    def receive(self, execute: Callable[[Request, Peer], CommandSteps], now_s: float) -> None:
        """Read what has come; at the end of the line, start the command."""
        if self._command or self._answered:
            return
        try:
            chunk = self.sock.recv(REQUEST_MOST)
        except BlockingIOError:
            return
        except OSError:
            self.over = True
            return
        self._request += chunk
        line, newline, _rest = self._request.partition(b"\n")
        if len(line) > REQUEST_MOST:
            self.refuse(f"the request is longer than {REQUEST_MOST} bytes", now_s)
        elif newline or (line and not chunk):  # the end of a half-closed connection ends a line too
            self._begin(bytes(line), execute, now_s)
        elif not chunk:
            self.over = True  # it only checked whether a server is here

    def _begin(self, line: bytes, execute: Callable[[Request, Peer], CommandSteps], now_s: float) -> None:
        try:
            request = json.loads(line.decode())
            if not isinstance(request, dict):
                raise ValueError("it is not an object")
        except (ValueError, RecursionError) as error:
            self.refuse(f'a request is one line of JSON such as {{"command": "status"}}: {error}', now_s)
            return
        self.until_s = _NEVER
        self._command = execute(request, self.peer)
        self._heartbeat_s = now_s + HEARTBEAT_S
        self.step(now_s)

    # --- out

    def step(self, now_s: float) -> None:
        """Take the next step of the command; send pending output. Raises what a faulty command raises."""
        if self._command is not None:
            try:
                progress = next(self._command)
            except StopIteration as done:
                self._finish({"ok": True, "answer": done.value}, now_s)
            except RefusedError as refusal:
                self.refuse(str(refusal), now_s)
            else:
                self._command_s = progress.wake_s
                self._say(progress.text, now_s)
        self.flush(now_s)
        if now_s >= self.until_s:
            self._time_out(now_s)

    def _say(self, text: str, now_s: float) -> None:
        if (text == self._told and now_s < self._heartbeat_s) or self._unsent:
            return
        self._told, self._heartbeat_s = text, now_s + HEARTBEAT_S
        self._send({"progress": text}, now_s)

    def refuse(self, reason: str, now_s: float) -> None:
        """Answer with the reason, and end."""
        self._finish({"ok": False, "error": reason}, now_s)

    def _finish(self, line: dict[str, Any], now_s: float) -> None:
        self._command, self._answered = None, True
        self._heartbeat_s = self._command_s = _NEVER
        self.until_s = now_s + CLIENT_S
        self._send(line, now_s)

    def _send(self, line: dict[str, Any], now_s: float) -> None:
        if not self._unsent:
            self.until_s = now_s + CLIENT_S
        self._unsent += json.dumps(line).encode() + b"\n"
        self.flush(now_s)

    def flush(self, now_s: float) -> None:
        """Send as much as the client takes."""
        try:
            while self._unsent:
                del self._unsent[: self.sock.send(self._unsent)]
                self.until_s = now_s + CLIENT_S
        except BlockingIOError:
            return  # it does not read: its deadline is running
        except OSError:
            self.over = True  # it has gone
        if self._command is not None:
            self.until_s = _NEVER  # the command has a deadline of its own
        self.over = self.over or self._answered

    def _time_out(self, now_s: float) -> None:
        if self._answered or self._command is not None:
            self.over = True  # it does not read
        else:
            self.refuse(f"no request came within {CLIENT_S:g} s", now_s)
            self.over = True

    def close(self) -> None:
        """Close the connection. A command that was begun goes on, unwatched."""
        if self._command is not None:
            self._command.close()
        self.sock.close()

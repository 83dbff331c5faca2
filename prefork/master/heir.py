"""MASTER, the new one of an upgrade. What the master before left to it, and the channel on which it is given.

The estate comes in one environment variable, which is removed at once: descriptors of the listeners and of the pid
file, the generation, and one end of a SOCK_SEQPACKET pair. On that the heir says `ready` (and what it took), or why it
failed, and then waits for `yours`. Until that word everything is the old master's: this one neither unlinks a path nor
drains a queue, and says nothing to the service manager. The end of the channel without it means that the old master
died: then there is nobody else, and the heir takes over as well.

The other side is upgrade.py.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import MutableMapping
from typing import Any

from prefork.core.listener import Listener
from prefork.core.pidfile import PidFile

VARIABLE = "PREFORK_INHERITED"
MESSAGE_MOST = 16384  # bytes


class Heir:
    """MASTER, the new one. Made by `of`; `granted` says when the estate is its own."""

    def __init__(self, estate: dict[str, Any]) -> None:
        self.predecessor: int = estate["master"]  # pid
        self._generation: int = estate["generation"]
        self._scaled: tuple[int, int] = (estate["configured"], estate["workers"])
        self._listeners: list[dict[str, Any]] = estate["listeners"]  # entries that were not taken
        self._pid_file: tuple[str, int] | None = tuple(estate["pid_file"]) if estate["pid_file"] else None
        self._took: list[int] = []  # descriptors, by their numbers in the old master
        self._channel = socket.socket(fileno=estate["channel"])
        self._channel.set_inheritable(False)
        self._channel.setblocking(False)
        self.owner = False  # `yours` was said

    @classmethod
    def of(cls, environ: MutableMapping[str, str]) -> Heir | None:
        """Read the variable, if there is one that is meant for this very process."""
        try:
            estate = json.loads(environ.pop(VARIABLE, "{}"))
            return cls(estate) if estate["heir"] == os.getpid() else None
        except (ValueError, TypeError, KeyError, OSError):
            return None  # not written by upgrade.py

    @property
    def activated(self) -> list[str]:
        """How the listeners that the service manager had passed are named in `Listener.bind`."""
        return [entry["bind"] for entry in self._listeners if entry["activated"]]

    def follows(self, configured: int) -> tuple[int, int]:
        """How many workers to have, and the generation to count on from.

        The workers are as configured, unless that is as it was and the old master was scaled. At least one, else nobody
        would see whether the new version serves.
        """
        before, now = self._scaled
        return (max(1, now) if configured == before else configured), self._generation

    def take(self, bind: str) -> list[Listener]:
        """The listeners that were asked for by these words: one, or one a slot; none if the old master had none."""
        entries: dict[int | None, dict[str, Any]] = {}  # by slot
        for entry in list(self._listeners):
            if entry["bind"] == bind and entry["slot"] not in entries:  # the same words may stand for two, as port 0
                entries[entry["slot"]] = entry
                self._listeners.remove(entry)
                self._took.append(entry["fd"])
        return [Listener.inherit(entry) for entry in entries.values()]

    def take_pid_file(self, path: str) -> PidFile | None:
        """The pid file, if the old master holds one of that path."""
        if self._pid_file is None or not path or os.path.abspath(path) != self._pid_file[0]:
            return None
        (path, fd), self._pid_file = self._pid_file, None
        self._took.append(fd)
        return PidFile.inherit(path, fd)

    def leave_the_rest(self) -> None:
        """Close what the configuration has no use for any more: it stays the old master's."""
        for entry in self._listeners:
            Listener.inherit(entry).close()
        if self._pid_file is not None:
            os.close(self._pid_file[1])
        self._listeners, self._pid_file = [], None

    # --- the channel

    def fds(self) -> list[int]:
        """What is readable when the old master has spoken or died."""
        return [] if self.owner else [self._channel.fileno()]

    def ready(self) -> None:
        """All workers accept: ask for the estate."""
        self._say({"ready": True, "took": self._took})

    def failed(self, reason: str) -> None:
        """Say why there will be no upgrade."""
        self._say({"ready": False, "reason": reason[: MESSAGE_MOST // 8]})

    def granted(self) -> bool:
        """True once, when the estate has become ours. Never blocks."""
        if self.owner:
            return False
        try:
            self._channel.recv(MESSAGE_MOST)
        except BlockingIOError:
            return False
        except ConnectionResetError:
            pass  # it died, with a word of ours unread
        self.owner = True
        self._channel.close()
        return True

    def drop(self) -> None:
        """CHILD: close what only the master may hold."""
        self._channel.close()

    def _say(self, message: dict[str, Any]) -> None:
        try:
            self._channel.send(json.dumps(message).encode())
        except OSError:
            pass  # the old master died: `granted` sees that

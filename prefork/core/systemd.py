"""MASTER. The service manager: sockets that it made for us (sd_listen_fds(3)) and what it is told (sd_notify(3)).

Both are plain protocols of environment variables; they are taken out of the environment when they are read, so that
neither workers nor the programs they start mistake them for their own. Without the variables nothing happens.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections import deque
from collections.abc import MutableMapping

from prefork.core.address import Address
from prefork.core.log import Log
from prefork.errors import BindError

FIRST_FD = 3  # sd_listen_fds(3), SD_LISTEN_FDS_START
ACTIVATED = "LISTEN_FDS "  # begins Listener.bind of a socket that was passed; the number follows
_RETRY_S = 0.1
# The manager's queue is full, or we are out of descriptors or memory: try again.
_PASSES = frozenset({errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_UNSENT_MOST = 16
_NEVER = float("inf")


def activated(environ: MutableMapping[str, str], log: Log) -> list[Address]:
    """The sockets that were passed to this very process, as `fd://N`; LISTEN_* leave the environment.

    Raises BindError if the variables make no sense.
    """
    pid, count, names = (environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if not pid and not count:
        return []
    if not (_is_number(pid) and _is_number(count)):
        raise BindError(f"cannot use the sockets passed to us: LISTEN_PID={pid!r} LISTEN_FDS={count!r} are not numbers")
    if int(pid) != os.getpid():
        advice = "start prefork with exec, not as a child of a script"
        log.warning("passed sockets ignored", listen_pid=pid, reason="they are for another process", advice=advice)
        return []
    fds = range(FIRST_FD, FIRST_FD + int(count))
    if names:
        log.debug("sockets passed", **dict(zip(names.split(":"), fds, strict=False)))
    return [Address(socket.AF_UNSPEC, fd=fd) for fd in fds]


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 10


class Notifier:
    """MASTER. Says how the service is. Nothing blocks, and a manager that does not listen costs us nothing."""

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        self._place = environ.pop("NOTIFY_SOCKET", "")
        watchdog, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        ours = _is_number(watchdog) and int(watchdog) > 0 and pid in ("", str(os.getpid()))
        self._watchdog_usec = int(watchdog) if ours and self._place else 0
        self._beat_s = 0.0  # when the next WATCHDOG=1 is due
        self._unsent: deque[bytes] = deque(maxlen=_UNSENT_MOST)
        self._silent = False  # another master speaks

    def environment(self, pid: int) -> dict[str, str]:
        """The variables as they were, for a process of that pid which takes our place."""
        found = {"NOTIFY_SOCKET": self._place} if self._place else {}
        if self._watchdog_usec:
            found |= {"WATCHDOG_USEC": str(self._watchdog_usec), "WATCHDOG_PID": str(pid)}
        return found

    def mute(self, silent: bool) -> None:
        """Send no notifications while another master sends them."""
        self._silent = silent

    # --- what there is to say

    def ready(self, status: str) -> None:
        """The service is up, or the reload is over."""
        self._say("READY=1", f"STATUS={status}", f"MAINPID={os.getpid()}")

    def reloading(self) -> None:
        """A reload begins; `ready` ends it, also when it was abandoned."""
        self._say("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", "STATUS=reloading")

    def stopping(self, status: str) -> None:
        """The service is going down."""
        self._say("STOPPING=1", f"STATUS={status}")

    def handing_over(self, pid: int) -> None:
        """Another process is the service's main one from now on; it speaks, we are silent."""
        self._say(f"MAINPID={pid}")
        self._silent = True

    def hand_over_failed(self) -> None:
        """That other process is gone: this one is the main one after all."""
        self._silent = False
        self._say(f"MAINPID={os.getpid()}")

    def tick(self, now_s: float) -> float:
        """Send the watchdog heartbeat, if WatchdogSec= is set; return when to call again."""
        self._flush()
        if self._watchdog_usec and not self._silent and now_s >= self._beat_s:
            self._beat_s = now_s + self._watchdog_usec / 2e6
            self._say("WATCHDOG=1")
        wakes = [_NEVER]
        if self._watchdog_usec and not self._silent:
            wakes.append(self._beat_s)
        if self._unsent:
            wakes.append(now_s + _RETRY_S)
        return min(wakes)

    def _say(self, *lines: str) -> None:
        if self._place and not self._silent:
            self._unsent.append("\n".join(line.replace("\n", " ") for line in lines).encode("utf-8", "replace"))
            self._flush()

    def _flush(self) -> None:
        """Send pending messages in order. Try again if the queue is full; drop them if no manager listens."""
        place = "\0" + self._place[1:] if self._place.startswith("@") else self._place  # abstract, unix(7)
        try:
            while self._unsent:
                with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                    sock.setblocking(False)
                    sock.sendto(self._unsent[0], place)
                self._unsent.popleft()
        except OSError as error:
            if error.errno not in _PASSES:
                self._unsent.clear()  # the manager is gone, or the variable was never meant for us

"""MASTER. An upgrade: a new version takes over without a gap. The old master has `Upgrade`, the new one `Takeover`.

1. USR2: the old master forks and executes its own command line, with the listeners, the pid file and one end of a
   channel. The new master loads the new code and starts workers of its own, which accept beside the old ones on the
   same sockets.
2. The new one says `ready`: the service manager is told its pid, it is sent `yours`, and the old one retires its
   workers. The queues are the new one's from then on, so nothing is drained and nothing held off.
3. It fails, or is not ready in time: it is told to stop, which loses nothing, as its workers finish what they hold and
   the queues stay the old one's. If it fails by itself, they give idle connections to the old one's workers. A stop of
   the old master on the way ends it likewise.

The new master starts as the old one did: folder, umask, no signal blocked or ignored, the environment as it was. What
it inherits comes in one environment variable, which is removed at once: descriptors of the listeners and of the pid
file, the generation, and its end of the channel, a SOCK_SEQPACKET pair. Until `yours` everything is the old master's:
the new one neither unlinks a path nor drains a queue, and says nothing to the service manager. The end of the channel
without that word means that the old master died: then there is nobody else, and the new one takes over as well.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prefork.core.listener import Listener
from prefork.core.log import Log, printable
from prefork.core.pidfile import PidFile
from prefork.core.privileges import WorkingDirectory
from prefork.core.process import Exit, spawn
from prefork.core.signals import TABLE
from prefork.core.systemd import ACTIVATED, Notifier
from prefork.master.children import Children
from prefork.runtime.master_link import NO_MESSAGE
from prefork.runtime.orders import GRACE_MARGIN_S
from prefork.runtime.transfer import VERSION, TransferQueue

# --- The new master

VARIABLE = "PREFORK_INHERITED"
MESSAGE_MOST = 16384  # bytes


class Takeover:
    """MASTER, the new one. Made by `of`; `granted` says when what it inherited is its own."""

    def __init__(self, inherited: dict[str, Any]) -> None:
        self.predecessor: int = inherited["master"]  # pid
        self._generation: int = inherited["generation"]
        self._scaled: tuple[int, int] = (inherited["configured"], inherited["workers"])
        self._listeners: list[dict[str, Any]] = inherited["listeners"]  # entries that were not taken
        self._pid_file: tuple[str, int] | None = tuple(inherited["pid_file"]) if inherited["pid_file"] else None
        transfer = _items(inherited.get("transfer"))
        self._transfer = (transfer[0], transfer[1]) if len(transfer) == 2 else None
        self._took: list[int] = []  # descriptors, by their numbers in the old master
        self._channel = socket.socket(fileno=inherited["channel"])
        self._channel.set_inheritable(False)
        self._channel.setblocking(False)
        self.owner = False  # `yours` was said

    @classmethod
    def of(cls, environ: MutableMapping[str, str]) -> Takeover | None:
        """Read the variable, if there is one that is meant for this very process."""
        try:
            inherited = json.loads(environ.pop(VARIABLE, "{}"))
            return cls(_checked(inherited)) if inherited["successor"] == os.getpid() else None
        except (ValueError, TypeError, KeyError, OSError, RecursionError, OverflowError):
            return None  # not written by Upgrade

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

    @property
    def shares_transfer(self) -> bool:
        """Whether the old master's workers take connections that ours give."""
        return self._transfer is not None

    def transfer(self) -> TransferQueue:
        """The queue of connections that change hands; one of our own if the old master knows none."""
        return TransferQueue(self._transfer)

    def take_pid_file(self, path: str) -> PidFile | None:
        """The pid file, if the old master holds one of that path."""
        if self._pid_file is None or not path or os.path.abspath(path) != self._pid_file[0]:
            return None
        path, fd = self._pid_file
        self._pid_file = None
        self._took.append(fd)
        return PidFile.inherit(path, fd)

    def leave_the_rest(self) -> None:
        """Close what the configuration has no use for any more: it stays the old master's."""
        for entry in self._listeners:
            Listener.inherit(entry).close()
        if self._pid_file is not None:
            os.close(self._pid_file[1])
        self._listeners = []
        self._pid_file = None

    # --- the channel

    def fds(self) -> list[int]:
        """What is readable when the old master has sent `yours` or died."""
        return [] if self.owner else [self._channel.fileno()]

    def ready(self, *, takes: bool) -> None:
        """All workers accept: ask to take over. `takes`: they take idle connections, too."""
        self._send({"ready": True, "took": self._took, "reads": [VERSION] if takes else []})

    def failed(self, reason: str) -> None:
        """Tell the old master why the upgrade fails."""
        self._send({"ready": False, "reason": reason[: MESSAGE_MOST // 8]})

    def granted(self) -> bool:
        """True once, when what was inherited has become ours. Never blocks."""
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

    def close_in_child(self) -> None:
        """CHILD: close what only the master may hold."""
        self._channel.close()

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self._channel.send(json.dumps(message).encode())
        except OSError:
            pass  # the old master died: `granted` sees that


# --- The old master


CANNOT_EXEC = 127  # exit code, as of a shell
_NEVER = float("inf")
# What Python ignores in every process of its own; ignored signals stay so through exec.
_IGNORED = (signal.SIGPIPE, signal.SIGXFSZ)


@dataclass(frozen=True, slots=True)
class NewMasterReady:
    """The new master is ready, and has these descriptors of ours in use. `takes`: its workers take our connections."""

    pid: int
    fds: frozenset[int]
    takes: bool


def _read(pid: int, data: bytes) -> tuple[NewMasterReady | None, str]:
    """What a new master says: that it is ready, or why it fails."""
    try:
        said = json.loads(data)
    except (ValueError, RecursionError):
        said = None
    match said:
        case {"ready": True, "took": [*fds]} if all(type(fd) is int for fd in fds):
            versions = [item for item in _items(said.get("reads")) if type(item) is int]
            return NewMasterReady(pid, frozenset(fds), takes=VERSION in versions), ""
        case {"ready": False, "reason": str(reason)}:
            return None, printable(reason[:MESSAGE_MOST])
    return None, f"{NO_MESSAGE}: {printable(data[:40].decode('ascii', 'replace'))}"


@dataclass(slots=True, kw_only=True)
class Upgrade:
    """MASTER, the old one. `started_in`: the folder and umask that this process was started with."""

    log: Log
    children: Children
    started_in: WorkingDirectory
    notifier: Notifier
    boot_timeout_s: float
    graceful_timeout_s: float
    new_master: int | None = None  # pid, from the fork until it was reaped or has taken over
    done: bool = False  # it has taken over
    _channel: socket.socket | None = field(default=None, repr=False)
    _lent: frozenset[int] = frozenset()  # the descriptors that it has
    _reason: str = ""  # why it is to fail, once that is so
    _until_s: float = _NEVER  # to be ready; then, to be gone

    @property
    def running(self) -> bool:
        """True from the fork until the new master has taken over or is gone."""
        return self.new_master is not None and not self.done

    def refusal(self, *, ready: bool, stopping: bool, reloading: bool, from_python: bool) -> str | None:
        """Why there can be no upgrade now."""
        obstacles = {
            "this is process 1, whose end is the container's end: replace the container": os.getpid() == 1,
            "the app is an object of this process: there is no command line to start anew": from_python,
            "the server is stopping": stopping,
            f"an upgrade to pid {self.new_master} is under way": self.running,
            "the server is still starting": not ready,
            "a reload is under way": reloading,
        }
        return next((reason for reason, so in obstacles.items() if so), None)

    # --- the start

    def begin(
        self,
        listeners: Sequence[Listener],
        pid_file: PidFile | None,
        *,
        transfer: tuple[int, int],
        generation: int,
        configured: int,
        workers: int,
    ) -> None:
        """Start the new master. Raises OSError if the system has no process or descriptor left."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        inherited = {
            "master": os.getpid(),
            "generation": generation,
            "configured": configured,
            "workers": workers,
            "transfer": list(transfer),
            "listeners": [{**each.export(), "activated": each.bind.startswith(ACTIVATED)} for each in listeners],
            "pid_file": [pid_file.path, pid_file.fd] if pid_file is not None else None,
            "channel": theirs.fileno(),
        }
        try:
            self.new_master = spawn(lambda: self._exec(inherited, theirs))
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        self.children.register(self.new_master, self._exited)
        self._channel = ours
        self._lent = frozenset(_descriptors(inherited))
        self._reason = ""
        self._until_s = time.monotonic() + self.boot_timeout_s
        self.log.info("upgrading", successor=self.new_master)

    def _exec(self, inherited: dict[str, Any], channel: socket.socket) -> int:
        """CHILD. Become the new master; returns only if that cannot be."""
        try:
            for fd in _descriptors(inherited):
                os.set_inheritable(fd, True)
            self.started_in.restore()
            pid = os.getpid()
            environ = dict(os.environ) | self.notifier.environment(pid)
            environ[VARIABLE] = json.dumps({**inherited, "successor": pid})
            for signum in (*TABLE, *_IGNORED):
                signal.signal(signum, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environ)  # noqa: S606 - no shell is wanted
        except OSError as error:
            reason = f"cannot start {sys.executable} in {self.started_in.folder or 'a folder that is gone'}: {error}"
            channel.send(json.dumps({"ready": False, "reason": reason}).encode())
        return CANNOT_EXEC

    # --- until its end

    def fds(self) -> list[int]:
        """What is readable when the new master has sent a message."""
        return [self._channel.fileno()] if self._channel is not None and not self._reason else []

    def step(self, now_s: float) -> NewMasterReady | None:
        """Read the new master's message, and keep its deadlines. Returns what to hand over, when it is ready."""
        if not self._reason and (data := self._receive()):
            ready, reason = _read(self.new_master or 0, data)
            if ready is not None and ready.fds <= self._lent:
                return ready
            self.cancel(reason or "it took descriptors that it was not given", now_s)
        if self.running and now_s >= self._until_s:
            if self._reason:
                self.kill()
            else:
                self.cancel(f"not ready within --boot-timeout {self.boot_timeout_s:g} s", now_s)
        return None

    @property
    def wake_s(self) -> float:
        """When to call `step` at the latest."""
        return self._until_s if self.running else _NEVER

    def cancel(self, reason: str, now_s: float) -> None:
        """Tell the new master to stop; its workers finish their connections."""
        if self.running and self.new_master is not None:
            self._reason = self._reason or reason
            self._until_s = now_s + self.graceful_timeout_s + 2 * GRACE_MARGIN_S
            os.kill(self.new_master, signal.SIGTERM)

    def kill(self) -> None:
        """End it at once, and its workers with it."""
        if self.running and self.new_master is not None:
            self._until_s = _NEVER
            os.kill(self.new_master, signal.SIGKILL)

    def grant(self) -> bool:
        """Hand over: the new master is told, and from now on this one is as good as gone. False if it just died."""
        assert self.new_master is not None
        assert self._channel is not None
        self.notifier.handing_over(self.new_master)  # first: the new one's own words are heard only after that
        try:
            self._channel.send(b"yours")
        except OSError:
            self.notifier.hand_over_failed()
            return False
        self._close()
        self.done = True
        self.log.info("handed over", successor=self.new_master)
        return True

    def _exited(self, child: Exit) -> None:
        if not self.done:
            if not self._reason and (data := self._receive()):  # its last word
                self._reason = _read(child.pid, data)[1]
            reason = self._reason or f"it died of {child}"
            self.log.error("upgrade failed", successor=child.pid, reason=reason, serving="the old version")
            self._close()
        self.new_master = None

    def close_in_child(self) -> None:
        """CHILD: close what only the master may hold."""
        if self._channel is not None:
            self._channel.close()

    def _receive(self) -> bytes:
        """What the new master has sent; nothing if there is nothing yet, or it has ended."""
        if self._channel is None:
            return b""
        try:
            data = self._channel.recv(MESSAGE_MOST)
        except OSError:
            return b""  # nothing yet; or its end, which is told by SIGCHLD
        if not data:
            self._close()
        return data

    def _close(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None


def _checked(inherited: dict[str, Any]) -> dict[str, Any]:
    """The variable, if it is as `Upgrade` writes it. Raises ValueError, TypeError or KeyError if it is not."""
    for number in ("master", "generation", "configured", "workers", "channel"):
        _whole(inherited[number])
    for number in _items(inherited.get("transfer")):
        _whole(number)
    match inherited["pid_file"]:
        case None | [str(), int()]:
            pass
        case _:
            raise ValueError("no pid file")
    for entry in inherited["listeners"]:
        match entry:
            case {
                "bind": str(),
                "address": str(),
                "activated": bool(),
                "owned": bool(),
                "slot": None | int(),
                "inode": None | [int(), int()],
                "hold": None | {"members": int(), "fd": int()},
            }:
                _whole(entry["fd"])
            case _:
                raise ValueError("no listener")
    return inherited


def _items(value: Any) -> list[Any]:
    """The items of a list that other versions do not know of."""
    return value if isinstance(value, list) else []


def _whole(value: Any) -> None:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no number from 0")


def _descriptors(inherited: dict[str, Any]) -> list[int]:
    """Every descriptor that the new master is to have."""
    fds = [inherited["channel"], *inherited["transfer"], *(entry["fd"] for entry in inherited["listeners"])]
    holds = [entry["hold"] for entry in inherited["listeners"] if entry["hold"]]
    fds += [hold["fd"] for hold in holds if hold["fd"] >= 0]
    return fds + ([inherited["pid_file"][1]] if inherited["pid_file"] else [])

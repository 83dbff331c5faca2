"""WORKER, TEMPLATE. What a process that the application forks has of ours: nothing.

fork(2) copies every descriptor. A copy of a connection keeps it open when we have closed it, a copy of a listener keeps
the port bound after the server has ended, and whoever changes a copy of an epoll changes the one epoll that both
processes have. So in each child that Python code forks (os.fork, multiprocessing; os.register_at_fork calls us):

- the number of each descriptor of ours gets another file: an unconnected socket; in place of an epoll, an empty epoll.
  It is not closed, as its number would be given to a file of the application, which a finalizer of ours would close.
- the scoreboard is replaced by private memory, so that nothing is counted twice;
- what it prints, and the log, go to the descriptors that the server was given, and no longer to copies that wait for
  nobody (core/log.py): a child that redirects its standard streams keeps none of ours open;
- signals mean what they mean in plain Python, except for those that the application has handlers for;
- the title says whose child it is.

A child that returns from the application into the server is ended: it would serve its parent's clients.

Which descriptors are ours: those that `own` was told of, and every socket whose own address is that of a listener, as
is that of each connection that was accepted. They are looked for in the child, so that a connection costs nothing.

Programs that are executed have none of it (O_CLOEXEC). A fork in C calls no hook: engines therefore shut a connection
down, and take it out of their epoll, before they close it.
"""

from __future__ import annotations

import _socket
import ctypes
import errno
import faulthandler
import mmap
import os
import select
import signal
import socket
import sys
from _thread import get_ident
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import setproctitle

from prefork.core import process
from prefork.core.libc import libc
from prefork.core.listener import Listener
from prefork.core.log import Log
from prefork.core.signals import FAULT

RETURNED = 70  # exit code of a child that has returned into the server: EX_SOFTWARE of sysexits.h
_EPOLL = "anon_inode:[eventpoll]"
_MEMORY = "/memfd:prefork"
_NEEDED = 3  # descriptors: what takes the place of ours, and the list of those that are open
_LOOPS_OWN = (_EPOLL, "anon_inode:[eventfd]", "anon_inode:[io_uring]", "pipe:")
_epoll = getattr(select, "epoll", None)  # now, as gevent takes it away; then such a process cannot serve
_MAP_FIXED = 0x10  # linux/mman.h; the mmap module has no name for it
_Name = tuple[int, Any]  # family and address of a socket


class Forks:
    """WORKER, TEMPLATE. There is one in a process, `OURS`. `forked`: this process is a child of the application."""

    def __init__(self) -> None:
        self.forked = False
        self.on_fork: list[Callable[[], None]] = []  # called in such a child, when nothing of ours is left in it
        self._hooked = False
        self._fds: dict[int, str] = {}  # with what each leads to: libuv has renewed some of its own by then
        self.listeners: Sequence[Listener] = ()
        self._handlers: dict[int, Any] = {}  # by signal: the handler of ours
        self._boards: list[tuple[int, int]] = []  # address and size of the memory that we share
        self._spares: list[int] = []
        self._masks: dict[int, set[int | signal.Signals]] = {}  # by thread that forks: what it blocks otherwise
        self._log: Log | None = None
        self._who = ""

    def begin(self, who: str, log: Log, listeners: Sequence[Listener]) -> None:
        """Begin to watch for forks. `who`: this process, as its children are named after it."""
        self._who, self._log, self.listeners = who, log, listeners
        self.forked = False
        self._fds = {}
        self._handlers = {}
        self._boards = []
        self.on_fork = []
        if not self._hooked:
            self._hooked = True
            # Held now, and given up in the child, which needs as many: there may be none left then.
            self._spares = [os.eventfd(0, os.EFD_CLOEXEC) for _ in range(_NEEDED)]
            os.register_at_fork(before=self._before, after_in_parent=self._unblock, after_in_child=self._after_in_child)

    def own(self, *fds: int) -> None:
        """Note descriptors of ours that stay open for the life of the process."""
        self._fds.update((fd, _kind(fd)) for fd in fds)

    def own_loop(self, before: set[int]) -> None:
        """Note what an event loop has opened for itself since `before` (`open_descriptors`)."""
        for fd in open_descriptors() - before:
            kind = _kind(fd)
            if kind.startswith(_LOOPS_OWN) or (kind.startswith("socket:") and _name(fd) == (int(socket.AF_UNIX), "")):
                self._fds[fd] = kind

    def own_memory(self, memory: mmap.mmap) -> None:
        """Note memory of ours that is shared with other processes."""
        self._boards.append((ctypes.addressof(ctypes.c_char.from_buffer(memory)), len(memory)))

    def own_handlers(self, signums: Iterable[int]) -> None:
        """Note that the handlers that these signals have now are ours."""
        self._handlers.update((signum, signal.getsignal(signum)) for signum in signums)

    def _before(self) -> None:
        """Block signals: one that came to the child too early would go to a handler of ours, and be lost.

        The mask is noted first, as a handler of the application may raise, here or in what follows.
        """
        if process.forking != get_ident():
            self._masks.setdefault(get_ident(), signal.pthread_sigmask(signal.SIG_BLOCK, ()))
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())

    def _unblock(self) -> None:
        if (mask := self._masks.pop(get_ident(), None)) is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    # --- in the child

    def _after_in_child(self) -> None:
        try:
            if process.forking == get_ident() or self._log is None:
                return  # it is our own fork
            if not self.forked:
                self.forked = True
                self._become_foreign(self._log)
            self._log.identify(child_of=self._who.split(" gen=")[0], pid=os.getpid())
        finally:
            self._unblock()
            self._masks.clear()  # of threads that are not here

    def _become_foreign(self, log: Log) -> None:
        for step in (log.share, self._drop_descriptors, self._drop_memory, self._drop_signals):
            try:
                step()
            except OSError as error:  # the others matter none the less
                log.error("a forked child keeps something of the server", reason=error.strerror)
        setproctitle.setproctitle(f"prefork: child of {self._who}")
        for callback in self.on_fork:
            callback()

    def _drop_descriptors(self) -> None:
        timeout_s = _socket.getdefaulttimeout()
        _socket.setdefaulttimeout(None)  # else each object made here would change the socket, for both processes
        try:
            self._replace_descriptors({_name(listener.sock.fileno()) for listener in self.listeners})
        finally:
            _socket.setdefaulttimeout(timeout_s)

    def _replace_descriptors(self, names: set[_Name | None]) -> None:
        while self._spares:
            os.close(self._spares.pop())
        nothing = _socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        assert _epoll is not None
        empty = _epoll()
        for fd in open_descriptors() - {nothing.fileno(), empty.fileno()}:
            kind = _kind(fd)
            ours = kind == self._fds.get(fd) or kind.startswith(_MEMORY)
            if ours or (kind.startswith("socket:") and _is_at(_name(fd), names)):
                os.dup2(empty.fileno() if kind == _EPOLL else nothing.fileno(), fd, inheritable=False)
        empty.close()
        nothing.close()

    def _drop_memory(self) -> None:
        remap = libc.mmap
        remap.restype = ctypes.c_void_p
        remap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED
        for address, size in self._boards:
            remap(address, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)

    def _drop_signals(self) -> None:
        for signum, handler in self._handlers.items():
            if signal.getsignal(signum) == handler:
                signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)
        faulthandler.enable(file=2)  # no longer into the pipe to the master
        faulthandler.unregister(FAULT)
        wakeup_fd = signal.set_wakeup_fd(-1)
        if wakeup_fd >= 0 and wakeup_fd not in self._fds:  # the application's
            with suppress(ValueError):  # as uvloop leaves it while it starts a program
                signal.set_wakeup_fd(wakeup_fd)

    def end(self, error: BaseException | None = None) -> None:
        """End a child that has come back from the application to the server, by this exception if there is one.

        SystemExit is no mistake: the child ends as it wants to. Functions registered with atexit do not run.
        """
        assert self._log is not None
        code = RETURNED
        if isinstance(error, SystemExit):
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
            if code and code != error.code:
                print(error.code, file=sys.stderr)
        elif error is not None and not (isinstance(error, OSError) and error.errno == errno.ENOTCONN):
            code = 1  # not for the answer that it has tried to give on what stands in for its connection
            self._log.error("a child that the application forked has failed", exc=error)
        else:
            self._log.warning("a child that the application forked has returned into the server: it is ended")
        process.flush_output()
        os._exit(code & 0xFF)


OURS = Forks()


def open_descriptors() -> set[int]:
    """Return the numbers of the descriptors that this process has open."""
    return {fd for fd in map(int, os.listdir("/proc/self/fd")) if _kind(fd)}  # not the one of the list itself


def _kind(fd: int) -> str:
    """Return what a descriptor is, as /proc names it (`socket:[4711]`); empty if it is closed."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""


def _name(fd: int) -> _Name | None:
    """Return the family and the own address of a socket; None if it has none."""
    try:
        sock = _socket.socket(fileno=fd)
    except OSError:
        return None
    try:
        return int(sock.family), sock.getsockname()
    except OSError:
        return None
    finally:
        sock.detach()


def _is_at(name: _Name | None, listeners: set[_Name | None]) -> bool:
    """Return whether a socket with this address is a listener of ours, or a connection that one has accepted."""
    if name is None or name[0] not in (socket.AF_INET, socket.AF_INET6):
        return name is not None and name in listeners
    family, (host, port, *_) = name
    return any(
        each is not None and each[0] == family and each[1][1] == port and each[1][0] in (host, "0.0.0.0", "::")  # noqa: S104
        for each in listeners
    )

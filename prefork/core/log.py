"""The log: one line an event, `TIME LEVEL [worker=2 gen=1 pid=4242] event key=value`, or the same as a JSON object.

Built on the standard `logging` (logger "prefork"), so an application can add handlers of its own. Our handler writes
each line with one write(2): lines of several processes do not mix, and no lock is held across a fork. A line that
cannot be written (disk full, pipe closed, reader stuck) is dropped and counted, and the next line that can be written
says how many were lost: logging never fails a request.
"""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import socket
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import write  # bound now: eventlet replaces it, and gevent takes poll away
from select import POLLOUT, poll
from typing import Any, BinaryIO, cast

from prefork.core.privileges import Identity
from prefork.errors import ConfigError

# --- Writing to a descriptor whose reader may be stuck: a log in a pipe that nobody reads must not stop the service.
#
# O_NONBLOCK belongs to the open file description, which standard error shares with other programs, so it is never set
# there. A pipe or terminal is opened once more, as a description of our own (/proc/self/fd, proc(5)): by the master, as
# that of another user can then be written to by workers. A socket is asked for each write not to wait (MSG_DONTWAIT); a
# file does not wait. Where a pipe cannot be opened again, poll(2) says before each small write whether it has room.


WAIT_S = 0.1  # a reader that lags a little is waited for as long as this, and no longer in any second
_SMALL = 4096  # bytes that a pipe with room takes at once (pipe(7), PIPE_BUF)
_REPORT_S = 1.0
_NEWLINE = 0x0A


class LogWriter:
    """Writes lines and other output. `lost` counts the writes that were lost, whole or in part, `lost_bytes` the bytes.

    `write` raises nothing, and waits for room at most WAIT_S in a second. After a write that did not fit it waits no
    more, until there is room. `fd`: where it writes to. Threads may share a writer: Python switches between them at
    calls only, so that no count is changed by two at once.
    """

    def __init__(self, fd: int) -> None:
        self.lost = self.lost_bytes = 0
        self.fault = ""  # of the last write that was lost
        self.fd = fd
        self._given = fd
        self._socket: socket.socket | None = None
        self._may_block = False
        self._patience_s = WAIT_S  # how long it may still wait; it grows again with the time
        self._waited_s = 0.0  # when it last did (monotonic)
        self._stuck = False  # the last write did not fit
        self._midline = False  # the last byte written ends no line
        self._torn = False  # and what followed it was lost
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                self._socket = _socket_of(os.dup(fd))
            elif (own := _own_description(fd)) is not None:
                self.fd = own
        except OSError:
            self._may_block = True  # another user's; or closed, or without a reader

    def write(self, data: bytes) -> bool:
        """Write all of it, or drop and count what has no room. Returns whether all was written."""
        left = memoryview(b"\n" + data if self._torn else data)
        try:
            while left:
                written = self._write(left)
                self._midline = left[written - 1] != _NEWLINE
                left = left[written:]
        except OSError as error:  # ENOSPC, EPIPE, EBADF, EAGAIN: the log's trouble must not become the service's
            self.fault = error.strerror or ""
            self._stuck, self._torn = True, self._midline
            self.lost += 1
            self.lost_bytes += min(len(left), len(data))
            return False
        self._stuck = self._torn = False
        return True

    def share(self) -> None:
        """CHILD. Go on without a description of our own: it would keep a pipe open for as long as the child lives."""
        if self._socket is not None:
            self._socket.close()
        self._may_block |= self.fd != self._given or self._socket is not None
        self.fd, self._socket = self._given, None

    def _write(self, data: memoryview) -> int:
        if self._stuck or self._may_block:  # a pipe that is full may still take a few bytes: it is no sign of a reader
            self._wait()
        try:
            return self._write_now(data)
        except BlockingIOError:
            self._wait()
        return self._write_now(data)

    def _wait(self) -> None:
        """Wait for room. Raises BlockingIOError if there is none."""
        began_s = time.monotonic()
        self._patience_s = min(WAIT_S, self._patience_s + (began_s - self._waited_s) * WAIT_S)
        room = poll()
        room.register(self.fd, POLLOUT)
        found = room.poll(0 if self._stuck else self._patience_s * 1000)
        self._waited_s = time.monotonic()
        self._patience_s = max(0.0, self._patience_s - (self._waited_s - began_s))
        if not found:
            raise BlockingIOError(errno.EAGAIN, "nobody reads it")

    def _write_now(self, data: memoryview) -> int:
        if self._socket is not None:
            return self._socket.send(data, socket.MSG_DONTWAIT)
        return write(self.fd, data[:_SMALL] if self._may_block else data)


_descriptions: dict[tuple[int, int, int], int] = {}  # our own, by the descriptor and the file that it leads to


def _socket_of(fd: int) -> socket.socket:
    """The socket that owns this descriptor. Neither it nor those who share it become non-blocking, or blocking."""
    default_s = socket.getdefaulttimeout()
    socket.setdefaulttimeout(None)  # with one, Python would wait before each send, and set O_NONBLOCK for all
    try:
        return socket.socket(fileno=fd)
    finally:
        socket.setdefaulttimeout(default_s)


def _own_description(fd: int) -> int | None:
    """Open a pipe or terminal once more, for this process and those that it forks. None: it is neither.

    Raises OSError.
    """
    facts = os.fstat(fd)
    if not (stat.S_ISFIFO(facts.st_mode) or stat.S_ISCHR(facts.st_mode)):
        return None
    key = fd, facts.st_dev, facts.st_ino
    if key not in _descriptions:
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        _descriptions[key] = os.open(f"/proc/self/fd/{fd}", flags)
    return _descriptions[key]


def close_descriptions() -> None:
    """Close what was opened once more. Writers that are to go on have to `share` first."""
    while _descriptions:
        os.close(_descriptions.popitem()[1])


class ReportingWriter(LogWriter):
    """A LogWriter that tells the log when it cannot write `what`, and, once it can again, how much of it was lost.

    Each at most once a second, and no handler that an application has added to the logger "prefork": a print() may be
    what is being written, and such a handler might print.
    """

    def __init__(self, fd: int, log: Log, what: str, **fields: Any) -> None:
        super().__init__(fd)
        self._log = log
        self._what = what
        self._fields = fields
        self._next_s = [0.0, 0.0]  # when the one and the other may be told again
        log.writers.append(self)

    def write(self, data: bytes) -> bool:
        """Write as a LogWriter does."""
        lost = self.lost
        complete = super().write(data)
        if self.lost and complete == bool(lost) and (now_s := time.monotonic()) >= self._next_s[complete]:
            self._next_s[complete] = now_s + _REPORT_S
            if complete:
                self.report()
            else:
                self._log.warn_here(f"cannot write {self._what}", **self._fields, reason=self.fault)
        return complete

    def report(self) -> None:
        """Tell what was lost and has not been told, if there is any."""
        count, size = self.lost, self.lost_bytes
        if not count:
            return
        self._log.warn_here(f"{self._what} lost", **self._fields, count=count, bytes=size)
        if not self._log.dropped:  # else this line is lost itself
            self.lost -= count
            self.lost_bytes -= size


# --- What an application prints: sys.stdout and sys.stderr of a worker write through a LogWriter, so that a reader that
# is stuck or gone, or a full disk, neither blocks nor fails a request.


class _Output(io.RawIOBase):
    """The lowest layer of such a stream. It takes everything."""

    def __init__(self, replaced: io.TextIOWrapper, out: LogWriter) -> None:
        self.name, self.mode = replaced.name, "wb"
        self._replaced = replaced  # kept, as its end might close the descriptor
        self._fd = replaced.fileno()
        self._out = out

    def writable(self) -> bool:
        """Say yes."""
        return True

    def fileno(self) -> int:
        """Return the descriptor of the stream that was replaced."""
        return self._fd

    def isatty(self) -> bool:
        """Say whether this is a terminal."""
        return os.isatty(self._fd)

    def write(self, data: Any) -> int:
        """Write it or drop it. Returns its length."""
        copy = bytes(data)
        self._out.write(copy)
        return len(copy)


def guard_output(log: Log) -> None:
    """Replace sys.stdout and sys.stderr where they are Python's own, by streams that no reader can block.

    A stream that is closed (None), or that the caller of `prefork.serve` has replaced, is left alone.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if type(stream) is not io.TextIOWrapper or stream.closed:
            continue
        buffer: Any = stream.buffer
        raw = getattr(buffer, "raw", buffer)  # python -u has no buffer between them
        if not isinstance(raw, io.FileIO):
            continue  # done already, by the template
        output = _Output(stream, ReportingWriter(raw.fileno(), log, "output", stream=name))
        guarded: Any = io.TextIOWrapper(
            cast("BinaryIO", output) if buffer is raw else io.BufferedWriter(output),
            encoding=stream.encoding,
            errors=stream.errors,
            newline="\n",
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        guarded.mode = "w"
        if getattr(sys, f"__{name}__") is stream:
            setattr(sys, f"__{name}__", guarded)
        setattr(sys, name, guarded)
        for handler in _handlers():  # the caller of `prefork.serve`, or --hooks, has set up logging
            if isinstance(handler, logging.StreamHandler) and handler.stream is stream:
                handler.stream = guarded  # setStream() would flush the old one, which may be stuck


def _handlers() -> Iterator[logging.Handler]:
    for logger in (logging.root, *logging.root.manager.loggerDict.values()):
        yield from getattr(logger, "handlers", ())


# --- The log's file, with --log PATH: opened to append, and opened again when a rotation has moved it away (USR1).
#
# Opening again puts the new file behind the same descriptor (dup2), so whoever writes needs to know nothing of it. The
# master goes first and creates the file; workers, which may be another user by then, follow on its signal. So the file
# belongs to --user from its creation on.


_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK  # a FIFO must not stop the server
_MODE = 0o640


class LogFile:
    """MASTER opens it, every process opens it again for itself. `fd` never changes."""

    def __init__(self, path: str, owner: Identity | None) -> None:
        """Open or create the file. Raises ConfigError."""
        self.path = os.path.abspath(path)
        self._owner = owner
        try:
            self.fd = self._open(create=True)
        except OSError as error:
            raise ConfigError(f"cannot open the log {path!r}: {error.strerror}") from None

    def reopen(self, *, create: bool) -> str | None:
        """Go on in the file that the path leads to now; return why not, if it stays with the old one."""
        try:
            fd = self._open(create=create)
        except OSError as error:
            return error.strerror or str(error)
        os.dup2(fd, self.fd, inheritable=False)
        os.close(fd)
        return None

    def close(self) -> None:
        """At the end of the server."""
        os.close(self.fd)

    def _open(self, *, create: bool) -> int:
        # Where the user who owns the log could put a link in its place, root must not follow it.
        flags = _APPEND | (os.O_NOFOLLOW if self._owner and os.geteuid() == 0 else 0)
        try:
            return os.open(self.path, flags)
        except FileNotFoundError:
            if not create:
                raise
        if self._owner is None:
            return os.open(self.path, flags | os.O_CREAT, _MODE)
        fd = os.open(self.path, flags | os.O_CREAT | os.O_EXCL, _MODE)  # what another one made is not given away
        os.fchown(fd, self._owner.uid, self._owner.gid)
        return fd


LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")

_logger = logging.getLogger("prefork")


class LineHandler(logging.Handler):
    """Writes records to a file descriptor."""

    def __init__(self, fd: int, style: str) -> None:
        super().__init__()
        self.fd = fd
        self._out = LogWriter(fd)
        self.json = style == "json"
        self.identity: dict[str, Any] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record, and before it the count of those that were lost."""
        line = self._json(record) if self.json else self._text(record)
        told = self._out.lost
        if told:
            lost = _warning("log lines lost", {"count": told})
            line = (self._json(lost) if self.json else self._text(lost)) + line
        if self._out.write(line.encode("utf-8", "backslashreplace")):
            self._out.lost -= told

    def share(self) -> None:
        """CHILD. See LogWriter."""
        self._out.share()

    @property
    def crash_fd(self) -> int:
        """Where faulthandler may write: where the log goes, without waiting for the reader of a pipe."""
        return self._out.fd

    @property
    def dropped(self) -> int:
        """Lines that could not be written, and are not told yet."""
        return self._out.lost

    def _fields(self, record: logging.LogRecord) -> dict[str, Any]:
        return getattr(record, "fields", None) or {}

    def _text(self, record: logging.LogRecord) -> str:
        words = [utc(record.created), record.levelname]
        if self.identity:
            words.append("[" + " ".join(f"{k}={v}" for k, v in self.identity.items()) + "]")
        words.append(printable(record.getMessage()))
        fields = dict(self._fields(record))
        detail = str(fields.pop("detail", "") or "") + self._traceback(record)
        words += [f"{key}={_quote(value)}" for key, value in fields.items() if value is not None]
        body = "".join(f"    {printable(line)}\n" for line in detail.split("\n") if line)
        return " ".join(words) + "\n" + body

    def _json(self, record: logging.LogRecord) -> str:
        entry = {"time": utc(record.created), "level": record.levelname.lower(), **self.identity}
        entry |= {"event": record.getMessage(), **{k: v for k, v in self._fields(record).items() if v is not None}}
        if trace := self._traceback(record):
            entry["detail"] = str(entry.get("detail") or "") + trace
        return json.dumps(entry, default=str) + "\n"

    def _traceback(self, record: logging.LogRecord) -> str:
        return logging.Formatter().formatException(record.exc_info) if record.exc_info else ""


def _warning(event: str, fields: dict[str, Any]) -> logging.LogRecord:
    return logging.makeLogRecord({"levelno": logging.WARNING, "levelname": "WARNING", "msg": event, "fields": fields})


class Log:
    """What one process writes to the log. Methods take an event and its facts: `log.info("ready", workers=4)`."""

    def __init__(self, handler: LineHandler, file: LogFile | None = None) -> None:
        self.handler = handler
        self._file = file
        self._others: list[LogFile] = []
        self.writers: list[ReportingWriter] = []  # that report to this log

    def identify(self, **identity: Any) -> None:
        """Set the name of the process in each line; a worker calls this once after the fork."""
        self.handler.identity = identity

    def reopen(self, *, create: bool = False) -> None:
        """Go on in the files that --log and the like lead to now; the master creates them. Not for standard error."""
        for file in filter(None, (self._file, *self._others)):
            if reason := file.reopen(create=create):
                self.warning("cannot reopen the log", reason=reason, path=file.path)

    def also(self, file: LogFile) -> None:
        """Reopen this one too. Before any fork."""
        self._others.append(file)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep this log as it is while the application's logging is configured, which may name the logger "prefork"."""
        level = _logger.level
        try:
            yield
        finally:
            if self.handler not in _logger.handlers:
                _logger.addHandler(self.handler)
            _logger.setLevel(level)
            _logger.propagate = False

    def share(self) -> None:
        """CHILD of the application. Keep open what it was given, and this log."""
        while self._others:
            self._others.pop().close()
        close_descriptions()
        self.handler.share()
        for writer in self.writers:
            writer.share()

    def report_losses(self) -> None:
        """Tell what was lost and has not been told: a worker calls this at its end."""
        for writer in self.writers:
            writer.report()

    def debug(self, event: str, **fields: Any) -> None:
        """Something for developers of prefork."""
        self._log(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Any) -> None:
        """Something that happened as asked."""
        self._log(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Something that an operator should know."""
        self._log(logging.WARNING, event, fields)

    def warn_here(self, event: str, **fields: Any) -> None:
        """As `warning`, in this log only: no handler of the application is called."""
        if _logger.isEnabledFor(logging.WARNING):
            self.handler.handle(_warning(event, fields))

    def error(self, event: str, **fields: Any) -> None:
        """Something that failed. `exc=` adds an exception's traceback, `detail=` lines of text, below the line."""
        self._log(logging.ERROR, event, fields)

    def _log(self, level: int, event: str, fields: dict[str, Any]) -> None:
        _logger.disabled = False  # an application's logging.config.dictConfig disables the loggers it does not name
        _logger.log(level, event, exc_info=fields.pop("exc", None), extra={"fields": fields})

    @property
    def dropped(self) -> int:
        """Lines lost so far and not yet reported."""
        return self.handler.dropped


def open_log(*, level: str = "info", style: str = "text", fd: int = 2, file: LogFile | None = None) -> Log:
    """Attach our handler to the logger "prefork" and return the process's Log. Call once, before any fork."""
    handler = LineHandler(fd if file is None else file.fd, style)
    for standard in (1, 2):
        with suppress(OSError):  # while this user may do that
            _own_description(standard)
    for old in _logger.handlers[:]:
        _logger.removeHandler(old)
    _logger.addHandler(handler)
    _logger.setLevel(level.upper())
    _logger.propagate = False
    return Log(handler, file)


def utc(epoch_s: float) -> str:
    """`2026-11-22T16:47:05.123Z` of seconds since the epoch."""
    whole = int(epoch_s)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{int((epoch_s - whole) * 1000):03d}Z"


def printable(text: str) -> str:
    """The text with control characters escaped: what a client sent can neither forge a line nor drive a terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _quote(value: Any) -> str:
    """The value as it stands if it is one word, else as a JSON string: no value can forge a second field or line."""
    text = str(value)
    return text if text and text.isprintable() and not set(text) & set(' "=') else json.dumps(text)

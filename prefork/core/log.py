"""The log: one line an event, `TIME LEVEL [worker=2 gen=1 pid=4242] event key=value`, or the same as a JSON object.

Built on the standard `logging` (logger "prefork"), so an application can add handlers of its own. Our handler writes
each line with one write(2): lines of several processes do not mix, and no lock is held across a fork. A line that
cannot be written (disk full, pipe closed, reader stuck) is dropped and counted, and the next line that can be written
says how many were lost: logging never fails a request.
"""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from prefork.core.logfile import LogFile
from prefork.core.outlet import Outlet

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")

_logger = logging.getLogger("prefork")


class LineHandler(logging.Handler):
    """Writes records to a file descriptor. `dropped` counts the lines that could not be written."""

    def __init__(self, fd: int, style: str) -> None:
        super().__init__()
        self.fd = fd
        self._out = Outlet(fd)
        self.json = style == "json"
        self.identity: dict[str, Any] = {}
        self.dropped = 0
        self._torn = False  # a line was written in part

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record, and before it the count of those that were lost."""
        line = self._json(record) if self.json else self._text(record)
        if self.dropped:
            lost = logging.makeLogRecord({"levelno": logging.WARNING, "msg": "log lines lost"})
            lost.levelname, lost.fields = "WARNING", {"count": self.dropped}
            line = (self._json(lost) if self.json else self._text(lost)) + line
        data = memoryview((b"\n" if self._torn else b"") + line.encode("utf-8", "backslashreplace"))
        try:
            while data:
                written = self._out.write(data, patient=not self.dropped)
                data, self._torn = data[written:], True
            self.dropped, self._torn = 0, False
        except OSError:  # ENOSPC, EPIPE, EBADF, EAGAIN: the log's trouble must not become the service's
            self.dropped += 1

    def _fields(self, record: logging.LogRecord) -> dict[str, Any]:
        return getattr(record, "fields", None) or {}

    def _text(self, record: logging.LogRecord) -> str:
        words = [utc(record.created), record.levelname]
        if self.identity:
            words.append("[" + " ".join(f"{k}={v}" for k, v in self.identity.items()) + "]")
        words.append(_printable(record.getMessage()))
        fields = dict(self._fields(record))
        detail = str(fields.pop("detail", "") or "") + self._traceback(record)
        words += [f"{key}={_quote(value)}" for key, value in fields.items() if value is not None]
        body = "".join(f"    {_printable(line)}\n" for line in detail.split("\n") if line)
        return " ".join(words) + "\n" + body

    def _json(self, record: logging.LogRecord) -> str:
        entry = {"time": utc(record.created), "level": record.levelname.lower(), **self.identity}
        entry |= {"event": record.getMessage(), **{k: v for k, v in self._fields(record).items() if v is not None}}
        if trace := self._traceback(record):
            entry["detail"] = str(entry.get("detail") or "") + trace
        return json.dumps(entry, default=str) + "\n"

    def _traceback(self, record: logging.LogRecord) -> str:
        return logging.Formatter().formatException(record.exc_info) if record.exc_info else ""


class Log:
    """What one process writes to the log. Methods take an event and its facts: `log.info("ready", workers=4)`."""

    def __init__(self, handler: LineHandler, file: LogFile | None = None) -> None:
        self.handler = handler
        self._files = [file] if file else []

    def identify(self, **identity: Any) -> None:
        """Say who writes from now on; a worker calls it once after the fork."""
        self.handler.identity = identity

    def reopen(self, *, create: bool = False) -> None:
        """Go on in the files that --log and the like lead to now; the master creates them. Not for standard error."""
        for file in self._files:
            if reason := file.reopen(create=create):
                self.warning("cannot reopen the log", reason=reason, path=file.path)

    def also(self, file: LogFile) -> None:
        """Reopen this one too. Before any fork."""
        self._files.append(file)

    def debug(self, event: str, **fields: Any) -> None:
        """Something for developers of prefork."""
        self._log(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Any) -> None:
        """Something that happened as asked."""
        self._log(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Something that an operator should know."""
        self._log(logging.WARNING, event, fields)

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


def _printable(text: str) -> str:
    """The text with control characters escaped: what a client sent can neither forge a line nor drive a terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _quote(value: Any) -> str:
    """The value as it stands if it is one word, else as a JSON string: no value can forge a second field or line."""
    text = str(value)
    return text if text and text.isprintable() and not set(text) & set(' "=') else json.dumps(text)

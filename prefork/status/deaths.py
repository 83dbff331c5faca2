"""Unexpected deaths of workers: their causes, the list that the master keeps, and the page of `prefork deaths`. Pure.

The master adds each death when it reaps the worker, so the list still has workers that ended long ago. A new master, of
an upgrade or a restart, begins with an empty list. Units are in the names; definitions.py says what each figure is.
"""

from __future__ import annotations

import signal
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from prefork.core.process import Exit
from prefork.errors import AppLoadError, BootError, PreforkError
from prefork.status.document import Document, cell, name_of, slow_document
from prefork.status.scoreboard import Slow
from prefork.status.server_state import WorkerState

KEPT = 64
_DETAIL_MOST = 16_000  # characters: some hundred frames
_CUT = "\n[cut]\n"
_KILLED = {
    True: "out of memory: the kernel killed it, and its control group counts that",
    False: "killed from outside, by a person or a program: the kernel counts no kill for want of memory",
    None: "killed from outside: by the kernel, out of memory, or by a person",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DeathRecord:
    """The end of one worker, expected or not."""

    worker: WorkerState
    exit: Exit
    time: str  # UTC
    age_s: float
    serving: str = ""
    serving_s: float | None = None  # for how long; None = no unit of work was in progress
    asked: str | None = None  # for a successor, and why: somebody else than the master has told it to retire
    cut: int = 0  # connections that it had
    requests: int = 0  # units of work that it had completed
    last: tuple[str, ...] = ()  # the latest request or client of each thread
    slow: tuple[Slow, ...] = ()  # its latest slow requests
    oom: bool | None = None  # the kernel killed it for want of memory; None = not known
    killed: str | None = None  # why the master sent SIGKILL
    hung: bool = False  # it was over --timeout, or over --boot-timeout
    verdict: str = ""  # of one that hung while it booted: what it was to be killed for, even if it ended before
    stacks: str = ""  # of one that hung: where its threads were, if it could answer
    message: dict[str, Any] | None = None  # why it could not boot, as it reported
    fault: str = ""  # what faulthandler wrote

    @property
    def expected(self) -> bool:
        """True if the worker was told to retire, and exited cleanly or had not begun to serve."""
        told = self.worker.retiring_s is not None or self.asked is not None
        return told and (self.exit.clean or self.worker.pending)

    @property
    def cause(self) -> str:
        """One word or two, by which deaths are counted."""
        if self.asked and self.expected:
            return self.asked
        if self.killed or self.verdict:
            return "killed" if not self.hung else "boot-timeout" if self.worker.pending else "timeout"
        return "out-of-memory" if self.oom else str(self.exit)

    @property
    def reason(self) -> str | None:
        """What is known beyond the exit status."""
        if self.killed and self.exit.signum == signal.SIGKILL:
            return self.killed
        if self.verdict:
            return self.verdict
        if self.message:
            return str(self.message["message"])
        if self.exit.signum == signal.SIGKILL:
            return _KILLED[self.oom]
        return "it left by itself" if self.exit.clean else None

    @property
    def detail(self) -> str:
        """Text from the application: a traceback, or the stacks at a fatal signal."""
        return self.fault or (str(self.message["detail"]) if self.message else "")

    def fields(self) -> dict[str, Any]:
        """The fields of the log line."""
        return {
            **self.worker.identity,
            "cause": self.exit,
            "reason": self.reason,
            "serving": self.serving or None,
            "served_last": ", ".join(self.last) if self.hung and not self.serving and self.last else None,
            "cut": self.cut or None,
            "age": f"{self.age_s:.1f}s",
            "detail": self.detail,
        }

    def boot_failure(self) -> PreforkError:
        """Why the server cannot start: another worker would fail in the same way."""
        if self.message and self.message["code"] == AppLoadError.exit_code and not self.verdict:
            return AppLoadError(str(self.message["message"]), self.detail)
        who = " ".join(f"{key}={value}" for key, value in self.worker.identity.items())
        return BootError(f"{who} cannot boot: {self.reason or f'it died of {self.exit}'}", self.detail)


@dataclass(slots=True)
class Deaths:
    """MASTER. The last 64 unexpected deaths. `count` is of all of them."""

    count: int = 0
    _kept: deque[Document] = field(default_factory=lambda: deque(maxlen=KEPT))

    def add(self, death: DeathRecord, respawn_in_s: float | None) -> None:
        """Add an unexpected death. `respawn_in_s`: the delay of its successor, None if it gets none."""
        self.count += 1
        self._kept.append(_document(death, respawn_in_s))

    def short(self) -> Document:
        """The entry `deaths` of the status: their number, and the last one without its long text."""
        last = self._kept[-1] if self._kept else None
        return {"count": self.count, "last": last and {key: last[key] for key in last if key != "detail"}}

    def document(self, last: int) -> Document:
        """What `prefork deaths --json` prints: the oldest first, at most `last` of them."""
        return {"count": self.count, "deaths": list(self._kept)[-last:]}


def _document(death: DeathRecord, respawn_in_s: float | None) -> Document:
    detail = death.stacks or death.detail
    return {
        "time": death.time,
        **name_of(death.worker),
        "cause": death.cause,
        "exit": str(death.exit),
        "reason": death.reason,
        "serving": death.serving or None,
        "serving_s": None if death.serving_s is None else round(death.serving_s, 3),
        "last": list(death.last),
        "slow": [slow_document(each) for each in death.slow],
        "age_s": round(death.age_s, 3),
        "cut": death.cut,
        "requests": death.requests,
        "cpu_s": round(death.exit.cpu_ns / 1e9, 3),
        "peak_rss_bytes": death.exit.peak_rss_bytes,
        "respawn_in_s": None if respawn_in_s is None else round(respawn_in_s, 3),
        "detail": (detail if len(detail) <= _DETAIL_MOST else detail[:_DETAIL_MOST] + _CUT) or None,
    }


# --- the page


def deaths_page(document: Document) -> str:
    """What `prefork deaths` prints: the latest is the last, next to the prompt."""
    entries, count = document["deaths"], document["count"]
    if not count:
        return "no worker has died unexpectedly since the server started"
    died = "1 worker has" if count == 1 else f"{count} workers have"
    shown = "" if len(entries) == count else f"; the last {len(entries)}"
    return "\n\n".join([*map(_entry, entries), f"{died} died unexpectedly since the server started{shown}"])


def headline(entry: Document) -> str:
    """The time, the worker, and the cause of its death."""
    where = f"worker {entry['slot']}  pid {entry['pid']}  generation {entry['generation']}"
    died = entry["cause"] if entry["exit"] in (entry["cause"], "SIGKILL") else f"{entry['cause']} ({entry['exit']})"
    return f"{entry['time']}  {where}  {died}"


def _entry(entry: Document) -> str:
    lines = [headline(entry)]
    lines += [f"  why      {entry['reason']}"] if entry["reason"] else []
    if entry["serving_s"] is not None:
        lines.append(f"  serving  {entry['serving'] or 'a client'}, for {cell('serving_s', entry['serving_s'])}")
    elif entry["last"]:
        lines.append(f"  served   {', '.join(entry['last'])}, last")
    lines += [
        f"  slow     {each['request']}, {cell('took_s', each['took_s'])}, until {each['ended']}"
        for each in entry["slow"]
    ]
    requests = _plural(entry["requests"], "request")
    memory = f"at most {cell('peak_rss_bytes', entry['peak_rss_bytes'])} of memory"
    lines.append(
        f"  lived    {cell('age_s', entry['age_s'])}, {requests}, {cell('cpu_s', entry['cpu_s'])} CPU, {memory}"
    )
    lines += [f"  cut      {_plural(entry['cut'], 'connection')}"] if entry["cut"] else []
    lines.append(f"  then     {_successor(entry['respawn_in_s'])}")
    detail = (entry["detail"] or "").rstrip()
    return "\n".join([*lines, *(f"    {line}" for line in detail.split("\n") if detail)])


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _successor(respawn_in_s: float | None) -> str:
    if respawn_in_s is None:
        return "no successor: it was leaving, or the server was"
    after = f"{cell('respawn_in_s', respawn_in_s)} later, as such deaths repeat" if respawn_in_s else "at once"
    return f"its successor was due {after}"

"""A real `prefork serve` for tests: started as its users start it, watched through its log, ended without a trace.

The log is read by a thread into one buffer; tests wait for lines in it, with a deadline, instead of for time. The
server gets a session of its own, so whatever it leaves behind is found by session id, also after its parent is gone.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.processes import children, session_members
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOT = Path(__file__).resolve().parents[2]
APPS = ROOT / "tests" / "apps"
# Deadlines for busy machines; a server takes milliseconds. A stop must take less than the usual --graceful-timeout.
READY_S = 60.0
LOG_S = 40.0
STOP_S = 20.0
TERM = signal.SIGTERM

LISTENING = r"listening address=(\S+)"
READY = r"ready workers=(\d+) in=(\S+)s"


# Control sockets of killed masters stay behind; here they go with the tests.
RUNTIME = tempfile.TemporaryDirectory(prefix="pf-")


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this environment without what would configure a server, plus `extra`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFORK_", "LISTEN_"))}
    for name in ("PORT", "WEB_CONCURRENCY"):
        kept.pop(name, None)
    ours = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1", "XDG_RUNTIME_DIR": RUNTIME.name}
    return kept | ours | dict(extra or {})


def run(
    *args: str,
    within_s: float = READY_S,
    text: str | None = None,
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a `prefork` command that ends by itself and return its exit code, output and errors."""
    return subprocess.run(
        [sys.executable, "-m", "prefork", *args],
        input=text,
        stdin=subprocess.DEVNULL if text is None else None,
        capture_output=True,
        text=True,
        timeout=within_s,
        check=False,
        cwd=cwd,
        env=clean_environment(env),
    )


class RunningServer:
    """One server process and its log.

    `bind` is one address, several, or None for the default; `wrapper` is put before the command and must exec it;
    `expected_exit` and `expect_traceback` say what `close` accepts as a clean end.
    """

    def __init__(
        self,
        *args: str,
        bind: str | Sequence[str] | None = "127.0.0.1:0",
        env: Mapping[str, str] | None = None,
        cwd: Path = ROOT,
        pass_fds: Sequence[int] = (),
        wrapper: Sequence[str] = (),
        expected_exit: int = 0,
        expect_traceback: bool = False,
    ) -> None:
        binds = [bind] if isinstance(bind, str) else bind or []
        command = [*wrapper, sys.executable, "-m", "prefork", "serve", *args]
        command += [part for address in binds for part in ("--bind", address)]
        self.expected_exit = expected_exit
        self.expect_traceback = expect_traceback
        self._asked_to_stop = False
        self._text = ""
        self._grew = threading.Condition()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,  # what applications print belongs to the story as well
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=cwd,
            env=clean_environment(env),
            pass_fds=pass_fds,
        )
        self.pid = self._process.pid
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()

    # -- the log ------------------------------------------------------------------------------------------------------

    def _read_log(self) -> None:
        assert self._process.stdout is not None
        while chunk := os.read(self._process.stdout.fileno(), 65536):
            with self._grew:
                self._text += chunk.decode(errors="backslashreplace")
                self._grew.notify_all()
        with self._grew:
            self._grew.notify_all()

    @property
    def log(self) -> str:
        """All that the server has written so far."""
        with self._grew:
            return self._text

    def wait_log(self, pattern: str, *, within_s: float = LOG_S, count: int = 1, after: int = 0) -> re.Match[str]:
        """Wait for the `count`-th match of a pattern behind position `after` of the log and return it."""
        deadline = time.monotonic() + within_s
        with self._grew:
            while True:
                found = list(re.finditer(pattern, self._text[after:], re.MULTILINE))
                if len(found) >= count:
                    return found[count - 1]
                left_s = deadline - time.monotonic()
                ended = not self._reader.is_alive()
                if ended or left_s <= 0:
                    why = "the log has ended" if ended else f"not within {within_s:g} s"
                    raise AssertionError(f"{len(found)} of {count} x {pattern!r} in the log: {why}")
                self._grew.wait(min(left_s, 0.1))

    def wait_ready(self, *, within_s: float = READY_S) -> None:
        """Wait for the line that says that all workers accept."""
        self.wait_log(READY, within_s=within_s)

    @property
    def addresses(self) -> list[str]:
        """Every address the server said it listens on, in the order of the log."""
        self.wait_log(LISTENING)
        return re.findall(LISTENING, self.log)

    @property
    def address(self) -> str:
        """The first address the server listens on."""
        return self.addresses[0]

    # -- the processes ------------------------------------------------------------------------------------------------

    def worker_pids(self) -> set[int]:
        """List the living direct children of the master."""
        return children(self.pid)

    def wait_workers(
        self, count: int, *, without: set[int] | frozenset[int] = frozenset(), within_s: float = LOG_S
    ) -> set[int]:
        """Wait until the master has exactly so many children, none of them in `without`, and return their pids."""

        def look() -> set[int] | None:
            pids = self.worker_pids()
            return pids if len(pids) == count and not pids & without else None

        eventually(look, within_s=within_s, what=f"{count} workers, none of {sorted(without)}")
        return self.worker_pids()

    def signal(self, signum: signal.Signals) -> None:
        """Send a signal to the master alone."""
        self._process.send_signal(signum)

    def signal_group(self, signum: signal.Signals) -> None:
        """Send a signal to master and workers at once, as a terminal's Ctrl-C does."""
        os.killpg(self.pid, signum)

    @property
    def running(self) -> bool:
        """Say whether the master is still there."""
        return self._process.poll() is None

    def wait_exit(self, *, within_s: float = STOP_S) -> int:
        """Wait for the master's end and return its exit code, negative for a signal; the log is then complete."""
        try:
            code = self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the server did not exit within {within_s:g} s") from None
        self._reader.join(2.0)  # a process that a handler started may keep the pipe open: do not wait for that
        return code

    def stop(self, signum: signal.Signals = TERM, *, within_s: float = STOP_S) -> int:
        """Signal the master, wait for its end and return its exit code."""
        self.signal(signum)
        return self.wait_exit(within_s=within_s)

    def ask_to_stop(self) -> None:
        """Send TERM once, if the server still runs; `close` waits for the end."""
        if self.running and not self._asked_to_stop:
            self._asked_to_stop = True
            self.signal(signal.SIGTERM)

    def close(self) -> None:
        """End the server whatever state it is in, leave no process behind, then judge how it ended."""
        complaints = []
        self.ask_to_stop()
        try:
            self.wait_exit()
        except AssertionError as error:
            complaints.append(str(error))
        if left := self._wait_session_empty():
            complaints.append(f"left behind: {sorted(left)}")
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue  # it ended by itself meanwhile
        code = self._process.wait(STOP_S)
        self._reader.join(2.0)
        assert self._process.stdout is not None
        self._process.stdout.close()
        if code != self.expected_exit:
            complaints.append(f"exit {code}, expected {self.expected_exit}")
        if not self.expect_traceback and "Traceback (most recent call last)" in self.log:
            complaints.append("a traceback in the log")
        if not self.expect_traceback and "callback failed" in self.log:
            complaints.append("an exception that reached an event loop")
        assert not complaints, "the server did not end cleanly: " + "; ".join(complaints)

    def _wait_session_empty(self) -> set[int]:
        """Give what the server started a moment to go and return what is still there."""
        if self.running:
            return session_members(self.pid)
        try:
            eventually(lambda: not session_members(self.pid), within_s=LOG_S)
        except AssertionError:
            pass  # the caller complains, with the pids
        return session_members(self.pid)

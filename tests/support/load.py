"""Counted client load from a process of its own.

The clients are threads of another process, so that they do not take the interpreter lock of the test that waits for
them, and hold no descriptor of the server that is being watched. Test and clients talk over a pair of pipes: a line
asks for a report, end of file tells the clients to finish the exchange they are in. Every wait of a client has a
deadline, and the whole process leaves after `limit_s` whatever happens.

A group is a number of clients that behave alike, each in a closed loop: connect, exchange, leave, pause, again.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

from tests.support.client import (
    TIMEOUT_S,
    Failure,
    Outcome,
    attempt,
    dial,
    judge,
    outcome_of,
    read_exactly,
    read_to_end,
    talkback_reply,
)
from tests.support.server import ROOT, clean_environment
from tests.support.wait import eventually
from tests.support.web import Browser

if TYPE_CHECKING:
    from types import TracebackType

FAILURES_MOST = 2_000  # listed with their time; all are counted
REFUSED_PAUSE_S = 0.01  # a refused client must not spin
LIMIT_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientGroup:
    """Clients that behave alike.

    `lines`: 0 is a talkback client, a new connection for every exchange; N is an echo client that sends N lines over
    one connection and then leaves, having seen the end. `posts`: N is an HTTP client of tests/apps/routes.py that posts
    N times over one connection, or until it is told that the connection closes; it never sends a request twice.
    `leaves`: a client is gone for good after its first refusal.
    """

    clients: int = 4
    lines: int = 0
    posts: int = 0
    pause_s: float = 0.0  # after every exchange
    leaves: bool = False


def fresh(clients: int = 4, *, pause_s: float = 0.0) -> ClientGroup:
    """Clients of `talkback` or `nap`: a new connection for every exchange."""
    return ClientGroup(clients=clients, pause_s=pause_s)


def faithful(clients: int = 4, *, lines: int = 20, pause_s: float = 0.01) -> ClientGroup:
    """Clients of `echo` that stay for a while: `lines` times `pause_s` seconds at the least."""
    return ClientGroup(clients=clients, lines=lines, pause_s=pause_s)


class Load:
    """TEST. Clients that run while the context is open; `counts` and `failures` are those so far.

    A refusal, a reset, an early end, a wrong byte and a deadline are all failures of an exchange.
    """

    def __init__(self, address: str, *groups: ClientGroup, limit_s: float = LIMIT_S) -> None:
        self._command = [sys.executable, "-m", __name__, address, json.dumps([asdict(group) for group in groups])]
        self._command.append(str(limit_s))
        self._process: subprocess.Popen[str] | None = None
        self._last: dict[str, Any] = {"counts": {}, "failures": [], "running": 0, "faults": []}

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=clean_environment(),
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _report(self) -> dict[str, Any]:
        if self._process is not None:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write("\n")
            self._process.stdin.flush()
            self._last = json.loads(self._process.stdout.readline())
        assert not self._last["faults"], f"the clients' own fault, not the server's: {self._last['faults']}"
        return self._last

    def stop(self) -> None:
        """End the clients, each after the exchange it is in."""
        if self._process is None:
            return
        process, self._process = self._process, None
        try:
            last, _ = process.communicate(timeout=3 * TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise AssertionError("the clients did not finish within their own deadlines") from None
        assert process.returncode == 0, f"the clients' process ended with {process.returncode}"
        self._last = json.loads(last)
        assert not self._last["faults"], f"the clients' own fault, not the server's: {self._last['faults']}"

    @property
    def counts(self) -> Counter[Outcome]:
        """Count the exchanges so far by how they ended."""
        return Counter({Outcome(name): count for name, count in self._report()["counts"].items()})

    @property
    def failed(self) -> dict[str, int]:
        """Count what did not end well: empty when nobody lost anything."""
        return {outcome.value: count for outcome, count in self.counts.items() if outcome is not Outcome.OK}

    @property
    def failures(self) -> list[Failure]:
        """The first failures, with the monotonic time of each."""
        return [Failure(Outcome(name), at_s) for name, at_s in self._report()["failures"]]

    def wait_more(self, count: int, *, within_s: float = 20.0) -> None:
        """Wait until so many more exchanges have ended well."""
        before = self.counts[Outcome.OK]
        eventually(
            lambda: self.counts[Outcome.OK] >= before + count,
            within_s=within_s,
            what=f"{count} more good exchanges after {before}; now {dict(self.counts)}",
        )

    def wait_left(self, *, within_s: float = 20.0) -> None:
        """Wait until every client has left after a refusal."""
        eventually(lambda: not self._report()["running"], within_s=within_s, what="every client refused")


class Clients:
    """CLIENTS' PROCESS. One thread a client; counters have one writer each."""

    def __init__(self, address: str, groups: list[ClientGroup]) -> None:
        self._address = address
        self._stopping = threading.Event()
        self._failures: list[tuple[str, float]] = []  # append only, from every client
        self._faults: list[str] = []  # the same, of errors that no server can cause
        each = [group for group in groups for _ in range(group.clients)]
        self._counts = [Counter[Outcome]() for _ in each]
        self._threads = [
            threading.Thread(target=self._loop, args=(group, self._counts[number]), daemon=True)
            for number, group in enumerate(each)
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let every client finish its exchange."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(2 * TIMEOUT_S)

    def report(self) -> str:
        """Say in one line what has happened so far."""
        counts = sum((counter.copy() for counter in self._counts), Counter[Outcome]())
        return json.dumps(
            {
                "counts": counts,
                "failures": self._failures[:FAILURES_MOST],
                "running": sum(thread.is_alive() for thread in self._threads),
                "faults": self._faults[:5],
            }
        )

    def _loop(self, group: ClientGroup, counter: Counter[Outcome]) -> None:
        try:
            while not self._stopping.is_set():
                act = self._post if group.posts else self._stay if group.lines else self._visit
                outcome = act(group, counter)
                if outcome is Outcome.REFUSED:
                    if group.leaves:
                        return
                    self._stopping.wait(REFUSED_PAUSE_S)
        except OSError as error:  # out of ports or descriptors: the figures would be worthless
            self._faults.append(repr(error))

    def _note(self, counter: Counter[Outcome], outcome: Outcome) -> Outcome:
        counter[outcome] += 1
        if outcome is not Outcome.OK:
            self._failures.append((outcome.value, time.monotonic()))
        return outcome

    def _visit(self, group: ClientGroup, counter: Counter[Outcome]) -> Outcome:
        """Do one talkback exchange over a connection of its own."""
        try:
            outcome = attempt(self._address, b"hi\n", talkback_reply(b"hi"))
        except FileNotFoundError:  # a Unix socket that is unlinked: nobody listens
            outcome = Outcome.REFUSED
        self._note(counter, outcome)
        self._stopping.wait(group.pause_s)
        return outcome

    def _stay(self, group: ClientGroup, counter: Counter[Outcome]) -> Outcome:
        """Have lines echoed over one connection, then leave first and see the server's end."""
        try:
            with dial(self._address) as sock:
                for number in range(group.lines):
                    line = b"line %d\n" % number
                    sock.sendall(line)
                    if (outcome := judge(read_exactly(sock, len(line)), line)) is not Outcome.OK:
                        return self._note(counter, outcome)
                    if number < group.lines - 1:
                        self._note(counter, Outcome.OK)
                        self._stopping.wait(group.pause_s)
                sock.shutdown(socket.SHUT_WR)
                return self._note(counter, judge(read_to_end(sock), b""))
        except EOFError:
            return self._note(counter, Outcome.EOF)
        except OSError as error:
            return self._note(counter, outcome_of(error))

    def _post(self, group: ClientGroup, counter: Counter[Outcome]) -> Outcome:
        """Have bodies said back over one connection, then leave; a server that leaves first has to say so."""
        outcome = Outcome.OK
        try:
            with Browser(self._address) as browser:
                for number in range(group.posts):
                    body = b"body %d of %d" % (number, id(browser))
                    answer = browser.post("/echo", body)
                    outcome = self._note(counter, Outcome.OK if answer.body == body else Outcome.WRONG)
                    if answer.closes:
                        return outcome if browser.ended() else self._note(counter, Outcome.WRONG)
                    self._stopping.wait(group.pause_s)
                return outcome
        except (EOFError, AssertionError) as error:
            return self._note(counter, Outcome.EOF if isinstance(error, EOFError) else Outcome.WRONG)
        except OSError as error:
            return self._note(counter, outcome_of(error))


def main(address: str, groups: str, limit_s: str) -> None:
    """Run the clients; answer each line of standard input with a report, and its end with the last one."""
    clients = Clients(address, [ClientGroup(**group) for group in json.loads(groups)])
    watchdog = threading.Timer(float(limit_s), clients.stop)
    watchdog.daemon = True
    watchdog.start()
    clients.start()
    for _ in sys.stdin:
        print(clients.report(), flush=True)
    clients.stop()
    print(clients.report(), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""A run on several processes or machines: the worker's side and the master's.

A worker tells when it begins (_BEGAN), so that the master can lay one that joins late beside the others by its own
clock: those of several machines have nothing in common. When its users have ended it sends locust's own statistics,
then its account (_ACCOUNT).

A master that quits gives its workers half a second and then stops listening, so exchanges that take longer to drain
would be lost. At test_stop it therefore asks every worker for its account (_ASK) and waits, as long as a drain may
take; the worker stops its users if that has not begun. A worker that locust misses gets no more than the grace: it is
dead, and what it measured is lost. The result names it.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from typing import TYPE_CHECKING, Any

from gevent.event import Event
from locust.runners import STATE_CLEANUP, STATE_MISSING

from ..generator.account import Account
from ..generator.crew import Crew
from .local import Local

if TYPE_CHECKING:
    from locust.env import Environment

logger = logging.getLogger("loadtest")

_BEGAN, _ASK, _ACCOUNT = "prefork-began", "prefork-ask", "prefork-account"
_GRACE_S = 5.0  # beyond the drain, for an account to be made and sent
_LOOK_S = 0.5  # between two looks at who is missing


class Worker(Local):
    """Records in a worker and reports to its master."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        environment.runner.register_message(_ASK, self.on_ask, concurrent=True)
        environment.events.quitting.add_listener(self.on_quitting)
        if hasattr(environment, "begun_early"):  # before we could listen (adapter.py)
            self.on_start()

    def on_start(self, **_: object) -> None:
        """Begin, and say so."""
        self.runner.send_message(_BEGAN)
        super().on_start()

    def on_ask(self, **_: object) -> None:
        """The master wants the account: stop, which sends it; if that has happened, perhaps unheard, send it again."""
        if self.running:
            self.runner.stop()
        elif self.runner.state != STATE_CLEANUP:
            self.send()

    def on_stop(self, **_: object) -> None:
        """Make the account and send it."""
        super().on_stop()
        self.send()

    def on_quitting(self, **_: object) -> None:
        """Report before locust tells the master that this worker is gone."""
        self.finish()

    def send(self) -> None:
        """Send locust's own statistics, then the account: when that arrives, the master has both."""
        self.runner._send_stats()
        self.runner.send_message(_ACCOUNT, self.account.to_message() if self.account else None)


class Master:
    """Collects the accounts of the workers."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.runner = environment.runner
        self.started = False  # whether there was a run
        self._start_s = 0.0  # of the run, by our clock
        self._expected: dict[str, float] = {}  # the workers of this run -> when they began, in s after its start
        self._reports: dict[str, Account | None] = {}  # theirs; None without a result file
        self._came = Event()
        environment.runner.register_message(_BEGAN, self.on_began)
        environment.runner.register_message(_ACCOUNT, self.on_account)
        environment.events.test_start.add_listener(self.on_start)
        environment.events.test_stop.add_listener(self.on_stop)

    def on_start(self, **_: object) -> None:
        """Begin a run with the workers that are connected."""
        self.started = True
        self._start_s = time.monotonic()
        self._reports.clear()
        clients = self.runner.clients
        self._expected = {client.id: 0.0 for client in clients.ready + clients.spawning + clients.running}

    def on_began(self, msg: Any, **_: object) -> None:
        """A worker begins (locust's Message), perhaps one that came late."""
        self._expected[msg.node_id] = time.monotonic() - self._start_s

    def on_account(self, msg: Any, **_: object) -> None:
        """A worker's account came (locust's Message)."""
        self._reports[msg.node_id] = Account.from_message(msg.data) if msg.data else None
        self._came.set()

    def on_stop(self, **_: object) -> None:
        """Ask all workers of this run for their accounts, and wait."""
        asked_s = time.monotonic()
        for worker in self._silent():
            self.runner.send_message(_ASK, client_id=worker)
        while silent := self._silent():
            patience_s = _GRACE_S + (0 if all(map(self._missing, silent)) else self.environment.stop_timeout)
            if time.monotonic() > asked_s + patience_s:
                return
            self._came.clear()
            self._came.wait(_LOOK_S)

    def finish(self) -> Crew:
        """End the run that still goes on. Returns what was measured, and by whom it was not told."""
        try:
            self.runner.stop(send_stop_to_client=False)  # the question for the account stops them
        except KeyboardInterrupt:
            logger.warning("interrupted again: not waiting for the workers any longer")
        accounts = {
            worker: dataclasses.replace(account, began_s=self._expected.get(worker, 0.0))
            for worker, account in self._reports.items()
            if account
        }
        return Crew(accounts=accounts, lost=tuple(sorted(self._silent())))

    def _silent(self) -> set[str]:
        return set(self._expected) - set(self._reports)

    def _missing(self, worker: str) -> bool:
        return worker not in self.runner.clients or self.runner.clients[worker].state == STATE_MISSING

"""MASTER. What happens to a server, as the parts of the master that only take note of it are told."""

from __future__ import annotations

from prefork.master.roster import Spawn
from prefork.master.workers import Message
from prefork.status.deaths import DeathRecord


class Observer:
    """MASTER. Base class. Every method may be left out; none decides anything."""

    __slots__ = ()

    def message_received(self, message: Message) -> None:
        """A worker has sent a message."""

    def worker_spawned(self, order: Spawn) -> None:
        """A worker was forked."""

    def worker_exited(self, death: DeathRecord) -> None:
        """A worker was reaped. Nothing has overwritten its rows yet."""

    def worker_died(self, death: DeathRecord, respawn_in_s: float | None) -> None:
        """The worker that has exited was not told to, or failed to leave. None: it gets no successor."""

    def reload_started(self) -> None:
        """A new generation is being prepared."""

    def reload_finished(self, generation: int, reason: str | None) -> None:
        """All workers are of the new generation; or the reload was abandoned, for this reason."""

"""MASTER. --max-memory: a worker whose own share of memory stays above the limit is replaced like any outdated one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from prefork.core.proc import pss_bytes, rss_bytes
from prefork.master.roster import Roster

EVERY_S = 1.0
IN_A_ROW = 3  # samples above the limit: a peak is no leak


@dataclass(slots=True, kw_only=True)
class MemoryLimit:
    """MASTER. `limit` in bytes of PSS; 0 is none. PSS is costly, so it is read only of workers whose RSS is above."""

    limit: int
    rss: Callable[[int], int | None] = rss_bytes
    pss: Callable[[int], int | None] = pss_bytes
    _over: dict[int, int] = field(default_factory=dict)  # by pid: samples in a row above the limit
    _next_s: float = 0.0

    def check(self, roster: Roster, now_s: float) -> float:
        """Mark who is to be replaced; return when to look again (monotonic s)."""
        if not self.limit:
            return float("inf")
        if now_s >= self._next_s:
            self._next_s = now_s + EVERY_S
            before, self._over = self._over, {}
            for worker in roster:
                if worker.serving and worker.stale is None and self._above(worker.pid):
                    self._over[worker.pid] = before.get(worker.pid, 0) + 1
                    if self._over[worker.pid] >= IN_A_ROW:
                        worker.stale = "max-memory"
        return self._next_s

    def _above(self, pid: int) -> bool:
        return (self.rss(pid) or 0) > self.limit and (self.pss(pid) or 0) > self.limit

"""Is one worker late, and what is to be done about it? Pure: clocks go in, an action and the next look come out.

- Retiring: it cuts its own connections at the graceful timeout; GRACE_MARGIN_S later it is killed.
- Booting: ready within the boot timeout, or asked for its stacks as one that hangs, and killed.
- Working: a unit of work older than the timeout is a hang. Ask for the Python stacks; with no answer in
  STACKS_WAIT_S ask faulthandler; then kill.
After the master itself was suspended nobody is judged for SUSPENDED_S: it cannot tell their time from its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from prefork.master.actions import Action, AskFault, AskStacks, Kill, Unit
from prefork.master.roster import Hang, WorkerHandle

STACKS_WAIT_S = 0.25
GRACE_MARGIN_S = 1.0
BOOTING_GRACE_S = 0.5  # it may have accepted already, with its `ready` on the way; else it serves nobody
SUSPENDED_S = 1.0

_NEVER = float("inf")
_BOOT = -1  # the unit of work that booting is, so to speak
Verdict = tuple[Action | None, float]  # what to do now, and when to look again (monotonic s)


@dataclass(slots=True, kw_only=True)
class Judge:
    """MASTER. The limits, and the moment before which nobody is judged."""

    timeout_s: float
    graceful_timeout_s: float
    boot_timeout_s: float
    lenient_until_s: float = 0.0

    def overslept(self, late_s: float, now_s: float) -> bool:
        """Note how late the master woke; True if it was suspended."""
        if late_s < SUSPENDED_S:
            return False
        self.lenient_until_s = now_s + SUSPENDED_S
        return True

    def judge(self, worker: WorkerHandle, unit: Unit, now_s: float) -> list[Verdict]:
        """Return what each clock says of the worker."""
        if worker.killed:
            return []
        verdicts = []
        if worker.retiring_s is not None:
            verdicts.append(self._retiring(worker, worker.retiring_s, now_s))
            if isinstance(verdicts[-1][0], Kill):
                return verdicts
        if worker.pending:
            verdicts.append(self._booting(worker, now_s))
        else:
            verdicts.append(self._working(worker, unit, now_s))
        return verdicts

    def _retiring(self, worker: WorkerHandle, since_s: float, now_s: float) -> Verdict:
        limit_s = max(since_s + self.graceful_timeout_s + GRACE_MARGIN_S, self.lenient_until_s)
        if now_s < limit_s:
            return None, limit_s
        return kill(worker, f"still busy {now_s - since_s:.1f} s after it was told to stop"), _NEVER

    def _booting(self, worker: WorkerHandle, now_s: float) -> Verdict:
        if worker.retiring_s is not None:
            limit_s = worker.retiring_s + BOOTING_GRACE_S
            return (None, limit_s) if now_s < limit_s else (kill(worker, "stopped while it booted"), _NEVER)
        limit_s = max(worker.spawned_s + self.boot_timeout_s, self.lenient_until_s)
        if now_s < limit_s:
            return None, limit_s
        if worker.hang is not None:
            return self._press(worker, worker.hang, now_s, worker.hang.verdict)
        verdict = f"not ready within --boot-timeout {self.boot_timeout_s:g} s"
        worker.hang = Hang(since_ns=_BOOT, serving="", asked_s=now_s, verdict=verdict)
        return AskStacks(worker), now_s + STACKS_WAIT_S

    def _working(self, worker: WorkerHandle, unit: Unit, now_s: float) -> Verdict:
        if worker.hang is not None and worker.hang.since_ns == unit.since_ns:
            took_s = now_s - unit.since_ns / 1e9
            return self._press(worker, worker.hang, now_s, f"one unit of work took {took_s:.1f} s, over --timeout")
        worker.hang = None
        if not unit.since_ns:
            return None, _NEVER
        limit_s = max(unit.since_ns / 1e9 + self.timeout_s, self.lenient_until_s)
        if now_s < limit_s:
            return None, limit_s
        worker.hang = Hang(since_ns=unit.since_ns, serving=unit.serving, asked_s=now_s)
        return AskStacks(worker), now_s + STACKS_WAIT_S

    def _press(self, worker: WorkerHandle, hang: Hang, now_s: float, reason: str) -> Verdict:
        """The worker is hung and has been asked: wait for its answer, ask harder, kill."""
        asked_s = hang.asked_s if hang.fault_s is None else hang.fault_s
        limit_s = max(asked_s + STACKS_WAIT_S, self.lenient_until_s)
        if not hang.answered and now_s < limit_s:
            return None, limit_s
        if not hang.answered and hang.fault_s is None:
            hang.fault_s = now_s
            return AskFault(worker), now_s + STACKS_WAIT_S
        return kill(worker, reason), _NEVER


def kill(worker: WorkerHandle, reason: str) -> Kill:
    """The action, noted on the handle so that it is asked for once."""
    worker.killed = reason
    return Kill(worker, reason)

"""How long to wait before the next spawn, after workers that died without having done any work. Pure."""

from __future__ import annotations

from dataclasses import dataclass

FIRST_S = 0.25
FACTOR = 1.5
MOST_S = 30.0


@dataclass(slots=True, kw_only=True)
class Backoff:
    """MASTER. Counts barren deaths, one step a round: 0.25 s, x1.5 each, with jitter, at most 30 s."""

    barren: int = 0
    noted_s: float = 0.0
    not_before_s: float = 0.0

    def note(self, now_s: float, jitter: float) -> float:
        """Count a barren death; return the delay in seconds. `jitter` is in 0..1."""
        delay_s = min(MOST_S, FIRST_S * FACTOR ** min(self.barren, 20) * (0.8 + 0.4 * jitter))
        self.barren += 1
        self.noted_s, self.not_before_s = now_s, now_s + delay_s
        return delay_s

    def wait(self, now_s: float, jitter: float) -> float:
        """Wait for the first delay only: the system refused, and trying again costs it nothing."""
        delay_s = FIRST_S * (0.8 + 0.4 * jitter)
        self.not_before_s = max(self.not_before_s, now_s + delay_s)
        return delay_s

    def clear(self) -> None:
        """Work was completed: the application works."""
        self.barren, self.not_before_s = 0, 0.0

"""The beat of an asyncio loop: how often it says on the scoreboard that it turns, and when it is stuck. Pure."""

from __future__ import annotations


def beat_s(timeout_s: float, slow_s: float) -> float:
    """How long an asyncio loop has between its beats: shorter than what is judged by them."""
    return min(1.0, timeout_s / 4, max(slow_s / 2, 0.05) if slow_s else 1.0)


def stuck_ns(beat_ns: int, now_ns: int, period_s: float) -> int:
    """Since when an asyncio loop has had no turn, if that is longer than two of its beats; else 0."""
    return beat_ns if beat_ns and now_ns - beat_ns > 2e9 * period_s else 0

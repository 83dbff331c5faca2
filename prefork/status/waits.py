"""How long connections waited to be taken, from the counts of the scoreboard (scoreboard.queue_bucket). Pure."""

from __future__ import annotations

from collections.abc import Sequence

from prefork.status.histogram import estimable


def highest_ms(bucket: int) -> int:
    """The longest wait that a bucket counts; the last one counts longer ones, too."""
    return (1 << bucket) - 1


def quantile_ms(counts: Sequence[int], q: float) -> int | None:
    """The wait that so many of all do not exceed, rounded up to its bucket's longest; None of too few to tell."""
    total = sum(counts)
    if not estimable(q, total):
        return None
    seen = 0
    for bucket, count in enumerate(counts):
        seen += count
        if seen >= q * total:
            return highest_ms(bucket)
    raise AssertionError("the counts are fewer than their sum")


def summary(counts: Sequence[int]) -> dict[str, int | None]:
    """What `status` says of the waits."""
    return {"n": sum(counts), "p50_ms": quantile_ms(counts, 0.5), "p99_ms": quantile_ms(counts, 0.99)}

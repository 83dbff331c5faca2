"""A log-linear histogram of latencies: whole nanoseconds in, quantiles with a known relative error out.

Buckets. At `digits` significant digits a power of two is cut into `half` equal buckets, half = 2^k >= 10^digits, so no
bucket is wider than 10^-digits of its smallest value. Below 2*half every value has a bucket of its own. The index of a
value is arithmetic (a bit length, a shift, a sum), and indexes follow one another without gaps, so they can number a
flat array.

Rules.
- A quantile is the nearest rank: the smallest recorded value that at least q*n values do not exceed, rounded up to the
  largest value of its bucket, but never beyond the exact maximum. n, sum, minimum and maximum are exact.
- Merging adds counts, so it loses nothing: merged histograms equal the histogram of all values. Never average
  percentiles.
- A percentile that n cannot support is the maximum in disguise: ask `estimable` before showing it.

A server that counts in shared memory uses the flat form: `array_index(value_ns)` numbers one of BUCKETS cells (2
digits, from 1 us to over an hour, both ends closed by a catch-all), and `Histogram.from_array(cells)` reads them back.

Pure: no I/O, no clock, nothing of this project. The store is a dict of counts: real latencies fill a few hundred.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


MAX_DIGITS = 5

# Bits of an index's linear part for 0..5 digits: the smallest b with 2^b >= 2 * 10^digits.
_BITS = (1, 5, 8, 11, 15, 18)

ARRAY_DIGITS = 2
"""Significant digits of the flat form."""
BUCKETS = 4096
"""Cells of the flat form: 32 octaves of 128 from 2^10 ns (1.024 us) up. The first takes less, the last more."""

COUNT_MOST = 1 << 56
"""The most that one cell of shared memory can have counted: of nanoseconds two years, of bytes 72 PB."""

_FLOOR_INDEX = 511  # index(2**10 - 1, ARRAY_DIGITS): the cell 0 of the flat form
_EMPTY = memoryview(bytes(64 * 8)).cast("q")  # a part of a flat form in which nothing is counted


def index(value_ns: int, digits: int) -> int:
    """The number of the bucket that holds `value_ns` (>= 0)."""
    bits = _BITS[digits]
    shift = value_ns.bit_length() - bits
    return value_ns if shift <= 0 else (shift << (bits - 1)) + (value_ns >> shift)


def lowest(bucket: int, digits: int) -> int:
    """The smallest value, in ns, of a bucket."""
    half_bits = _BITS[digits] - 1
    shift = (bucket >> half_bits) - 1
    return bucket if shift <= 0 else (bucket - (shift << half_bits)) << shift


def highest(bucket: int, digits: int) -> int:
    """The largest value, in ns, of a bucket."""
    return lowest(bucket + 1, digits) - 1


def array_index(value_ns: int) -> int:
    """The cell of the flat form, 0 to BUCKETS-1, that counts `value_ns` (>= 0)."""
    if value_ns < 1024:
        return 0
    shift = value_ns.bit_length() - 8
    cell = (shift << 7) + (value_ns >> shift) - _FLOOR_INDEX
    return cell if cell < BUCKETS else BUCKETS - 1


def estimable(q: float, n: int) -> bool:
    """Whether n samples bound the quantile `q` on both sides at 95 % (p99 needs n >= 368, p99.9 n >= 3,688)."""
    return n > 0 and max(q, 1 - q) ** n <= 0.025


class Histogram:
    """Counts of latencies in nanoseconds, to `digits` significant digits (1 to 5)."""

    __slots__ = ("_counts", "digits", "max_ns", "min_ns", "n", "sum_ns")

    def __init__(self, digits: int = 3) -> None:
        if not 1 <= digits <= MAX_DIGITS:
            raise ValueError(f"a histogram has 1 to {MAX_DIGITS} digits, not {digits}")
        self.digits = digits
        self.n = 0
        self.sum_ns = 0
        self.min_ns = 0  # 0 while n is 0
        self.max_ns = 0
        self._counts: Counter[int] = Counter()

    def __repr__(self) -> str:
        return f"<Histogram n={self.n} digits={self.digits} min_ns={self.min_ns} max_ns={self.max_ns}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Histogram):
            return NotImplemented
        return self.to_json() == other.to_json()

    __hash__ = None  # type: ignore[assignment]  # it changes with every record

    @property
    def mean_ns(self) -> float:
        """The exact mean; 0 without samples."""
        return self.sum_ns / self.n if self.n else 0.0

    def record(self, value_ns: int, count: int = 1) -> None:
        """Count a value `count` times. Raises ValueError for a negative value or a count below 1."""
        if value_ns < 0 or count < 1:
            raise ValueError(f"cannot record the value {value_ns} {count} times: latencies start at 0, counts at 1")
        self._counts[index(value_ns, self.digits)] += count
        self._extend(count, value_ns * count, value_ns, value_ns)

    def record_many(self, values_ns: Sequence[int]) -> None:
        """Count many values at once, several times faster than one by one. Raises ValueError if one is negative."""
        if not values_ns:
            return
        low = min(values_ns)
        if low < 0:
            raise ValueError(f"cannot record the value {low}: latencies start at 0")
        bits = _BITS[self.digits]
        half_bits = bits - 1
        self._counts.update(  # `index`, without a call for each value
            [((s := v.bit_length() - bits) << half_bits) + (v >> s) if v >> bits else v for v in values_ns]
        )
        self._extend(len(values_ns), sum(values_ns), low, max(values_ns))

    def merge(self, other: Histogram) -> None:
        """Add the samples of `other`, exactly. Raises ValueError if it has other digits."""
        if other.digits != self.digits:
            raise ValueError(f"cannot merge a histogram of {other.digits} digits into one of {self.digits}")
        if other.n:
            self._counts.update(other._counts)
            self._extend(other.n, other.sum_ns, other.min_ns, other.max_ns)

    def quantile(self, q: float) -> int:
        """The value in ns that a share `q` (0 to 1) of the samples does not exceed; 0 without samples."""
        return self.quantiles([q])[0]

    def quantiles(self, qs: Sequence[float]) -> list[int]:
        """`quantile` of each of `qs`, which ascend, in one pass."""
        for q in qs:
            if not 0 <= q <= 1:
                raise ValueError(f"a quantile lies between 0 and 1, not at {q}")
        # The rounding keeps 0.07 * 100 == 7.000000000000001 from becoming rank 8.
        return self._at_ranks([max(1, math.ceil(round(q * self.n, 6))) for q in qs]) if self.n else [0] * len(qs)

    def at_most(self, limits_ns: Sequence[int]) -> list[int]:
        """How many samples do not exceed each of `limits_ns`, which ascend; a bucket counts with its largest value."""
        found: list[int] = []
        seen = 0
        for bucket, count in sorted(self._counts.items()):
            while len(found) < len(limits_ns) and highest(bucket, self.digits) > limits_ns[len(found)]:
                found.append(seen)
            seen += count
        return found + [seen] * (len(limits_ns) - len(found))

    def to_json(self) -> dict[str, object]:
        """A dict for `json.dumps`: digits, n, sum_ns, min_ns, max_ns, and `buckets` as sorted [index, count] pairs."""
        return {
            "digits": self.digits,
            "n": self.n,
            "sum_ns": self.sum_ns,
            "min_ns": self.min_ns,
            "max_ns": self.max_ns,
            "buckets": [[bucket, count] for bucket, count in sorted(self._counts.items())],
        }

    @classmethod
    def from_json(cls, document: Mapping[str, object]) -> Histogram:
        """The histogram that `to_json` wrote. Raises ValueError, naming what is wrong, for anything else."""
        made = cls(_whole(document, "digits"))
        pairs = document.get("buckets")
        if not isinstance(pairs, list):
            raise ValueError("not a histogram: 'buckets' is not a list")
        for pair in pairs:
            match pair:
                case [int(bucket), int(count)] if bucket >= 0 and count > 0 and bucket not in made._counts:
                    made._counts[bucket] = count
                case _:
                    raise ValueError(f"not a histogram: {pair!r} is not a new [bucket, count] pair")
        made.n, made.sum_ns = _whole(document, "n"), _whole(document, "sum_ns")
        made.min_ns, made.max_ns = _whole(document, "min_ns"), _whole(document, "max_ns")
        if made.n != made._counts.total():
            raise ValueError(f"not a histogram: n is {made.n}, the buckets hold {made._counts.total()}")
        ends = [index(made.min_ns, made.digits), index(made.max_ns, made.digits)]
        if made.n and ends != [min(made._counts), max(made._counts)]:
            raise ValueError("not a histogram: min_ns and max_ns are not in the first and the last bucket")
        return made

    @classmethod
    def from_array(cls, cells: Sequence[int], *, sum_ns: int | None = None, max_ns: int | None = None) -> Histogram:
        """The histogram of a flat array of counts (see `array_index`).

        The array knows no exact values: without `sum_ns` the buckets' middles are summed, without `max_ns` the maximum
        is the largest value of the last bucket in use; the minimum is the smallest value of the first.
        """
        made = cls(ARRAY_DIGITS)
        for start in range(0, len(cells), len(_EMPTY)):
            part = cells[start : start + len(_EMPTY)]
            if part != _EMPTY:  # most are; of a memoryview, one comparison instead of 64 (measured: 50 us, not 300)
                for bucket, count in enumerate(part, start + _FLOOR_INDEX):
                    if 0 < count <= COUNT_MOST:  # others may write to shared memory as well
                        made._counts[bucket] = count
        if not made._counts:
            return made
        first, last = min(made._counts), max(made._counts)
        made.n = made._counts.total()
        made.min_ns = lowest(first, ARRAY_DIGITS)
        made.max_ns = highest(last, ARRAY_DIGITS)
        if max_ns is not None:  # written at another moment than its cell: hold it to the bucket that it belongs to
            made.max_ns = min(max(max_ns, lowest(last, ARRAY_DIGITS)), made.max_ns)
        if sum_ns is None or not 0 <= sum_ns <= COUNT_MOST:
            sum_ns = sum(c * _middle(bucket) for bucket, c in made._counts.items())
        made.sum_ns = sum_ns
        return made

    def _extend(self, count: int, sum_ns: int, low_ns: int, high_ns: int) -> None:
        self.min_ns = min(self.min_ns, low_ns) if self.n else low_ns
        self.max_ns = max(self.max_ns, high_ns)
        self.n += count
        self.sum_ns += sum_ns

    def _at_ranks(self, ranks: list[int]) -> list[int]:
        """The upper values of the buckets that hold the samples of these ranks (1 is the smallest), ranks ascending."""
        found: list[int] = []
        seen = 0
        for bucket, count in sorted(self._counts.items()):
            seen += count
            while len(found) < len(ranks) and ranks[len(found)] <= seen:
                found.append(min(highest(bucket, self.digits), self.max_ns))
        return found


def _middle(bucket: int) -> int:
    return (lowest(bucket, ARRAY_DIGITS) + highest(bucket, ARRAY_DIGITS)) // 2


def _whole(document: Mapping[str, object], key: str) -> int:
    value = document.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"not a histogram: {key!r} is {value!r}, not a whole number from 0")
    return value


# --- How long connections waited to be taken, from the counts of the scoreboard (scoreboard.queue_bucket). Pure.


def highest_ms(bucket: int) -> int:
    """The longest wait that a bucket counts; the last one counts longer ones, too."""
    return (1 << bucket) - 1


def quantile_ms(counts: Sequence[int], q: float) -> int | None:
    """The quantile `q` of the waits, rounded up to the longest of its bucket; None if there are too few."""
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
    """The entry `queue_wait` of the status document."""
    return {"n": sum(counts), "p50_ms": quantile_ms(counts, 0.5), "p99_ms": quantile_ms(counts, 0.99)}

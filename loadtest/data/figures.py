"""How figures are written: three significant digits with a unit, and `-` for what is not known."""

from __future__ import annotations

UNKNOWN = "-"


def digits(value: float, significant: int = 3) -> str:
    """Write a number with this many significant digits and no exponent: 0.123, 12.3, 123, 1,230."""
    if value == 0:
        return "0"
    written = f"{value:.{significant - 1}e}"
    decimals = max(0, significant - 1 - int(written.partition("e")[2]))
    return f"{float(written):,.{decimals}f}"


def duration(value_ns: float | None) -> str:
    """Write a time given in ns: in µs below a millisecond, else in ms."""
    if value_ns is None:
        return UNKNOWN
    return f"{digits(value_ns / 1e3)} µs" if value_ns < 999_500 else f"{digits(value_ns / 1e6)} ms"


def rate(per_s: float | None) -> str:
    """Write a number per second."""
    return UNKNOWN if per_s is None else digits(per_s)


def size(value_bytes: float | None) -> str:
    """Write a size given in bytes, in MB of a million bytes."""
    return UNKNOWN if value_bytes is None else f"{digits(value_bytes / 1e6)} MB"


def level(value: float | None) -> str:
    """Write a mean number of things at a time, to one decimal; -0.0 becomes 0.0."""
    return UNKNOWN if value is None else f"{round(value, 1) + 0.0:.1f}"


def span(least: float | None, most: float | None) -> str:
    """Write whole numbers from the least to the most, such as 1-58."""
    if least is None or most is None:
        return UNKNOWN
    return f"{least:.0f}" if round(least) == round(most) else f"{least:.0f}-{most:.0f}"


def index(value: float | None) -> str:
    """Write an index between 0 and 1 to three decimals, as 0.99 and 0.999 are far apart."""
    return UNKNOWN if value is None else f"{value:.3f}"


def times(value: float) -> str:
    """Write a factor; near 1 with enough decimals to show a difference of a percent."""
    return f"{value:.3f}x" if 0.9 < value < 1.1 else f"{digits(value)}x"

"""How figures are written: three significant digits with a unit, and `-` for what is not known."""

from __future__ import annotations

UNKNOWN = "-"


def digits(value: float, significant: int = 3) -> str:
    """So many significant digits, no exponent: 0.123, 12.3, 123, 1,230."""
    if value == 0:
        return "0"
    written = f"{value:.{significant - 1}e}"
    decimals = max(0, significant - 1 - int(written.partition("e")[2]))
    return f"{float(written):,.{decimals}f}"


def duration(value_ns: float | None) -> str:
    """In µs below a millisecond, in ms from there on."""
    if value_ns is None:
        return UNKNOWN
    return f"{digits(value_ns / 1e3)} µs" if value_ns < 999_500 else f"{digits(value_ns / 1e6)} ms"


def rate(per_s: float | None) -> str:
    """A number per second."""
    return UNKNOWN if per_s is None else digits(per_s)


def size(value_bytes: float | None) -> str:
    """In MB of a million bytes."""
    return UNKNOWN if value_bytes is None else f"{digits(value_bytes / 1e6)} MB"


def level(value: float | None) -> str:
    """A mean number of things at a time; what rounds to none has no sign."""
    return UNKNOWN if value is None else f"{round(value, 1) + 0.0:.1f}"


def index(value: float | None) -> str:
    """An index between 0 and 1, where 0.99 and 0.999 are worlds apart."""
    return UNKNOWN if value is None else f"{value:.3f}"


def times(value: float) -> str:
    """A factor: near 1 with enough decimals to see a difference of a percent."""
    return f"{value:.3f}x" if 0.9 < value < 1.1 else f"{digits(value)}x"

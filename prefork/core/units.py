"""Text to quantities: counts, durations, sizes. Every parser raises ValueError with a sentence for the user."""

from __future__ import annotations

import re

# Parsers accept only ASCII digits: int() and str.isdigit() take signs, blanks, underscores and digits of other scripts.
_COUNT = re.compile(r"[0-9]{1,40}", re.ASCII)
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h)?", re.ASCII)
_SIZE = re.compile(r"([0-9]{1,15})(k|m|g|t)?(?:i?b)?", re.ASCII | re.IGNORECASE)

COUNT_MOST = 999_999_999
ID_MOST = 0xFFFF_FFFE  # of a user or group; the number above it means "unchanged" to the kernel
DURATION_MOST_S = 100 * 86400.0

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_BYTES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def count(text: str, *, least: int = 1, most: int = COUNT_MOST) -> int:
    """A whole number from `least` to `most`."""
    if not _COUNT.fullmatch(text.removeprefix("-")):
        raise ValueError(f"{text!r} is not a whole number")
    if (number := int(text)) < least or text.startswith("-"):
        raise ValueError(f"{text!r} is too small: at least {least}")
    if number > most:
        raise ValueError(f"{text!r} is too large: at most {most}")
    return number


def duration(text: str) -> float:
    """Seconds of `30`, `30s`, `500ms`, `2m`, `1h`."""
    if not (match := _DURATION.fullmatch(text.strip())):
        raise ValueError(f"{text!r} is not a duration: plain seconds, or 500ms, 10s, 2m, 1h")
    seconds = float(match[1]) * _SECONDS[match[2] or "s"]
    if seconds > DURATION_MOST_S:
        raise ValueError(f"{text!r} is too long: at most 100 days")
    return seconds


def positive_duration(text: str) -> float:
    """Seconds, more than 0."""
    if (seconds := duration(text)) <= 0:
        raise ValueError(f"{text!r} is too short: more than 0")
    return seconds


def size(text: str, *, least: int = 0, most: int | None = None) -> int:
    """Bytes of `65536`, `64k`, `1g` (powers of 1024), from `least` to `most`."""
    if not (match := _SIZE.fullmatch(text.strip())):
        raise ValueError(f"{text!r} is not a size: plain bytes, or 64k, 10m, 1g")
    number = int(match[1]) * _BYTES[(match[2] or "").lower()]
    if number < least:
        raise ValueError(f"{text!r} is too small: at least {least} bytes")
    if most is not None and number > most:
        raise ValueError(f"{text!r} is too large: at most {most} bytes")
    return number


def network(text: str) -> str:
    """`10.0.0.0/8`, `::1`, `unix:` for every client of a Unix socket, or `none`."""
    if text not in ("unix:", "none"):
        import ipaddress  # noqa: PLC0415 - 5 ms of start-up, and rarely needed

        try:
            ipaddress.ip_network(text)
        except ValueError as error:
            reason = "it has host bits set" if "host bits" in str(error) else "no address or network"
            raise ValueError(f"{text!r}: {reason}; give one such as 10.0.0.0/8, ::1, unix: or none") from None
    return text


def switch(text: str) -> bool:
    """True of yes, true, on, 1; False of no, false, off, 0."""
    if (word := text.strip().lower()) in _WORDS:
        return _WORDS[word]
    raise ValueError(f"{text!r} is neither yes nor no")


def umask(text: str) -> int | None:
    """A mask of file mode bits in octal, `027`; None of an empty text."""
    if not text:
        return None
    if not re.fullmatch(r"0?[0-7]{1,3}", text, re.ASCII):
        raise ValueError(f"{text!r} is not a mask in octal, such as 027")
    return int(text, 8)


_WORDS = {"yes": True, "true": True, "on": True, "1": True, "no": False, "false": False, "off": False, "0": False}

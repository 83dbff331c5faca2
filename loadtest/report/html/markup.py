"""Elements of HTML and SVG as text. Whatever is not Markup already is escaped on its way in.

Pure: text in, text out.
"""

from __future__ import annotations

import html
import json
import re

_VOID = {"meta"}  # written without an end
# Control characters and lone surrogates, which no HTML file may hold.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class Markup(str):
    """Text that is already markup, and is not escaped."""

    __slots__ = ()


def escape(text: str) -> Markup:
    """Escape text for an element or an attribute."""
    return Markup(html.escape(_UNPRINTABLE.sub("\ufffd", text)))


def element(name: str, /, *children: str, **attributes: str | float | None) -> Markup:
    """Write an element. Attributes: `class_` is class, `data_value` is data-value; None leaves one out."""
    written = "".join(f' {_attribute(key)}="{_value(value)}"' for key, value in attributes.items() if value is not None)
    return Markup(f"<{name}{written}>" if name in _VOID else f"<{name}{written}>{join(*children)}</{name}>")


def join(*children: str) -> Markup:
    """Join children, and escape those that are not markup."""
    return Markup("".join(child if isinstance(child, Markup) else escape(child) for child in children))


def exact(value: object) -> str:
    """Write a figure for a program to read: JSON without blanks."""
    return json.dumps(value, separators=(",", ":"))


def coordinate(value: float) -> str:
    """Write a coordinate to a tenth of a unit, as short as possible."""
    return f"{value:.1f}".removesuffix(".0")


def _attribute(key: str) -> str:
    return key.removesuffix("_").replace("_", "-")


def _value(value: str | float) -> str:
    return escape(value) if isinstance(value, str) else coordinate(value)

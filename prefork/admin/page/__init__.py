"""The live page of --admin: one document that needs nothing else. Its parts are read when this is imported."""

from __future__ import annotations

from pathlib import Path

_HTML, _CSS, _JS = (Path(__file__).with_name(name).read_text("utf-8") for name in ("page.html", "page.css", "page.js"))


def document() -> bytes:
    """The whole page."""
    return _HTML.replace("/*css*/", _CSS).replace("/*js*/", _JS).encode()

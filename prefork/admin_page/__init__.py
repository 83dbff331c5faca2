"""The live page of --admin: one document that needs nothing else. Pure: its files are read when it is imported."""

from __future__ import annotations

from importlib.resources import files

_FILES = files(__name__)
_HTML, _CSS, _JS = ((_FILES / name).read_text("utf-8") for name in ("page.html", "page.css", "page.js"))


def document() -> bytes:
    """The whole page."""
    return _HTML.replace("/*css*/", _CSS).replace("/*js*/", _JS).encode()

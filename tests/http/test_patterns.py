"""The regular expressions: `re` of Python 3.11.0 to 3.11.4 is wrong about some possessive and atomic groups."""

from __future__ import annotations

import importlib
import pkgutil
import re
import sys

import prefork.http


def test_no_group_is_possessive_or_atomic() -> None:
    names = [module.name for module in pkgutil.iter_modules(prefork.http.__path__, "prefork.http.")]
    for name in names:
        importlib.import_module(name)
    found = {
        f"{name}.{attribute}": value.pattern if isinstance(value.pattern, str) else value.pattern.decode("latin-1")
        for name in names
        for attribute, value in vars(sys.modules[name]).items()
        if isinstance(value, re.Pattern)
    }
    assert found
    bare = {name: re.sub(r"\[\^?\]?(?:\\.|[^\]\\])*\]", "[]", text) for name, text in found.items()}
    assert [name for name, text in bare.items() if re.search(r"\)[*+?]\+|\)\{[0-9,]+\}\+|\(\?>", text)] == []

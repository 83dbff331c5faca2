"""Stacks as text: composed by the process itself, split by a reader that wants one thread's stack. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

_CUT = "  ...\n"
_HOME = __file__.removesuffix("core/stacks.py")
_ENTRY = re.compile(r'^(?=  File ")', re.MULTILINE)
_TITLE = re.compile(r"^(?=thread |task )", re.MULTILINE)


def compose(sections: Sequence[tuple[str, str]], most: int) -> str:
    """Titles and stacks as one text of at most about `most` characters. What is too long loses its outermost calls."""
    whole = sum(len(title) + len(stack) for title, stack in sections)
    share = most if whole <= most else most // len(sections)
    return "".join(f"{title}:\n{_inner(stack, share)}" for title, stack in sections)


def thread(text: str, name: str) -> str:
    """The stack of one thread, from what `compose` gave; empty if it is not there."""
    title = f"thread {name}:\n"
    found = [part for part in _TITLE.split(text) if part.startswith(title)]
    return found[0].removeprefix(title) if found else ""


def application(stack: str) -> str:
    """The part of a stack that is not ours: from the first call that an engine made of something else."""
    entries = _ENTRY.split(stack)
    ours = [entry.startswith(f'  File "{_HOME}') for entry in entries]
    engine = next((at for at, entry in enumerate(entries) if entry.startswith(f'  File "{_HOME}engines/')), 0)
    start = next((at for at in range(engine, len(entries)) if not ours[at]), engine)
    return "".join(entries[start:])


def _inner(stack: str, most: int) -> str:
    """The end of a stack, from the beginning of a line."""
    if len(stack) <= most:
        return stack
    return _CUT + stack[-most:].partition("\n")[2]

r"""--env-file FILE: variables for the application, and PREFORK_* for the server, `KEY=VALUE` a line (dotenv).

    # a comment
    DATABASE_URL=postgres://db/shop     # up to a blank and a #
    export GREETING="two\nlines, ${USER:-nobody}"
    PATTERN='taken as it $tands'

In double quotes, \n, \r, \t, \", \', \\ and \$ are replaced; there and without quotes, ${NAME} and ${NAME:-default}
are, from the environment, else from the lines above. Quoted values may have several lines. The environment wins over
the file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from prefork.errors import ConfigError

_BLANK = re.compile(r"[ \t]*(?:#[^\n]*)?(?=\n|\Z)")
_KEY = re.compile(r"[ \t]*(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_.-]*)[ \t]*=")
_QUOTED = re.compile(r"""[ \t]*(?:'([^']*)'|"((?:[^"\\]|\\.)*)")""", re.DOTALL)
_BARE = re.compile(r"(?:[^\n#]|(?<=[^ \t])#)*")
_REPLACED = re.compile(r"\\(.)|\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}", re.DOTALL)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "'": "'", "\\": "\\", "$": "$"}


class Value(str):
    """The value of a variable. `place`: FILE:LINE."""

    __slots__ = ("place",)
    place: str


def read(path: str, source: str, environ: Mapping[str, str], folder: Path = Path()) -> dict[str, Value]:
    """Return what the file sets. `source`: who named it.

    Raises ConfigError: FILE:LINE and what is wrong, but no value, which may be secret.
    """
    try:
        text = (folder / path).read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
        raise ConfigError(f"{source}: cannot read the environment file {str(folder / path)!r}: {reason}") from None
    found: dict[str, Value] = {}
    start, line = 0, 1
    while start < len(text):
        place = f"{path}:{line}"
        end = _BLANK.match(text, start)
        if not end:
            key, value, after = _entry(text, start, place, {**found, **environ})
            found[key] = Value(value)
            found[key].place = place
            end = _BLANK.match(text, after)
            if not end:
                raise ConfigError(f"{place}: something follows the quoted value of {key}")
        line += text.count("\n", start, end.end()) + 1
        start = end.end() + 1
    return found


def _entry(text: str, start: int, place: str, known: Mapping[str, str]) -> tuple[str, str, int]:
    """Return the key and the value that begin there, and where they end."""
    key = _KEY.match(text, start)
    if not key:
        raise ConfigError(f"{place}: this is neither KEY=VALUE nor a comment")
    quoted = _QUOTED.match(text, key.end())
    bare = _BARE.match(text, key.end())
    assert bare
    if quoted:
        literal, double = quoted.groups()
        value = literal if double is None else _replaced(double, known, escapes=True)
    elif (value := bare[0].strip())[:1] in ('"', "'"):
        raise ConfigError(f"{place}: the quote of {key[1]} is not closed")
    else:
        value = _replaced(value, known, escapes=False)
    if "\0" in value:
        raise ConfigError(f"{place}: {key[1]} has a null character")
    return key[1], value, (quoted or bare).end()


def _replaced(value: str, known: Mapping[str, str], *, escapes: bool) -> str:
    def replace(found: re.Match[str]) -> str:
        escaped, name, default = found.groups()
        if escaped is None:
            return known.get(name, "") or default or ""
        return _ESCAPES.get(escaped, found[0]) if escapes else found[0]

    return _REPLACED.sub(replace, value)

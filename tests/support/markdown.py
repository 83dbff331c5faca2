"""The pages for people, taken apart: headings, sections, tables, code blocks."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]  # header, rows

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Page:
    """A page for people. `prose` is its text with empty lines where code blocks are, line by line the same."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.text = (ROOT / name).read_text("utf-8")
        self.prose = FENCE.sub(lambda found: "\n" * found[0].count("\n"), self.text)

    def headings(self) -> list[str]:
        """All headings, with their hashes."""
        return re.findall(r"^#+ .*$", self.prose, re.MULTILINE)

    def anchors(self) -> set[str]:
        """What a link may name."""
        names = [heading.partition(" ")[2].lower() for heading in self.headings()]
        return {re.sub(r"[^\w\- ]", "", name).replace(" ", "-") for name in names}

    def section(self, heading: str) -> str:
        """The text under a heading, up to the next one of its level or above."""
        first, end = self._lines(heading, level=len(heading.partition(" ")[0]))
        return "".join(self.text.splitlines(keepends=True)[first:end])

    def blocks(self, heading: str) -> list[str]:
        """The code blocks under a heading."""
        return [body for _, body in FENCE.findall(self.section(heading))]

    def table(self, heading: str) -> list[str]:
        """The lines of the first table under a heading, before any other heading."""
        first, end = self._lines(heading, level=6)
        rest = itertools.dropwhile(lambda line: not line.startswith("|"), self.prose.splitlines()[first:end])
        return list(itertools.takewhile(lambda line: line.startswith("|"), rest))

    def cells(self, heading: str, column: int = 1) -> list[str]:
        """One column of a table, without its header and its backquotes."""
        return [line.split("|")[column].strip().strip("`") for line in self.table(heading)[2:]]

    def expect_table(self, heading: str, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
        """Fail with the table to paste if the one under the heading is another."""
        wanted = written(header, rows)
        if self.table(heading) != wanted:
            text = "\n".join(wanted)
            pytest.fail(f"{self.name}, {heading!r}: replace its table by\n\n{text}\n", pytrace=False)

    def _lines(self, heading: str, *, level: int) -> tuple[int, int]:
        lines = self.prose.splitlines()
        assert lines.count(heading) == 1, f"{self.name} has to have one heading {heading!r}"
        first = lines.index(heading) + 1
        ends = (number for number in range(first, len(lines)) if re.match(rf"#{{1,{level}}} ", lines[number]))
        return first, next(ends, len(lines))


def written(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """A table as the pages write it."""
    lines = [header, ("---",) * len(header), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]

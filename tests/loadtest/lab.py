"""`loadtest run` as a user starts it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, Any

from tests.loadtest.records import rounds_in
from tests.support.server import ROOT

if TYPE_CHECKING:
    from pathlib import Path

DEADLINE_S = 60


class Lab:
    """`loadtest run` in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.out = folder / "out"

    def start(self, *arguments: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        argv = [sys.executable, "-m", "loadtest", "run", *arguments, "--out", str(self.out)]
        path = os.pathsep.join([str(ROOT), *(env or {}).pop("PYTHONPATH", "").split()])
        return subprocess.Popen(
            argv,
            cwd=self.folder,
            env={**os.environ, **(env or {}), "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(
        self, *arguments: str, env: dict[str, str] | None = None, within_s: float = DEADLINE_S
    ) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments, env=env)
        out, err = process.communicate(timeout=within_s)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def rounds(self) -> list[dict[str, Any]]:
        return rounds_in(self.out)

    def script(self, name: str, source: str) -> Path:
        path = self.folder / name
        path.write_text(textwrap.dedent(source))
        return path

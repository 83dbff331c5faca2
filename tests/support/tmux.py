"""A real terminal for tests: tmux, with a server of its own that ends with the test."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Self

import pytest

from tests.support.server import ROOT, clean_environment
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Mapping

needs_tmux = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
WITHIN_S = 20.0


class Terminal:
    """TEST. A shell in a terminal of `columns` x `lines`; `run` types a prefork command, `keys` presses keys."""

    def __init__(self, env: Mapping[str, str], columns: int = 80, lines: int = 24) -> None:
        self._socket = f"prefork-test-{os.getpid()}-{id(self)}"
        self._env = clean_environment({**env, "LC_ALL": "C.UTF-8", "TERM": "xterm-256color"})
        self._env["TMUX_TMPDIR"] = env["TMPDIR"]  # its socket stays behind, and goes with the place
        self._env.pop("TMUX", None)
        size = ("-x", str(columns), "-y", str(lines))
        self._tmux("-f", "/dev/null", "new-session", "-d", *size, "env", "PS1=shell> ", "/bin/sh")
        try:
            self.wait("^shell>")
        except AssertionError:
            self.__exit__()
            raise

    def _tmux(self, *args: str) -> str:
        done = subprocess.run(
            ["tmux", "-L", self._socket, *args],
            capture_output=True, text=True, timeout=WITHIN_S, check=False, cwd=ROOT, env=self._env,
        )  # fmt: skip
        assert done.returncode == 0, f"tmux {args}: {done.stderr}"
        return done.stdout

    def run(self, *args: str, before: str = "") -> None:
        """Type a prefork command, after what else the shell is to do."""
        command = shlex.join([sys.executable, "-m", "prefork", *args])
        self._tmux("send-keys", "-l", f"clear; {before}{command}; echo exit=$?")
        self.keys("Enter")

    def keys(self, *keys: str) -> None:
        """Press keys, named as tmux names them."""
        self._tmux("send-keys", *keys)

    def resize(self, columns: int, lines: int) -> None:
        """Make the terminal another size."""
        self._tmux("resize-window", "-x", str(columns), "-y", str(lines))

    @property
    def text(self) -> str:
        """What is on the screen."""
        return self._tmux("capture-pane", "-p")

    def wait(self, pattern: str, *, within_s: float = WITHIN_S) -> re.Match[str]:
        """Wait until the screen has it."""
        seen = ""

        def look() -> re.Match[str] | None:
            nonlocal seen
            seen = self.text
            return re.search(pattern, seen, re.MULTILINE)

        try:
            found = eventually(look, within_s=within_s)
        except AssertionError:
            raise AssertionError(f"no {pattern!r} on the screen within {within_s:g} s:\n{seen}") from None
        assert found
        return found

    def wait_without(self, pattern: str, *, within_s: float = WITHIN_S) -> None:
        """Wait until the screen has it no more."""
        eventually(lambda: not re.search(pattern, self.text, re.MULTILINE), within_s=within_s, what=f"no {pattern!r}")

    def assert_restored(self) -> None:
        """The first screen is shown, with its cursor, and the shell gets what is typed, line by line and echoed."""
        shown = self._tmux("display-message", "-p", "#{alternate_on} #{cursor_flag} #{pane_current_command}")
        assert shown.split() == ["0", "1", "sh"]
        self._tmux("send-keys", "-l", "stty -a | tr ';' ' '; echo typed")
        self.keys("Enter")
        self.wait("^typed$")
        modes = set(self.text.split())
        assert {"icanon", "echo", "isig"} <= modes
        assert not {"-icanon", "-echo"} & modes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(
            ["tmux", "-L", self._socket, "kill-server"],
            capture_output=True,
            timeout=WITHIN_S,
            check=False,
            env=self._env,
        )

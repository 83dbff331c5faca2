"""A real locust process with the lab's locustfile: a run of its own, a master, or a worker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.processes import session_members
from tests.support.server import ROOT
from tests.support.wait import eventually

LOCUSTFILE = ROOT / "loadtest" / "locustfile.py"
RUN_S = 40.0


class Generator:
    """`Generator(folder, "--host", ...)` starts; `wait()` judges the end; `log` and `result()` tell what came of it."""

    def __init__(
        self, folder: Path, *args: str, headless: bool = True, locustfile: Path = LOCUSTFILE, log: str = "locust.log"
    ) -> None:
        self._log = folder / log
        self._result = folder / "result.json"
        mode = ["--headless", "--only-summary"] if headless else []
        with self._log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "locust", "-f", str(locustfile), *mode, "--result", str(self._result), *args],
                cwd=folder,
                env={name: value for name, value in os.environ.items() if not name.startswith("LOCUST_")},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def wait(self, *, exit_code: int = 0) -> Generator:
        found = self.process.wait(RUN_S)
        assert found == exit_code, f"exit code {found}\n{self.log}"
        assert "Traceback" not in self.log, self.log
        return self

    def interrupt(self) -> None:
        """Ctrl-C: SIGINT to the whole group."""
        os.killpg(self.process.pid, signal.SIGINT)

    @property
    def has_result(self) -> bool:
        return self._result.exists()

    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._result.read_text())
        return found

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)
        eventually(lambda: not session_members(self.process.pid), within_s=15, what="locust left no process behind")
        assert not list(self._result.parent.glob(".result*")), "locust left an unfinished result behind"

"""A headless Chromium, driven through its own pipe: what it shows, what it asks for, what it complains of."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DEADLINE_S = 60
_FLAGS = (
    "--headless=new",
    "--no-sandbox",  # which root may not have, and which needs more of the kernel than a container gives
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--remote-debugging-pipe",
)


@dataclass
class Browser:
    """One page in a browser of its own."""

    profile: Path
    complaints: list[str] = field(default_factory=list)  # uncaught errors, console messages, refusals of its policy

    def __enter__(self) -> Browser:
        assert CHROMIUM
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        # The browser reads from its descriptor 3 and writes to 4, whatever numbers they have here.
        shell = ["bash", "-c", f'exec "$0" "$@" 3<&{commands} 4>&{answers}', CHROMIUM, *_FLAGS]
        with (self.profile.parent / "chromium.log").open("wb") as log:
            self._process = subprocess.Popen(
                [*shell, f"--user-data-dir={self.profile}", "about:blank"],
                pass_fds=(commands, answers),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "HOME": str(self.profile.parent)},
            )
        os.close(commands)
        os.close(answers)
        self._number, self._unread, self._session = 0, b"", ""
        self._asked: dict[str, str] = {}  # by the browser's number
        try:
            target = self.call("Target.createTarget", url="about:blank")["targetId"]
            self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Network", "Page", "Runtime", "Log", "Accessibility"):
                self.call(f"{domain}.enable")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._session = ""
            self.call("Browser.close")
            self._process.wait(10)
        except (OSError, AssertionError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait(10)
        os.close(self._commands)
        os.close(self._answers)

    @property
    def requests(self) -> list[str]:
        """Every address that was asked for, in order, but for those that a page's policy refused."""
        return list(self._asked.values())

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Ask the browser for something, and wait for the answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        return self._hear(lambda heard: heard.get("id") == self._number)["result"]

    def open(self, page: Path | str, *, width: int = 1200, dark: bool = False, media: str = "screen") -> None:
        """Show a file, or what an address answers, and wait until it is complete."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", media=media, features=scheme)
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Page.navigate", url=page if isinstance(page, str) else page.as_uri())
        self._hear(lambda heard: heard.get("method") == "Page.loadEventFired")

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """The whole page as a picture."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        answer = self.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer["data"]))

    def _hear(self, wanted: Any) -> dict[str, Any]:
        deadline = time.monotonic() + DEADLINE_S
        while True:
            message, separator, rest = self._unread.partition(b"\0")
            if not separator:
                ready, _, _ = select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))
                read = os.read(self._answers, 1 << 20) if ready else b""
                log = self.profile.parent / "chromium.log"
                assert read, (
                    f"Chromium {'has ended' if ready else 'is silent'}: {log.read_text(errors='replace')[-2000:]}"
                )
                self._unread += read
                continue
            self._unread = rest
            heard = json.loads(message)
            self._note(heard)
            if wanted(heard):
                assert "error" not in heard, heard
                return heard

    def _note(self, heard: dict[str, Any]) -> None:
        method, params = heard.get("method"), heard.get("params", {})
        if method == "Network.requestWillBeSent":
            self._asked[params["requestId"]] = params["request"]["url"]
        elif method == "Network.loadingFailed" and params.get("blockedReason"):
            del self._asked[params["requestId"]]
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled":
            self.complaints.append(json.dumps(params["args"]))
        elif method == "Log.entryAdded":
            self.complaints.append(params["entry"]["text"])

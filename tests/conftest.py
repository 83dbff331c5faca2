"""Fixtures shared by all tests: `serve` starts real servers, and a failing test prints their whole logs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest
from hypothesis import settings

import tests.support.examples  # noqa: F401  # its profiles
from tests.support.control import Place
from tests.support.gate import Gate
from tests.support.server import ROOT, RunningServer

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

SLOW_MODULE = re.compile(r"^pytestmark = .*\b(slow|timing|soak)\b", re.MULTILINE)
SERVERS = pytest.StashKey[list[RunningServer]]()

settings.load_profile("full")  # `make test` asks for another


def pytest_addoption(parser: pytest.Parser) -> None:
    """Nothing is written without it."""
    parser.addoption("--results", type=Path, metavar="DIR", help="where soak tests write what they measured")
    parser.addoption("--keep-failures", type=Path, metavar="DIR", help="where the report of each failure is kept")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out what `make test` would import in each of its processes and then deselect: a third of their work."""
    fast = config.getoption("markexpr").startswith("smoke or")
    if fast and collection_path.name.startswith("test_") and collection_path.suffix == ".py":
        text = collection_path.read_text()
        if SLOW_MODULE.search(text) and "smoke" not in text:
            return True
    return None


class Serve(Protocol):
    """`serve("talkback", "--workers", "2")`: see RunningServer for the keywords; `ready=False` does not wait."""

    def __call__(self, *args: str, ready: bool = True, **kwargs: object) -> RunningServer: ...


class Shared(Protocol):
    """`shared("talkback", "--workers", "2")`: the module's server of that command line."""

    def __call__(self, *args: str) -> RunningServer: ...


class LeavingServers:
    """Judges the ends of servers, later: a graceful stop takes up to half a second, and the next test need not wait."""

    def __init__(self) -> None:
        self._leaving: list[tuple[str, RunningServer]] = []

    def take(self, origin: str, server: RunningServer) -> None:
        """Tell a server to stop; `origin` is the test that started it."""
        server.ask_to_stop()
        self._leaving.append((origin, server))

    def check_ends(self) -> None:
        """Wait for all of them; raise with the logs of those that did not end cleanly."""
        complaints = []
        for origin, server in self._leaving:
            try:
                server.close()
            except AssertionError as error:
                complaints.append(f"{origin}: {error}\n{server.log}")
        assert not complaints, "\n".join(complaints)


@pytest.fixture(scope="module")
def leaving_servers() -> Iterator[LeavingServers]:
    """Check at the end of the module that each of its servers ended cleanly."""
    leaving_servers = LeavingServers()
    yield leaving_servers
    leaving_servers.check_ends()


def must_be_marked(item: pytest.Item) -> None:
    """Keep `make test` quick: it leaves out what is slow and not smoke as well."""
    if not {"slow", "timing", "soak"} & {mark.name for mark in item.iter_markers()}:
        pytest.fail("it starts a server, so its module has to be marked slow")


@pytest.fixture
def serve(request: pytest.FixtureRequest, leaving_servers: LeavingServers) -> Iterator[Serve]:
    """Start servers that are told to stop with the test, and judged with the module."""
    must_be_marked(request.node)
    started: list[RunningServer] = []

    def start(*args: str, ready: bool = True, **kwargs: object) -> RunningServer:
        server = RunningServer(*args, **kwargs)  # type: ignore[arg-type]
        started.append(server)
        request.node.stash.setdefault(SERVERS, []).append(server)
        if ready:
            server.wait_ready()
        return server

    yield start
    for server in started:
        leaving_servers.take(request.node.name, server)


@pytest.fixture(scope="module")
def module_servers(leaving_servers: LeavingServers) -> Iterator[dict[tuple[str, ...], RunningServer]]:
    """The servers that `shared` has started for this module, by their command line."""
    servers: dict[tuple[str, ...], RunningServer] = {}
    yield servers
    for args, server in servers.items():
        leaving_servers.take(f"shared {' '.join(args)}", server)


@pytest.fixture
def shared(request: pytest.FixtureRequest, module_servers: dict[tuple[str, ...], RunningServer]) -> Iterator[Shared]:
    """For tests that leave a server as they found it: one per module and command line, and no worker may be lost."""
    must_be_marked(request.node)
    used: dict[RunningServer, set[int]] = {}

    def get(*args: str) -> RunningServer:
        if args not in module_servers:
            module_servers[args] = RunningServer(*args)
            module_servers[args].wait_ready()
        server = module_servers[args]
        used.setdefault(server, server.worker_pids())
        request.node.stash.setdefault(SERVERS, []).append(server)
        return server

    yield get
    for server, pids in used.items():
        assert server.worker_pids() == pids, "a worker has died or was replaced"


@pytest.fixture
def place() -> Iterator[Place]:
    """A place of its own for a server's control socket, and `prefork` commands that find it there."""
    with Place() as made:
        yield made


@pytest.fixture
def gate() -> Iterator[Gate]:
    """A gate that holds the handlers of `tests/apps/gated.py`; it opens with the end of the test at the latest."""
    with Gate() as made:
        yield made


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter, unlike tmp_path; a server that starts there runs the package's copy there.

    The clone itself may be in a folder that is its owner's alone.
    """
    folder = Path(tempfile.mkdtemp(prefix="prefork-test-"))
    shutil.copytree(ROOT / "prefork", folder / "prefork", ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(["chmod", "-R", "a+rX", folder], check=True)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def app(tmp_path: Path) -> AppWriter:
    """Write an application that only one test needs, and return how to name it on the command line."""
    return AppWriter(tmp_path)


class AppWriter:
    """`app("def handle(conn): ...")` -> "/tmp/.../app.py:handle"."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, source: str, *, name: str = "app.py", attribute: str = "handle") -> str:
        path = self._folder / name
        path.write_text(source)
        return f"{path}:{attribute}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the whole log of every server of a test that failed, also when only its teardown did."""
    report = yield
    if report.failed:
        for server in item.stash.get(SERVERS, []):
            report.sections.append((f"log of server {server.pid}", server.log))
        if folder := item.config.getoption("--keep-failures"):
            keep(report, folder)
    return report


def keep(report: pytest.TestReport, folder: Path) -> None:
    """Write the report of a failure to a file of its own; the first line names the test."""
    sections = [f"--- {title}\n{text}" for title, text in report.sections]
    name = f"{os.getpid()}-{len(list(folder.iterdir()))}"
    (folder / name).write_text("\n".join([report.nodeid, report.longreprtext, *sections]), errors="backslashreplace")

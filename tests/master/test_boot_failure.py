"""What cannot be served ends at once: one clear message, the right exit code, no endless respawn."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.support.server import APPS, run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import AppWriter, Serve
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow

CANNOT_BOOT = 3
CANNOT_LOAD = 4
FAST_S = 15.0  # a boot that is tried again and again never ends
IDENTITY = str(APPS / "identity.py")


def failed(serve: Serve, target: str, *args: str, code: int, **kwargs: object) -> RunningServer:
    server = serve(target, "--workers", "3", *args, ready=False, expected_exit=code, expect_traceback=True, **kwargs)
    assert server.wait_exit(within_s=FAST_S) == code
    assert "ready workers" not in server.log
    return server


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("no_such_module:handle", ["no_such_module"]),
        (f"{IDENTITY}:pidd", ["pidd", "pid"]),
        (f"{IDENTITY}:nothing_like_it", ["nothing_like_it"]),
        ("/no/such/file.py:handle", ["/no/such/file.py"]),
        (f"{APPS / 'connection.py'}:not_callable", ["not_callable", "int"]),
        ("talkbak", ["talkbak", "talkback"]),
        ("socketserver:TCPServer.nothing", ["nothing"]),
    ],
    ids=["module", "near-attribute", "attribute", "file", "not-callable", "near-builtin", "nested"],
)
def test_an_app_that_cannot_be_found_is_one_clear_message(serve: Serve, target: str, words: list[str]) -> None:
    server = failed(serve, target, code=CANNOT_LOAD)
    for word in words:
        assert word in server.log
    assert "Traceback" not in server.log, "the app raised nothing: there is nothing to trace"
    assert len(re.findall(r"ERROR|CRITICAL", server.log)) <= 1


def test_a_near_name_is_suggested(serve: Serve) -> None:
    assert re.search(r"did you mean.*\bpid\b", failed(serve, f"{IDENTITY}:pidd", code=CANNOT_LOAD).log, re.IGNORECASE)
    assert re.search(r"did you mean.*talkback", failed(serve, "talkbak", code=CANNOT_LOAD).log, re.IGNORECASE)


def test_a_near_module_name_is_suggested(serve: Serve) -> None:
    server = failed(serve, "identiti:pid", code=CANNOT_LOAD, cwd=APPS)
    assert re.search(r"did you mean.*\bidentity\b", server.log, re.IGNORECASE)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def handle(conn:\n    pass\n", ["SyntaxError", "line 1"]),
        (
            "import a_missing_dependency\ndef handle(conn): ...\n",
            ["ModuleNotFoundError", "a_missing_dependency", "line 1"],
        ),
        ("from os import nothing_there\ndef handle(conn): ...\n", ["ImportError", "nothing_there"]),
        (
            "def setting():\n    raise KeyError('DATABASE')\nsetting()\n",
            ["KeyError", "DATABASE", "in setting", "line 3"],
        ),
        ("raise SystemExit('I will not')\n", ["I will not"]),
    ],
    ids=["syntax", "dependency", "import", "exception", "sys-exit"],
)
def test_an_app_that_raises_while_imported_shows_its_own_traceback_once(
    serve: Serve, app: AppWriter, source: str, words: list[str]
) -> None:
    server = failed(serve, app(source), code=CANNOT_LOAD)
    for word in words:
        assert word in server.log
    assert server.log.count("cannot load") == 1, "once, whatever the number of workers"
    assert server.log.count("Traceback (most recent call last)") <= 1
    assert "importlib" not in server.log, "the frames of the loader are not the app's"
    assert "prefork/runtime/loader.py" not in server.log


@pytest.mark.parametrize("code", [0, 1, 3, 4])
def test_a_worker_that_exits_while_it_boots_ends_the_server(
    serve: Serve, app: AppWriter, tmp_path: Path, code: int
) -> None:
    seen = tmp_path / "spawns"
    source = f"import os\nwith open({str(seen)!r}, 'a') as f: f.write('x')\nos._exit({code})\n"
    server = failed(serve, app(source), code=CANNOT_BOOT)
    assert len(seen.read_text()) <= 3, "no respawn loop"
    assert server.log.count("cannot boot") == 1
    assert (f"exit code {code}" if code else "left by itself") in server.log


def test_a_worker_that_crashes_while_it_boots_is_named_by_its_signal(serve: Serve, app: AppWriter) -> None:
    server = failed(serve, app("import ctypes\nctypes.string_at(0)\n"), code=CANNOT_BOOT)
    assert "SIGSEGV" in server.log
    assert re.search(r'File ".*app\.py", line 2', server.log)


def test_an_import_that_never_ends_is_given_up(serve: Serve, app: AppWriter) -> None:
    source = "import threading\nthreading.Event().wait()\n"
    server = failed(serve, app(source), "--boot-timeout", "500ms", code=CANNOT_BOOT)
    assert "boot" in server.log
    assert "500ms" in server.log or "0.5" in server.log
    assert re.search(r'worker hung .*(\n.*)+File ".*app\.py", line 2', server.log), "and where it hangs"


def test_one_of_several_workers_that_cannot_boot_is_enough(serve: Serve, app: AppWriter) -> None:
    source = "import os\nif os.environ['PREFORK_SLOT'] == '1': os._exit(1)\ndef handle(conn): ...\n"
    server = failed(serve, app(source), code=CANNOT_BOOT)
    assert "worker=1" in server.log


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def handle(): ...\n", ["--interface"]),
        ("def handle(a, b, c, d): ...\n", ["--interface"]),
    ],
    ids=["no-arguments", "four-arguments"],
)
def test_a_callable_of_no_known_kind_names_the_option_that_decides(
    serve: Serve, app: AppWriter, source: str, words: list[str]
) -> None:
    server = failed(serve, app(source), code=CANNOT_LOAD)
    for word in words:
        assert word in server.log


def test_the_failure_comes_before_anything_is_left_behind(tmp_path: Path) -> None:
    done = run("serve", "no_such_module:handle", "--bind", f"unix:{tmp_path}/s", "--workers", "2")
    assert done.returncode == CANNOT_LOAD
    assert not (tmp_path / "s").exists()

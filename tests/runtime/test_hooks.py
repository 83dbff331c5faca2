"""Hooks: which functions are found, what a mistake in them is told, and that an exception stays where it belongs."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

import pytest

from prefork.core.log import open_log
from prefork.errors import AppLoadError, ConfigError
from prefork.runtime.hooks import PARAMETERS, DeathReport, Hooks, WorkerPlace, load_hooks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LOG = open_log()
PLACE = WorkerPlace(slot=2, generation=1, pid=4242)
REPORT = DeathReport(
    slot=2, generation=1, pid=4242, cause="SIGKILL", reason="", serving="127.0.0.1:5", age_s=1.5, detail=""
)  # fmt: skip
THREAD = "import threading, time\nthreading.Thread(target=time.sleep, args=(0.2,), name='ticker').start()\n"


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Callable[..., Hooks]]:
    """Write a module and load its hooks; what it imported is forgotten afterwards."""
    modules, path = set(sys.modules), sys.path[:]

    def write_and_load(source: str, app: str = "talkback") -> Hooks:
        (tmp_path / "my_hooks.py").write_text(source)
        return load_hooks(str(tmp_path / "my_hooks.py"), LOG, app=app, source="--hooks")

    yield write_and_load
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def test_none_asked_is_none_called() -> None:
    hooks = load_hooks("", LOG, app="talkback", source="default")
    hooks.template_loaded()
    hooks.worker_started(PLACE)
    hooks.worker_stopping(PLACE)
    hooks.worker_died(REPORT)
    assert hooks.found == {}


def test_each_hook_is_called_with_what_it_is_told(load: Callable[..., Hooks]) -> None:
    hooks = load(
        """
calls = []
def template_loaded(): calls.append(("template_loaded",))
def worker_started(worker): calls.append(("worker_started", worker.slot, worker.generation, worker.pid))
def worker_stopping(worker): calls.append(("worker_stopping", worker))
worker_died = lambda report: calls.append(("worker_died", report.cause, report.serving))
def helper(): ...
"""
    )
    assert hooks.found.keys() == PARAMETERS.keys()
    hooks.template_loaded()
    hooks.worker_started(PLACE)
    hooks.worker_stopping(PLACE)
    hooks.worker_died(REPORT)
    assert sys.modules["my_hooks"].calls == [
        ("template_loaded",), ("worker_started", 2, 1, 4242), ("worker_stopping", PLACE),
        ("worker_died", "SIGKILL", "127.0.0.1:5"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("def worker_start(worker): ...", r"worker_start\(\) is no hook; did you mean worker_started\(\)\?"),
        ("def worker_dies(report): ...", r"did you mean worker_died\(\)\?"),
        ("def worker_started(w): ...\ndef worker_stoping(w): ...", r"did you mean worker_stopping\(\)\?"),
        ("x = 1", "has none of the hooks: template_loaded, worker_started, worker_stopping, worker_died$"),
        ("worker_died = 5", "worker_died is not a function that can be called with one argument"),
        ("def worker_started(): ...", "worker_started is not a function that can be called with one argument"),
        ("def template_loaded(template): ...", "template_loaded is not a function that can be called with no arg"),
        (THREAD + "def worker_died(report): ...", r"started the thread 'ticker'; do that in worker_started\(\)"),
    ],
)  # fmt: skip
def test_a_module_that_is_no_hooks_module_says_why(load: Callable[..., Hooks], source: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        load(source)
    assert str(caught.value).startswith("--hooks: ")


@pytest.mark.parametrize("name", ["worker_pool", "start", "_worker_start", "template", "stopping"])
def test_other_functions_are_no_mistake(load: Callable[..., Hooks], name: str) -> None:
    assert load(f"def worker_started(worker): ...\ndef {name}(): ...").found.keys() == {"worker_started"}


def test_the_master_must_not_import_the_app(load: Callable[..., Hooks], tmp_path: Path) -> None:
    (tmp_path / "shop_app.py").write_text("def handle(conn): ...")
    source = "import shop_app\ndef worker_started(worker): ..."
    for app in ("shop_app:handle", f"{tmp_path}/shop_app.py:handle"):
        sys.modules.pop("shop_app", None)
        with pytest.raises(ConfigError, match=r"imports the app's module 'shop_app'.*import it inside the functions"):
            load(source, app)
    assert load("def worker_started(worker):\n    import shop_app", "shop_app:handle").found


def test_a_module_that_cannot_be_imported_shows_its_traceback(load: Callable[..., Hooks]) -> None:
    with pytest.raises(AppLoadError, match=re.escape("it raised ZeroDivisionError")) as caught:
        load("def worker_died(report): ...\n1 / 0")
    assert str(caught.value).startswith("--hooks: cannot load")
    assert "my_hooks.py" in caught.value.detail
    with pytest.raises(AppLoadError, match="--hooks: cannot load 'no_such_hooks'"):
        load_hooks("no_such_hooks", LOG, app="talkback", source="--hooks")


@pytest.mark.parametrize(
    "failure", ["raise RuntimeError('no database')", "import sys; sys.exit(3)", "raise KeyboardInterrupt"]
)
def test_a_hook_that_fails_at_the_start_is_a_failed_boot_and_later_a_log_line(
    load: Callable[..., Hooks], capfd: pytest.CaptureFixture[str], failure: str
) -> None:
    hooks = load(
        f"def template_loaded(): {failure}\ndef worker_started(w): {failure}\n"
        f"def worker_stopping(w): {failure}\ndef worker_died(r): {failure}\n"
    )
    for call in (hooks.template_loaded, lambda: hooks.worker_started(PLACE)):
        with pytest.raises(AppLoadError, match=r"^the hook \w+\(\) raised (RuntimeError|SystemExit|KeyboardInterrupt)"):
            call()
    capfd.readouterr()
    hooks.worker_stopping(PLACE)
    hooks.worker_died(REPORT)
    said = capfd.readouterr().err
    assert "ERROR hook failed hook=worker_stopping" in said
    assert "ERROR hook failed hook=worker_died" in said

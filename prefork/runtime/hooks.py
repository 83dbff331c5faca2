"""--hooks MODULE: the few moments of a server's life at which people need code of their own.

    template_loaded()        in the template process (--preload), when the app is imported and before workers are forked
    worker_started(worker)   in each worker, when the app is loaded and before it accepts; an exception is a failed boot
    worker_stopping(worker)  in each worker, when its last connection is done and before it exits
    worker_died(report)      in the master, when a worker ended that nobody had told to

MODULE is imported once, by the master, before any fork: a reload does not import it anew. So it must not import the
application at its top level, which a reload could then not replace; the functions may import what they like.

The master is one loop. An exception in worker_died is logged and costs nothing; while the function runs nobody is
respawned, and nothing can interrupt it: what may take more than a second belongs into a process of its own.
"""

from __future__ import annotations

import difflib
import inspect
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from prefork.core.log import Log
from prefork.errors import AppLoadError, ConfigError
from prefork.runtime.loader import fault_of, load_module, module_of

PARAMETERS = {"template_loaded": 0, "worker_started": 1, "worker_stopping": 1, "worker_died": 1}
_NEAR = 0.85  # difflib's ratio: worker_start and on_worker_died are near, worker is not


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPlace:
    """What worker_started and worker_stopping get: which worker this is."""

    slot: int
    generation: int
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeathReport:
    """What worker_died gets. `cause` is a signal's name or an exit code, `detail` a traceback if there is one."""

    slot: int
    generation: int
    pid: int
    cause: str
    reason: str
    serving: str  # whose connection it held, "" if none
    age_s: float
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """The functions that the module has, by name. Empty without --hooks."""

    log: Log
    found: dict[str, Callable[..., object]]

    def template_loaded(self) -> None:
        """TEMPLATE. Raises AppLoadError."""
        self._call_or_raise("template_loaded")

    def worker_started(self, place: WorkerPlace) -> None:
        """WORKER. Raises AppLoadError: the worker cannot boot."""
        self._call_or_raise("worker_started", place)

    def worker_stopping(self, place: WorkerPlace) -> None:
        """WORKER. Raises nothing."""
        self._call_and_log("worker_stopping", place)

    def worker_died(self, report: DeathReport) -> None:
        """MASTER. Raises nothing."""
        self._call_and_log("worker_died", report)

    def _call_or_raise(self, name: str, *args: object) -> None:
        if hook := self.found.get(name):
            try:
                hook(*args)
            except BaseException as error:  # noqa: BLE001 - the hook's own code, whatever it raises
                raise fault_of(f"the hook {name}()", error) from None

    def _call_and_log(self, name: str, *args: object) -> None:
        if hook := self.found.get(name):
            try:
                hook(*args)
            except BaseException as error:  # noqa: BLE001 - the hook's own code, whatever it raises
                self.log.error("hook failed", hook=name, error=type(error).__name__, exc=error)


def load_hooks(where: str, log: Log, *, app: str, source: str) -> Hooks:
    """MASTER. Import the module ("" = none) and find its hooks. `source` says who asked for it.

    Raises AppLoadError if it cannot be imported, ConfigError if it is not what a hooks module may be.
    """
    if not where:
        return Hooks(log=log, found={})
    threads = set(threading.enumerate())
    before = set(sys.modules)
    try:
        module = load_module(where)
    except AppLoadError as error:
        raise AppLoadError(f"{source}: {error}", error.detail) from None
    if started := [thread.name for thread in threading.enumerate() if thread not in threads]:
        raise ConfigError(
            f"{source}: importing {where!r} started the thread {started[0]!r}; do that in worker_started()"
        )
    app_module = module_of(app).removesuffix(".py").rpartition("/")[2]
    if app_module and app_module in set(sys.modules) - before:
        raise ConfigError(
            f"{source}: {where!r} imports the app's module {app_module!r}, which then could not be reloaded; "
            "import it inside the functions"
        )
    return Hooks(log=log, found=_find(module, f"{source}: {where!r}"))


def _find(module: ModuleType, who: str) -> dict[str, Callable[..., object]]:
    found: dict[str, Callable[..., object]] = {}
    for name, value in vars(module).items():
        if name in PARAMETERS:
            _check(name, value, who)
            found[name] = value
        elif inspect.isfunction(value) and value.__module__ == module.__name__ and (near := _misspelt(name)):
            rest = "if it is a function of your own, begin its name with _"
            raise ConfigError(f"{who}: {name}() is no hook; did you mean {near}()? {rest}")
    if not found:
        raise ConfigError(f"{who} has none of the hooks: {', '.join(PARAMETERS)}")
    return found


def _misspelt(name: str) -> str | None:
    """The hook that the name is nearly that of."""
    near = difflib.get_close_matches(name, PARAMETERS, n=1, cutoff=_NEAR)
    return near[0] if near and not name.startswith("_") else None


def _check(name: str, value: Any, who: str) -> None:
    arguments = PARAMETERS[name]
    try:
        inspect.signature(value).bind(*[None] * arguments)
    except TypeError:
        wanted = "one argument" if arguments else "no arguments"
        raise ConfigError(f"{who}: {name} is not a function that can be called with {wanted}") from None
    except ValueError:
        return  # written in C: Python cannot tell

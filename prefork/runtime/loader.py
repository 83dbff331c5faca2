"""APP to something that can be served: `module:attr`, `path.py:attr`, `module:create()` or a built-in's name.

The kind follows from what the object is, by the number of positional parameters and never by their names; anything
that fits no rule is an error that names `--interface`. Loading runs in a worker, so the master never imports the app.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.util
import inspect
import re
import socketserver
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from prefork.errors import AppLoadError
from prefork.runtime.builtins import BUILTINS

_ATTRIBUTE = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)(\(\))?")


@dataclass(frozen=True, slots=True)
class App:
    """A loaded application: what it is, and the callable or class to run."""

    kind: str
    target: Any
    name: str


def load(spec: str, interface: str = "auto") -> App:
    """Find APP and tell its kind. Raises AppLoadError; its `detail` is the app's own traceback, if it raised."""
    if spec in BUILTINS:
        target: Any = BUILTINS[spec]
    else:
        where, colon, attribute = spec.rpartition(":")
        if not colon or not where:
            raise AppLoadError(_no_such_form(spec))
        if not (match := _ATTRIBUTE.fullmatch(attribute)):
            raise AppLoadError(
                f"cannot load {spec!r}: {attribute!r} is not a name, a dotted name or a call without arguments"
            )
        module = _import(spec, where)
        target = _find(spec, module, match[1].split("."))
        if match[2]:
            target = _create(spec, target)
    return App(_kind(spec, target, interface), target, spec)


def load_module(where: str) -> ModuleType:
    """Import `module` or `path.py` by the same rules. Raises AppLoadError."""
    return _import(where, where)


def adopt(target: Any, name: str, interface: str = "auto") -> App:
    """The App of an object that Python code gave. Raises AppLoadError."""
    return App(_kind(name, target, interface), target, name)


def _no_such_form(spec: str) -> str:
    near = difflib.get_close_matches(spec, BUILTINS, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return (
        f"cannot load {spec!r}: it is neither a built-in ({', '.join(BUILTINS)}) "
        f"nor of the form module:attribute or path.py:attribute.{hint}"
    )


def _import(spec: str, where: str) -> ModuleType:
    if ("/" in where or where.startswith(".")) and not where.endswith(".py"):
        raise AppLoadError(
            f"cannot load {spec!r}: there is no module {where!r}; a file is named with its suffix, {where}.py:attribute"
        )
    try:
        if where.endswith(".py"):
            return _import_file(spec, Path(where))
        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))  # as `python -m`: the app is looked for where the server was started
        return importlib.import_module(where)
    except AppLoadError:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and (where == error.name or where.startswith(error.name + ".")):
            raise AppLoadError(_no_module(spec, where, error.name)) from None
        raise _own_fault(spec, error) from None
    except BaseException as error:  # noqa: BLE001 - SystemExit and all else that an app may raise while it is imported
        raise _own_fault(spec, error) from None


def _import_file(spec: str, path: Path) -> ModuleType:
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.py")], n=1)
        hint = f" Did you mean {str(path.with_name(near[0]))!r}?" if near else ""
        raise AppLoadError(f"cannot load {spec!r}: there is no file {str(path)!r} in {Path.cwd()}.{hint}")
    folder = str(path.parent.resolve())
    if folder not in sys.path:
        sys.path.insert(0, folder)  # the file may import its neighbours
    found = importlib.util.spec_from_file_location(path.stem, path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[path.stem] = module
    found.loader.exec_module(module)
    return module


def _no_module(spec: str, where: str, missing: str) -> str:
    names = [path.stem for path in Path.cwd().glob("*.py")] + [
        path.parent.name for path in Path.cwd().glob("*/__init__.py")
    ]
    near = difflib.get_close_matches(where, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"cannot load {spec!r}: there is no module {missing!r} on the path, which starts with {Path.cwd()}.{hint}"


def _own_fault(spec: str, error: BaseException) -> AppLoadError:
    return fault_of(f"cannot load {spec!r}: it", error)


def fault_of(who: str, error: BaseException) -> AppLoadError:
    """The error for an application that raised while it was loaded, with its traceback but no import frames."""
    report = traceback.TracebackException.from_exception(error)
    _leave_out_machinery(report)
    lines = list(report.format())
    what = str(error).splitlines()[0] if str(error) else ""
    return AppLoadError(f"{who} raised {type(error).__name__}" + (f": {what}" if what else ""), "".join(lines))


def _leave_out_machinery(report: traceback.TracebackException) -> None:
    """Keep only the app's own frames, in the error and in those that led to it."""
    own = [frame for frame in report.stack if frame.filename != __file__ and "importlib" not in frame.filename]
    report.stack = traceback.StackSummary.from_list(own)
    for other in (report.__cause__, report.__context__, *(report.exceptions or ())):
        if other is not None:
            _leave_out_machinery(other)


def _find(spec: str, module: ModuleType, names: Sequence[str]) -> Any:
    target: Any = module
    for name in names:
        try:
            target = getattr(target, name)
        except AttributeError:
            near = difflib.get_close_matches(name, [n for n in dir(target) if not n.startswith("__")], n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            owner = getattr(target, "__name__", type(target).__name__)
            raise AppLoadError(f"cannot load {spec!r}: {owner!r} has no attribute {name!r}.{hint}") from None
    return target


def _create(spec: str, factory: Any) -> Any:
    try:
        return factory()
    except BaseException as error:  # noqa: BLE001 - the app's own code, whatever it raises
        raise _own_fault(spec, error) from None


def _kind(spec: str, target: Any, interface: str) -> str:
    if not callable(target):
        raise AppLoadError(f"cannot load {spec!r}: it is not callable but {_article(type(target).__name__)}")
    kind = guess(target) if interface == "auto" else interface
    if fault := _fault_of_protocol(target, kind):
        raise AppLoadError(f"cannot load {spec!r}: {fault}")
    if kind is None:
        arity = _arity(target)
        takes = f"it takes {arity} positional parameters" if arity >= 0 else "its parameters cannot be read"
        raise AppLoadError(
            f"cannot tell what {spec!r} is: {takes}; say it with --interface "
            "(stream takes 1, the connection; wsgi takes 2, environ and start_response; coroutine functions: streams "
            "takes 2, reader and writer; asgi takes 3, scope, receive and send; protocol takes none and returns an "
            "asyncio.Protocol)"
        )
    return kind


def _fault_of_protocol(target: Any, kind: str | None) -> str | None:
    """Why a class of asyncio's protocols cannot serve connections, or None if nothing speaks against it."""
    asyncio, made = sys.modules.get("asyncio"), _without_partial(target)
    if kind != "protocol" or not isinstance(made, type) or asyncio is None:
        return None
    if issubclass(made, asyncio.BaseProtocol) and not issubclass(made, asyncio.Protocol | asyncio.BufferedProtocol):
        return f"{made.__name__} is no protocol of a stream, as asyncio.Protocol and asyncio.BufferedProtocol are"
    if (arity := _arity(target)) > 0:
        return (
            f"{made.__name__} is made for each connection without arguments, but takes {arity}; give them with a "
            "functools.partial, or name a function that makes one, with --interface protocol"
        )
    return None


def guess(target: Callable[..., Any]) -> str | None:
    """The kind of a callable, or None if no rule fits."""
    made = _without_partial(target)
    if isinstance(made, type):
        if issubclass(made, socketserver.BaseRequestHandler):
            return None if issubclass(made, socketserver.DatagramRequestHandler) else "socketserver"
        asyncio = sys.modules.get("asyncio")  # 20 ms of start-up; who made a Protocol class has imported it
        if asyncio is not None and issubclass(made, asyncio.BaseProtocol):
            return "protocol"
    arity = _arity(target)
    if _is_coroutine(target):
        return {3: "asgi", 2: "streams"}.get(arity)
    return {2: "wsgi", 1: "stream"}.get(arity)


def _without_partial(target: Any) -> Any:
    while isinstance(target, functools.partial):
        target = target.func
    return target


def _is_coroutine(target: Any) -> bool:
    target = inspect.unwrap(_without_partial(target))
    return inspect.iscoroutinefunction(target) or inspect.iscoroutinefunction(getattr(target, "__call__", None))  # noqa: B004


def _arity(target: Any) -> int:
    """How many positional parameters a call must give; -1 where Python cannot tell."""
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return -1
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in positional and p.default is inspect.Parameter.empty for p in parameters)


def _article(noun: str) -> str:
    return ("an " if noun[0].lower() in "aeiou" else "a ") + noun

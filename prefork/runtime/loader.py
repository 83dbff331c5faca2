"""APP to something that can be served: `module:attr`, `path.py:attr`, `module:create('prod')` or a built-in's name.

A module or file alone is its `application` or `app`.

The kind follows from what the object is, by the number of positional parameters and never by their names; anything
that fits no rule is an error that names `--interface`. Names are read only to refuse what would be served wrongly, such
as a view of Django. Loading runs in a worker, so the master never imports the app.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib
import importlib.util
import inspect
import re
import socketserver
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from prefork.errors import AppLoadError
from prefork.runtime.builtins import BUILTINS

_NAME = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")
_CALL = re.compile(rf"(.+?):({_NAME.pattern})(\(.*\))", re.DOTALL)  # its arguments may have colons
_SERVED = ("application", "app")  # of a module that is named alone, as gunicorn has it
_FACTORIES = ("create_app", "make_app")  # the same, with --factory
_USUAL = ("api", "wsgi", "asgi", "handle", *_FACTORIES)  # what else is served by convention
_RENAMED = "prefork_app_"  # begins the name of a module whose own name belongs to another
_IMPORTED_LATE = ("uvloop", "websockets")  # by prefork itself, after the application


@dataclass(frozen=True, slots=True)
class App:
    """A loaded application: what it is, and the callable or class to run."""

    kind: str
    target: Any
    name: str
    renamed: str = ""  # the name of its module, where that could not have its own


def load(spec: str, interface: str = "auto", *, factory: bool = False) -> App:
    """Find APP and tell its kind. Raises AppLoadError; its `detail` is the app's own traceback, if it raised.

    `factory`: it is a function to call without arguments, which makes the application.
    """
    if spec in BUILTINS and not factory:
        return App(_kind(spec, BUILTINS[spec], interface), BUILTINS[spec], spec)
    where, attribute, call = _split(spec)
    arguments = _literals(spec, attribute, call) if call else None
    module = _import(spec, where)
    names = attribute.split(".") if attribute else [_served(spec, module, _FACTORIES if factory else _SERVED)]
    target = _find(spec, module, names)
    if factory and arguments is None:
        if not callable(target):
            what = _article(type(target).__name__)
            raise AppLoadError(f"cannot load {spec!r}: --factory asks for a function, but it is {what}; leave it out")
        arguments = [], {}
    if arguments is not None:
        target = _create(spec, target, *arguments)
    renamed = module.__name__ if module.__name__.startswith(_RENAMED) else ""
    return App(_kind(spec, target, interface), target, spec, renamed)


def load_module(where: str) -> ModuleType:
    """Import `module` or `path.py` by the same rules. Raises AppLoadError."""
    return _import(where, where)


def adopt(target: Any, name: str, interface: str = "auto") -> App:
    """The App of an object that Python code gave. Raises AppLoadError."""
    return App(_kind(name, target, interface), target, name)


def module_of(spec: str) -> str:
    """Return the module or file that APP names, or "" for a built-in and for what is no APP."""
    try:
        return "" if spec in BUILTINS else _split(spec)[0]
    except AppLoadError:
        return ""


def _split(spec: str) -> tuple[str, str, str]:
    """Return the module or file, the attribute in it, and the arguments in parentheses; "" for what is not there."""
    if match := _CALL.fullmatch(spec):
        return match[1], match[2], match[3]
    if _NAME.fullmatch(spec) or (spec.endswith(".py") and ":" not in spec):
        return spec, "", ""
    where, colon, attribute = spec.rpartition(":")
    if not colon or not where:
        raise AppLoadError(_no_such_form(spec))
    if not _NAME.fullmatch(attribute):
        raise AppLoadError(_no_attribute(spec, attribute))
    return where, attribute, ""


def _literals(spec: str, attribute: str, call: str) -> tuple[list[Any], dict[str, Any]]:
    """Return the arguments of a call. Raises AppLoadError unless all are literals."""
    try:
        tree = ast.parse(f"f{call}", mode="eval").body
        if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name):
            raise ValueError("a call of a call, or the like")
        named = {word.arg: ast.literal_eval(word.value) for word in tree.keywords if word.arg is not None}
        if len(named) != len(tree.keywords):
            raise ValueError("keywords from a mapping")
        return [ast.literal_eval(value) for value in tree.args], named
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        raise AppLoadError(_no_attribute(spec, attribute + call)) from None


def _no_attribute(spec: str, attribute: str) -> str:
    return f"cannot load {spec!r}: {attribute!r} is not a name, a dotted name or a call with literal arguments"


def _no_such_form(spec: str) -> str:
    near = difflib.get_close_matches(spec, BUILTINS, n=1)
    return (
        f"cannot load {spec!r}: it is neither a built-in ({', '.join(BUILTINS)}) "
        f"nor of the form module:attribute or path.py:attribute." + (f" Did you mean {near[0]!r}?" if near else "")
    )


def _served(spec: str, module: ModuleType, wanted: Sequence[str]) -> str:
    """Return the name of what is to be served of a module that was named alone. Raises AppLoadError."""
    names = [name for name, value in vars(module).items() if not isinstance(value, ModuleType)]
    for name in wanted:
        if name in names:
            return name
    usual = next((name for name in (*_USUAL, *_SERVED) if name in names), None)
    call = "()" if usual in _FACTORIES else ""
    hint = f"did you mean {f'{spec}:{usual}{call}'!r}?" if usual else f"name what of it is to be served, as {spec}:NAME"
    raise AppLoadError(f"cannot load {spec!r}: it has no {' and no '.join(wanted)}; {hint}")


def _import(spec: str, where: str) -> ModuleType:
    if ("/" in where or where.startswith(".")) and not where.endswith(".py"):
        raise AppLoadError(
            f"cannot load {spec!r}: there is no module {where!r}; a file is named with its suffix, {where}.py:attribute"
        )
    try:
        if where.endswith(".py"):
            return _import_file(spec, Path(where))
        if _belongs_to_another(where, neighbour := Path.cwd() / f"{where}.py") and neighbour.is_file():
            return _import_file(spec, neighbour)
        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))  # as `python -m`: the app is looked for where the server was started
        return importlib.import_module(where)
    except AppLoadError:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and (where == error.name or where.startswith(error.name + ".")):
            if spec == where and "." not in spec:
                raise AppLoadError(_no_such_form(spec) + _near_module(where)) from None
            raise AppLoadError(_no_module(spec, where, error.name)) from None
        raise _own_fault(spec, error) from None
    except BaseException as error:  # noqa: BLE001 - SystemExit and all else that an app may raise while it is imported
        raise _own_fault(spec, error) from None


def _import_file(spec: str, path: Path) -> ModuleType:
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.py")], n=1)
        hint = f" Did you mean {str(path.with_name(near[0]))!r}?" if near else ""
        raise AppLoadError(f"cannot load {spec!r}: there is no file {str(path)!r} in {Path.cwd()}.{hint}")
    folder, name = str(path.parent.resolve()), path.stem
    if _belongs_to_another(name, path):
        # The standard library, or whoever imports that module later, must not find this file, nor prefork's module.
        name = _RENAMED + name
        sys.path[:] = [entry for entry in sys.path if str(Path(entry).resolve()) != folder] + [folder]
    elif folder not in sys.path:
        sys.path.insert(0, folder)  # the file may import its neighbours
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    found.loader.exec_module(module)
    return module


def _belongs_to_another(name: str, path: Path) -> bool:
    """Whether a module other than this file has the name, or is going to have it."""
    if name in sys.stdlib_module_names or name in _IMPORTED_LATE:
        return True
    file = getattr(sys.modules.get(name), "__file__", None)
    return name in sys.modules and (file is None or Path(file).resolve() != path.resolve())


def _no_module(spec: str, where: str, missing: str) -> str:
    here = f"which starts with {Path.cwd()}.{_near_module(where)}"
    return f"cannot load {spec!r}: there is no module {missing!r} on the path, {here}"


def _near_module(where: str) -> str:
    names = [path.stem for path in Path.cwd().glob("*.py")]
    names += [path.parent.name for path in Path.cwd().glob("*/__init__.py")]
    near = difflib.get_close_matches(where, names, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


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


def _create(spec: str, factory: Any, arguments: Sequence[Any], named: Mapping[str, Any]) -> Any:
    try:
        return factory(*arguments, **named)
    except BaseException as error:  # noqa: BLE001 - the app's own code, whatever it raises
        raise _own_fault(spec, error) from None


def _kind(spec: str, target: Any, interface: str) -> str:
    if not callable(target):
        raise AppLoadError(
            f"cannot load {spec!r}: it is not callable but {_article(type(target).__name__)}{_inner(spec, target)}"
        )
    kind = guess(target) if interface == "auto" else interface
    fault = _foreign(target, kind) if interface == "auto" else None
    if fault := fault or _fault_of_protocol(target, kind):
        raise AppLoadError(f"cannot load {spec!r}: {fault}")
    if kind is None:
        raise AppLoadError(
            f"cannot tell what {spec!r} is: {_takes(spec, target)}; say it with --interface "
            "(stream takes 1, the connection; wsgi takes 2, environ and start_response; coroutine functions: streams "
            "takes 2, reader and writer; asgi takes 3, scope, receive and send; protocol takes none and returns an "
            "asyncio.Protocol)"
        )
    return kind


def _takes(spec: str, target: Any) -> str:
    """Say what a callable takes that fits no rule."""
    arity, any_number = _arity(target)
    if arity < 0:
        return "its parameters cannot be read"
    takes = f"it takes {arity} positional parameters" + (" and any number of others" if any_number else "")
    if arity or any_number or spec.endswith(")"):
        return takes
    return f"{takes}, as a factory does: did you mean {spec + '()'!r}? If not"


def _inner(spec: str, target: Any) -> str:
    """Return a hint for an object that is not served itself but has an application, as older Dash objects do."""
    for name in ("server", "wsgi_app", "asgi_app", "app"):
        inner = getattr(target, name, None)
        if callable(inner) and guess(inner) in ("wsgi", "asgi"):
            return f". Did you mean {f'{spec}.{name}'!r}?"
    return ""


def _foreign(target: Any, kind: str | None) -> str | None:
    """Why a callable would be served wrongly although its parameters fit a rule, or None."""
    classes = target.__mro__ if isinstance(target, type) else type(target).__mro__
    for library in ("aiohttp", "tornado"):
        if any(c.__name__ == "Application" and c.__module__.split(".")[0] == library for c in classes):
            return (
                f"an application of {library} brings its own server, so run it by itself; it is neither WSGI nor ASGI"
            )
    if kind not in ("stream", None):
        return None
    if isinstance(target, type):
        call = vars(target).get("__call__")
        doubled = inspect.iscoroutinefunction(call) and _arity(target)[0] == 1 and _arity(call)[0] == 3
    else:
        doubled = _parameters(target) == ["scope"]
    if doubled:
        return (
            "it is an ASGI 2 application, called with the scope first; make it ASGI 3 with "
            "asgiref.compatibility.guarantee_single_callable"
        )
    if not isinstance(target, type) and _parameters(target) == ["request"]:
        return (
            "it takes a request, as a view does; name the application of the framework, such as "
            "mysite.wsgi:application, or, if it is a handler of connections, --interface stream"
        )
    return None


def _fault_of_protocol(target: Any, kind: str | None) -> str | None:
    """Why a class of asyncio's protocols cannot serve connections, or None if nothing speaks against it."""
    asyncio, made = sys.modules.get("asyncio"), _without_partial(target)
    if kind != "protocol" or not isinstance(made, type) or asyncio is None:
        return None
    if issubclass(made, asyncio.BaseProtocol) and not issubclass(made, asyncio.Protocol | asyncio.BufferedProtocol):
        return f"{made.__name__} is no protocol of a stream, as asyncio.Protocol and asyncio.BufferedProtocol are"
    if (arity := _arity(target)[0]) > 0:
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
    arity, any_number = _arity(target)
    if _is_coroutine(target):
        return "asgi" if any_number and arity == 0 else {3: "asgi", 2: "streams"}.get(arity)
    if any_number and arity == 0:
        return None if isinstance(made, type) and not hasattr(made, "__iter__") else "wsgi"
    return {2: "wsgi", 1: "stream"}.get(arity)


def _without_partial(target: Any) -> Any:
    while isinstance(target, functools.partial):
        target = target.func
    return target


def _is_coroutine(target: Any) -> bool:
    target = inspect.unwrap(_without_partial(target))
    return inspect.iscoroutinefunction(target) or inspect.iscoroutinefunction(getattr(target, "__call__", None))  # noqa: B004


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _signature(target: Any) -> Sequence[inspect.Parameter] | None:
    """Return the parameters of a call, or None where Python cannot tell."""
    # An instance may have its own `__call__` in a slot, of which its class does not know the parameters.
    call = getattr(type(target), "__call__", None)  # noqa: B004
    own = not isinstance(target, type) and inspect.ismemberdescriptor(call)
    try:
        return list(inspect.signature(target.__call__ if own else target).parameters.values())
    except (TypeError, ValueError):
        return None


def _arity(target: Any) -> tuple[int, bool]:
    """How many positional parameters a call must give (-1: Python cannot tell), and whether it may give any number."""
    parameters = _signature(target)
    if parameters is None:
        return -1, False
    any_number = any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters)
    return sum(p.kind in _POSITIONAL and p.default is inspect.Parameter.empty for p in parameters), any_number


def _parameters(target: Any) -> list[str]:
    """Return the names of the positional parameters that a call must give."""
    parameters = _signature(target) or ()
    return [p.name for p in parameters if p.kind in _POSITIONAL and p.default is inspect.Parameter.empty]


def _article(noun: str) -> str:
    return ("an " if noun[0].lower() in "aeiou" else "a ") + noun

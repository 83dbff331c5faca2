"""APP to something that can be served, from real modules in a folder of the test's own."""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

from prefork.config.options import KINDS
from prefork.engines import ENGINES
from prefork.errors import AppLoadError
from prefork.runtime.builtins import BUILTINS
from prefork.runtime.loader import App, guess, load, module_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

APPS = """
import asyncio, functools, socketserver, wsgiref.validate

NUMBER = 7
TEXT = "handle"

def handle(conn): ...
def handle_named_otherwise(environ): ...
def with_default(conn, limit=10, *, loud=False): ...
def wsgi(environ, start_response): ...
def nothing(): ...
def anything(*args): ...
async def anything_async(*args, **named): ...
def four(a, b, c, d): ...
async def streams(reader, writer): ...
async def asgi(scope, receive, send): ...
async def odd(conn): ...

def decorated(function):
    @functools.wraps(function)
    def wrapper(*args):
        return function(*args)
    return wrapper

wrapped = decorated(handle)
wrapped_asgi = decorated(asgi)
bound = functools.partial(wsgi, start_response=None)
partial_wsgi = functools.partial(four, 1, 2)
partial_asgi = functools.partial(asgi)

class Handler(socketserver.StreamRequestHandler): ...
class Protocol(asyncio.Protocol): ...
partial_protocol = functools.partial(Protocol)
partial_handler = functools.partial(Handler)
class Datagrams(asyncio.DatagramProtocol): ...

class Callable:
    def __call__(self, conn): ...
    def method(self, conn): ...

class AsyncCallable:
    async def __call__(self, scope, receive, send): ...

class Secretive:
    __signature__ = "none of your business"
    def __call__(self, *args): ...

def undecorated(function):
    def wrapper(*args, **named):
        return function(*args, **named)
    return wrapper

unwrapped = undecorated(wsgi)
validated = wsgiref.validate.validator(wsgi)

class Anything:
    def __call__(*args, **named): ...

class AnythingAsync:
    async def __call__(self, *args, **named): ...

class AnyClass:
    def __init__(self, *args): ...

class AnyIterable(AnyClass):
    def __iter__(self): ...

class SentryAsgiMiddleware:
    "Chooses its own __call__, in a slot."
    __slots__ = ("__call__",)
    def __init__(self, call):
        self.__call__ = call

class Dash:
    def __init__(self):
        self.server = wsgi
    def __call__(self, *args, **named): ...

class OldDash:
    "No WSGI application, but has one."
    def __init__(self):
        self.server = wsgi

class Asgi2:
    def __init__(self, scope): ...
    async def __call__(self, receive, send): ...

def asgi2(scope): ...
def view(request): ...
async def async_view(request): ...

class Application:
    __module__ = "aiohttp.web_app"
    def __call__(self): ...

aiohttp_app = Application()

class Application:
    __module__ = "tornado.web"
    def __call__(self, request): ...

class TornadoSite(Application): ...
tornado_app = TornadoSite()

any_instance, any_async_instance = Anything(), AnythingAsync()
sentry, dash, old_dash = SentryAsgiMiddleware(AsyncCallable().__call__), Dash(), OldDash()

instance = Callable()
async_instance = AsyncCallable()
method = instance.method
secretive = Secretive()
namespace = type("Namespace", (), {"inner": type("Inner", (), {"handle": staticmethod(handle)})})

def create():
    return handle

def create_with(name, *, debug=False, limits=None):
    return functools.partial(wsgi, start_response=None) if (name, debug) == ("a:b", True) else wsgi

def create_optional(config=None): ...

def create_number():
    return NUMBER

def fails():
    raise LookupError("no database")

def exits():
    raise SystemExit(3)
"""


@pytest.fixture(autouse=True)
def clean_imports() -> Iterator[None]:
    """Forget what a test imports."""
    path, modules = sys.path[:], set(sys.modules)
    yield
    sys.path[:] = path
    for module in set(sys.modules) - modules:
        del sys.modules[module]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with apps.py in it."""
    (tmp_path / "apps.py").write_text(APPS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(spec: str, interface: str = "auto", *, factory: bool = False) -> AppLoadError:
    """The error that `spec` gives."""
    with pytest.raises(AppLoadError) as caught:
        load(spec, interface, factory=factory)
    sentence = str(caught.value)
    assert repr(spec) in sentence
    assert "\n" not in sentence
    assert caught.value.exit_code == 4
    return caught.value


@pytest.mark.parametrize("name", BUILTINS)
def test_the_built_ins(name: str) -> None:
    kind = {"hello": "wsgi", "ahello": "asgi"}.get(name, "stream")
    assert load(name) == App(kind, BUILTINS[name], name)


def test_a_module_of_the_current_folder(folder: Path) -> None:
    app = load("apps:handle")
    assert (app.kind, app.target.__name__, app.name) == ("stream", "handle", "apps:handle")


@pytest.mark.parametrize("form", ["{}/apps.py:handle", "{}/../{}/apps.py:handle"])
def test_a_file_by_its_path(tmp_path: Path, form: str) -> None:
    (tmp_path / "apps.py").write_text(APPS)
    assert load(form.format(tmp_path, tmp_path.name)).target.__name__ == "handle"


def test_a_file_may_have_a_name_that_is_no_module_name(folder: Path) -> None:
    (folder / "my-shop.2.py").write_text("def handle(conn): ...")
    assert load("my-shop.2.py:handle").kind == "stream"


def test_a_file_may_import_its_other_runs(tmp_path: Path) -> None:
    (tmp_path / "shop_neighbour.py").write_text("def handle(conn): ...")
    (tmp_path / "shop.py").write_text("from shop_neighbour import handle")
    assert load(f"{tmp_path}/shop.py:handle").kind == "stream"


def test_a_module_of_a_package(folder: Path) -> None:
    (folder / "shop" / "web").mkdir(parents=True)
    (folder / "shop" / "__init__.py").touch()
    (folder / "shop" / "web" / "__init__.py").write_text("from .server import handle")
    (folder / "shop" / "web" / "server.py").write_text("def handle(conn): ...")
    assert load("shop.web:handle").target is load("shop.web.server:handle").target


def test_an_attribute_of_an_attribute(folder: Path) -> None:
    assert load("apps:namespace.inner.handle").kind == "stream"


def test_a_factory_is_called(folder: Path) -> None:
    assert load("apps:create()").target is load("apps:handle").target


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("handle", "stream"),
        ("handle_named_otherwise", "stream"),  # parameters are counted, their names never read
        ("with_default", "stream"),
        ("wrapped", "stream"),
        ("bound", "stream"),
        ("instance", "stream"),
        ("method", "stream"),
        ("Handler", "socketserver"),
        ("Protocol", "protocol"),
        ("Datagrams", "protocol"),
        ("partial_protocol", "protocol"),
        ("partial_handler", "socketserver"),
        ("wsgi", "wsgi"),
        ("partial_wsgi", "wsgi"),
        ("streams", "streams"),
        ("asgi", "asgi"),
        ("wrapped_asgi", "asgi"),
        ("partial_asgi", "asgi"),
        ("async_instance", "asgi"),
        ("nothing", None),
        ("anything", "wsgi"),
        ("anything_async", "asgi"),
        ("unwrapped", "wsgi"),
        ("validated", "wsgi"),
        ("any_instance", "wsgi"),
        ("any_async_instance", "asgi"),
        ("AnyClass", None),
        ("AnyIterable", "wsgi"),
        ("sentry", "asgi"),
        ("dash", "wsgi"),
        ("four", None),
        ("odd", None),
        ("secretive", None),
    ],
)
def test_the_kind_follows_from_the_object(folder: Path, name: str, kind: str | None) -> None:
    load("apps:handle")
    assert guess(getattr(sys.modules["apps"], name)) == kind


def test_the_interface_overrides_the_guess(folder: Path) -> None:
    for name in ("anything", "four", "wsgi", "Callable", "secretive"):
        assert load(f"apps:{name}", "stream").kind == "stream"


# --- what a mistake is told


@pytest.mark.parametrize("spec", ["", ":handle", "no_such", "/tmp/apps"])
def test_neither_a_built_in_nor_a_form(folder: Path, spec: str) -> None:
    sentence = str(refused(spec))
    assert "neither a built-in (talkback, " in sentence
    assert "module:attribute or path.py:attribute" in sentence


def test_a_near_built_in_is_suggested() -> None:
    assert str(refused("talkbak")).endswith(" Did you mean 'talkback'?")
    assert "Did you mean" not in str(refused("zzz"))


@pytest.mark.parametrize(
    "attribute",
    [
        "",
        "1st",
        "a b",
        "create()()",
        "x-y",
        ".handle",
        "a..b",
        "create(handle)",
        "create(print())",
        "create(**{})",
        "create(*[])",
        "create(1",
        "create(" + "(" * 300 + ")" * 300 + ")",
        "handle().x",
    ],
)
def test_what_is_no_attribute(folder: Path, attribute: str) -> None:
    assert f"{attribute!r} is not a name, a dotted name or a call with literal arguments" in str(
        refused(f"apps:{attribute}")
    )


def test_a_missing_module(folder: Path) -> None:
    sentence = str(refused("ap:handle"))
    assert f"there is no module 'ap' on the path, which starts with {folder}" in sentence
    assert str(refused("appps:handle")).endswith(" Did you mean 'apps'?")
    assert "there is no module 'apps.web'" in str(refused("apps.web:handle"))
    assert "there is no module 'unheard_of'" in str(refused("unheard_of.web:handle"))


def test_a_missing_module_shows_no_traceback(folder: Path) -> None:
    assert refused("nowhere:handle").detail == ""


def test_a_missing_file(folder: Path) -> None:
    error = refused("app.py:handle")
    assert str(error).endswith(f"there is no file 'app.py' in {folder}. Did you mean 'apps.py'?")
    assert error.detail == ""
    assert "Did you mean" not in str(refused("elsewhere/zzz.py:handle"))
    (folder / "folder.py").mkdir()
    assert "there is no file 'folder.py'" in str(refused("folder.py:handle"))


@pytest.mark.parametrize("spec", ["./apps:handle", "../apps:handle", ".apps:handle"])
def test_a_path_without_its_suffix_is_not_the_apps_fault(folder: Path, spec: str) -> None:
    """Python takes the dot for a relative import; the user forgot `.py`."""
    error = refused(spec)
    assert "raised" not in str(error)
    assert "there is no module" in str(error)
    assert error.detail == ""


def test_a_missing_attribute(folder: Path) -> None:
    assert str(refused("apps:handel")).endswith("'apps' has no attribute 'handel'. Did you mean 'handle'?")
    assert "'Inner' has no attribute 'zzz'." in str(refused("apps:namespace.inner.zzz"))
    assert "'int' has no attribute 'handle'." in str(refused("apps:NUMBER.handle"))


@pytest.mark.parametrize(("name", "what"), [("NUMBER", "an int"), ("TEXT", "a str"), ("create_number()", "an int")])
def test_what_cannot_be_called(folder: Path, name: str, what: str) -> None:
    assert str(refused(f"apps:{name}")).endswith(f"it is not callable but {what}")
    assert "not callable" in str(refused(f"apps:{name}", "stream"))


@pytest.mark.parametrize(("name", "count"), [("nothing", 0), ("four", 4), ("odd", 1), ("AnyClass", 0)])
def test_what_fits_no_rule_names_the_option(folder: Path, name: str, count: int) -> None:
    sentence = str(refused(f"apps:{name}"))
    assert f"it takes {count} positional parameters" in sentence
    assert "--interface" in sentence


def test_what_has_no_signature_is_not_said_to_take_a_negative_number(folder: Path) -> None:
    sentence = str(refused("apps:secretive"))
    assert "--interface" in sentence
    assert "-1" not in sentence


def test_every_kind_has_an_engine() -> None:
    assert set(KINDS) - {"auto"} == set(ENGINES)


# --- an app that fails by itself


@pytest.mark.parametrize(
    ("source", "sentence", "last"),
    [
        ("import no_such_dependency", "it raised ModuleNotFoundError: No module named 'no_such_dependency'", None),
        ("import json.nothing", "it raised ModuleNotFoundError: No module named 'json.nothing'", None),
        ("def handle(conn)", "it raised SyntaxError: expected ':'", "SyntaxError: expected ':'"),
        ("1 // 0", "it raised ZeroDivisionError: integer", None),
        ("raise SystemExit(2)", "it raised SystemExit: 2", None),
        ("raise KeyboardInterrupt", "it raised KeyboardInterrupt", None),
        ("raise ValueError('one\\ntwo')", "it raised ValueError: one", "two"),
        ("raise ValueError('\\n')", "it raised ValueError", None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("spec", ["broken:handle", "broken.py:handle"])
def test_an_app_that_fails_while_it_is_imported(folder: Path, spec: str, source: str, sentence: str, last: str) -> None:
    (folder / "broken.py").write_text(f"{source}\n")
    error = refused(spec)
    assert f"cannot load {spec!r}: {sentence}" in str(error)
    assert "broken.py" in error.detail
    assert "importlib" not in error.detail
    assert "loader.py" not in error.detail
    assert (last or sentence.removeprefix("it raised ")) in error.detail


def test_the_traceback_is_the_apps_own_from_its_first_frame(folder: Path) -> None:
    (folder / "deep.py").write_text("def inner():\n    1 // 0\n\ndef outer():\n    inner()\n\nouter()\n")
    lines = refused("deep:handle").detail.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    places = [line.strip() for line in lines if line.startswith("  File")]
    assert places == [
        f'File "{folder}/deep.py", line 7, in <module>',
        f'File "{folder}/deep.py", line 5, in outer',
        f'File "{folder}/deep.py", line 2, in inner',
    ]
    assert lines[-1].startswith("ZeroDivisionError")


def test_the_cause_of_a_failure_is_shown_with_it(folder: Path) -> None:
    (folder / "chained.py").write_text(
        "try:\n    {}['DATABASE_URL']\nexcept KeyError as error:\n    raise RuntimeError('not configured') from error\n"
    )
    detail = refused("chained:handle").detail
    assert "KeyError: 'DATABASE_URL'" in detail
    assert detail.rstrip().endswith("RuntimeError: not configured")


@pytest.mark.parametrize(
    ("name", "sentence"), [("fails()", "it raised LookupError: no database"), ("exits()", "it raised SystemExit: 3")]
)
def test_a_factory_that_fails(folder: Path, name: str, sentence: str) -> None:
    error = refused(f"apps:{name}")
    assert str(error).endswith(sentence)
    assert "apps.py" in error.detail


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        ("create_with('a:b', debug=True)", "stream"),
        ('create_with("a(b):c(", limits={"a": [1, None]})', "wsgi"),
        ("namespace.inner.handle(1)", None),
        ("create( )", "stream"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("where", ["apps", "./apps.py"])
def test_a_factory_with_literal_arguments(folder: Path, where: str, call: str, kind: str | None) -> None:
    if kind is None:
        assert "it is not callable but a NoneType" in str(refused(f"{where}:{call}"))
    else:
        assert load(f"{where}:{call}").kind == kind


# --- what would be served wrongly, or not at all, is explained


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nothing", "did you mean 'apps:nothing()'?"),
        ("create_optional", "did you mean 'apps:create_optional()'?"),
        ("AsyncCallable", "did you mean 'apps:AsyncCallable()'?"),
        ("old_dash", "it is not callable but an OldDash. Did you mean 'apps:old_dash.server'?"),
        ("Asgi2", "it is an ASGI 2 application"),
        ("asgi2", "asgiref.compatibility.guarantee_single_callable"),
        ("view", "mysite.wsgi:application"),
        ("async_view", "mysite.wsgi:application"),
        ("aiohttp_app", "an application of aiohttp brings its own server"),
        ("tornado_app", "an application of tornado brings its own server"),
    ],
)
def test_a_mistake_is_explained(folder: Path, name: str, said: str) -> None:
    assert said in str(refused(f"apps:{name}"))


@pytest.mark.parametrize("name", ["view", "asgi2", "tornado_app"])
def test_the_interface_overrides_the_explanation(folder: Path, name: str) -> None:
    assert load(f"apps:{name}", "stream").kind == "stream"


# --- a module or file alone, and --factory


WSGI, ASGI = "def {}(environ, start_response): ...", "async def {}(scope, receive, send): ..."
ALONE = pytest.mark.parametrize("where", ["mysite.wsgi", "mysite/wsgi.py", "mysite"])


def write(folder: Path, source: str) -> None:
    (folder / "mysite").mkdir()
    for name in ("__init__.py", "wsgi.py"):
        (folder / "mysite" / name).write_text(source)


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        (WSGI.format("application"), "wsgi"),
        (ASGI.format("app"), "asgi"),
        (f"{ASGI.format('app')}\n{WSGI.format('application')}", "wsgi"),
    ],
    ids=["application", "app", "both"],
)
@ALONE
def test_a_module_alone_is_its_application_or_app(folder: Path, where: str, source: str, kind: str) -> None:
    write(folder, source)
    found = load(where)
    assert (found.kind, found.name) == (kind, where)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def create_app(): ...", "it has no application and no app; did you mean '{}:create_app()'?"),
        ("def handle(conn): ...", "it has no application and no app; did you mean '{}:handle'?"),
        ("import wsgiref as app", "it has no application and no app; name what of it is to be served, as {}:NAME"),
        ("app = 7", "it is not callable but an int"),
        ("1 / 0", "it raised ZeroDivisionError: division by zero"),
    ],
)
@ALONE
def test_a_module_without_an_attribute(folder: Path, where: str, source: str, said: str) -> None:
    write(folder, source)
    assert str(refused(where)) == f"cannot load {where!r}: {said.format(where)}"


def test_a_module_that_does_not_exist(folder: Path) -> None:
    assert "there is no module 'mysite'" in str(refused("mysite.wsgi"))
    assert str(refused("appps")).endswith(" Did you mean 'apps'?")
    assert "there is no file 'app.py'" in str(refused("app.py"))


@pytest.mark.parametrize("spec", ["apps:create", "apps:create()", "./apps.py:create", "made"])
def test_a_factory_by_flag_is_called(folder: Path, spec: str) -> None:
    (folder / "made.py").write_text("from apps import create as create_app")
    assert load(spec, factory=True).kind == load("apps:create()").kind


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("apps:NUMBER", "--factory asks for a function, but it is an int; leave it out"),
        ("apps:four", "it raised TypeError: four() missing 4 required positional arguments"),
        ("apps", "it has no create_app and no make_app; "),
        ("hello", "there is no module 'hello'"),
    ],
)
def test_what_is_no_factory(folder: Path, spec: str, said: str) -> None:
    sentence = str(refused(spec, factory=True))
    assert said in sentence or spec == "hello"
    assert sentence.startswith(f"cannot load {spec!r}: ")


@pytest.mark.parametrize(
    ("spec", "module"),
    [
        ("hello", ""),
        ("a.b", "a.b"),
        ("a.b:c", "a.b"),
        ("x/y.py", "x/y.py"),
        ("a:make('redis://h:1')", "a"),
        ("a b", ""),
    ],
)
def test_the_module_of_an_app(spec: str, module: str) -> None:
    assert module_of(spec) == module


@pytest.mark.parametrize(
    ("package", "made", "kind"),
    [("sentry_sdk.integrations.asgi", "SentryAsgiMiddleware(app)", "asgi"), ("dash", "Dash()", "wsgi")],
    ids=["sentry", "dash"],
)
def test_objects_of_others(package: str, made: str, kind: str) -> None:
    """In a process of its own: Sentry imports eventlet, if it is there, which warns at each fork from then on."""
    if not find_spec(package.partition(".")[0]):
        pytest.skip(f"{package} is not installed")
    source = f"""
        from prefork.runtime.loader import guess
        import {package} as library

        async def app(scope, receive, send): ...

        print(guess(library.{made}))
    """
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(source)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout == f"{kind}\n", done.stderr


# --- files with the names of other modules

BARE = "def app(environ, start_response): ..."


@pytest.mark.parametrize("form", ["{}.py", "{}", "./{}.py"])
@pytest.mark.parametrize("name", ["queue", "types", "sched", "pytest", "prefork", "uvloop", "websockets"])
def test_a_file_with_the_name_of_another_module(folder: Path, name: str, form: str) -> None:
    """It gets another name, and whoever imports that module afterwards finds the right one."""
    before = sys.modules.get(name)
    (folder / f"{name}.py").write_text("import pickle\nclass Job: ...\nDUMPED = pickle.dumps(Job)\n" + BARE)
    app = load(f"{form.format(name)}:app")
    assert app.renamed == app.target.__module__ == f"prefork_app_{name}"
    assert sys.modules.get(name) is before
    assert not hasattr(importlib.import_module(name), "Job")
    assert sys.path[-1] == str(folder)
    assert str(folder) not in sys.path[:-1]
    assert pickle.loads(sys.modules[app.renamed].DUMPED) is sys.modules[app.renamed].Job


def test_a_file_keeps_its_name_if_nobody_else_has_it(folder: Path) -> None:
    for _ in range(2):
        app = load("apps.py:wsgi")
        assert (app.renamed, app.target.__module__) == ("", "apps")


def test_a_module_of_the_standard_library_can_be_served(folder: Path) -> None:
    assert load("wsgiref.simple_server:demo_app").kind == "wsgi"


def test_a_factory_that_wants_arguments(folder: Path) -> None:
    assert "it raised TypeError: handle() missing 1 required positional argument" in str(refused("apps:handle()"))


@pytest.mark.parametrize("text", ["\u00e9", "a\0b", "\udcff", "a\nb", "'", "\x1b[31m"])
def test_strange_names_are_errors_like_others(folder: Path, text: str) -> None:
    for spec in (text, f"{text}:handle", f"{text}.py:handle", f"apps:{text}"):
        refused(spec)

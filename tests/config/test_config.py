"""Options from flags, the environment and defaults: what wins, where it came from, and what a mistake is told."""

from __future__ import annotations

import dataclasses
import re
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.config.config import Config, Setting, resolve, unknown_variables
from prefork.config.options import OPTIONS
from prefork.core.address import Address
from prefork.core.cgroup import usable_cpus
from prefork.errors import ConfigError

BY_NAME = {option.name: option for option in OPTIONS}
# A text that each option takes and that is not its default.
OTHER = {
    "bind": "127.0.0.1:8000",
    "workers": "77",
    "threads": "7",
    "interface": "stream",
    "factory": "yes",
    "backlog": "64",
    "timeout": "90s",
    "max-requests": "1000",
    "max-requests-jitter": "50",
    "max-memory": "200m",
    "max-age": "12h",
    "preload": "yes",
    "accept": "per-worker",
    "control": "none",
    "admin": "127.0.0.1:9100",
    "user": "nobody",
    "group": "nogroup",
    "umask": "027",
    "chdir": "/srv",
    "pid": "/run/app.pid",
    "hooks": "shop.hooks",
    "env-file": ".env",
    "reload": "yes",
    "reload-dir": "templates",
    "reload-include": "*.html",
    "reload-exclude": "migrations",
    "log": "/var/log/app.log",
    "slow": "2s",
    "graceful-timeout": "5s",
    "lame-duck": "8s",
    "boot-timeout": "2m",
    "idle-timeout": "500ms",
    "lifespan": "on",
    "loop": "asyncio",
    "root-path": "/api",
    "ws-ping": "5s",
    "ws-max-message": "1m",
    "keep-alive": "20s",
    "header-timeout": "3s",
    "max-in-flight": "100",
    "max-body": "10m",
    "max-request-line": "64k",
    "max-fields": "200",
    "max-header": "1m",
    "underscores": "pass",
    "header": "X-Frame-Options: DENY",
    "server-header": "no",
    "max-connections": "20000",
    "tls-cert": "cert.pem",
    "tls-key": "key.pem",
    "tls-key-password-file": "password",
    "tls-ca": "ca.pem",
    "tls-client-cert": "optional",
    "tls-min-version": "1.3",
    "tls-ciphers": "ECDHE+AESGCM",
    "trusted-proxies": "10.0.0.0/8",
    "proxy-protocol": "yes",
    "log-config": "logging.toml",
    "access-log": "-",
    "access-log-format": "%(h)s %(s)s",
    "log-level": "debug",
    "log-format": "json",
}


def config_of(environ: dict[str, str] | None = None, **flags: object) -> Config:
    """Resolve flags given as Python names, with nothing in the environment but `environ`."""
    return resolve("talkback", {name.replace("_", "-"): value for name, value in flags.items()}, environ or {})


def test_defaults() -> None:
    config = config_of()
    assert config.app == "talkback"
    assert config.bind == (Address(socket.AF_INET, host="127.0.0.1", port=1935),)
    assert (config.workers, config.threads, config.backlog) == (usable_cpus(), 1, 2048)
    assert (config.timeout_s, config.graceful_timeout_s, config.boot_timeout_s, config.idle_timeout_s) == (
        30, 30, 60, 60,
    )  # fmt: skip
    assert (config.interface, config.log_level, config.log_format) == ("auto", "info", "text")
    assert {name: source for name, source in config.sources.items() if source != "default"} == {"app": "app"}


def test_every_option_is_a_field_of_the_configuration_and_the_other_way_round() -> None:
    fields = {field.name for field in dataclasses.fields(Config)} - {"app", "target", "sources"}
    assert {option.field for option in OPTIONS} == fields
    assert OTHER.keys() == BY_NAME.keys()  # a new option is tested like the others
    assert len({option.flag for option in OPTIONS}) == len({option.variable for option in OPTIONS}) == len(OPTIONS)
    shorts = [option.short for option in OPTIONS if option.short]
    assert len(set(shorts)) == len(shorts)
    assert all(re.fullmatch("-[a-z]", short) for short in shorts)


@pytest.mark.parametrize("name", sorted(OTHER))
def test_a_flag_wins_over_the_environment_that_over_the_file_and_that_over_the_default(name: str) -> None:
    option, text = BY_NAME[name], OTHER[name]
    default = getattr(config_of(), option.field)
    expected = (option.parse(text),) if option.many else option.parse(text)
    assert expected != default
    good = {name: Setting(raw=text, source="app.toml:3", where="app.toml:3: " + name)}
    bad = {name: Setting(raw="\0", source="app.toml:3", where="app.toml:3: " + name)}

    file = resolve("talkback", {}, {}, good)
    assert (getattr(file, option.field), file.sources[name]) == (expected, "app.toml:3")

    variable = resolve("talkback", {}, {option.variable: text}, bad)
    assert (getattr(variable, option.field), variable.sources[name]) == (expected, option.variable)

    flag = resolve("talkback", {name: (text,) if option.many else text}, {option.variable: "\0"}, bad)
    assert (getattr(flag, option.field), flag.sources[name]) == (expected, option.flag)


def test_a_mistake_in_the_file_names_its_place() -> None:
    file = {"threads": Setting(raw="0", source="app.toml:3", where="app.toml:3: threads")}
    with pytest.raises(ConfigError, match=r"^app\.toml:3: threads: '0' is too small: at least 1$"):
        resolve("talkback", {}, {}, file)


def test_the_app_has_a_default_and_the_same_sources() -> None:
    assert resolve(None, {}, {}).app == "talkback"
    assert resolve(None, {}, {"PREFORK_APP": "echo"}).app == "echo"
    assert resolve("nap", {}, {"PREFORK_APP": "echo"}).app == "nap"
    with pytest.raises(ConfigError, match="give module:attribute"):
        resolve("", {}, {})


def test_reloading_for_development_is_one_worker_that_imports_anew() -> None:
    config = config_of(reload="yes", preload="yes")
    assert (config.workers, config.preload) == (1, False)
    assert (config.sources["workers"], config.sources["preload"]) == ("--reload", "--reload")
    assert config_of(reload="yes", workers="3").workers == 3


def test_the_names_of_an_option_on_each_source() -> None:
    option = BY_NAME["graceful-timeout"]
    assert (option.flag, option.variable) == ("--graceful-timeout", "PREFORK_GRACEFUL_TIMEOUT")


def test_a_repeated_flag_and_a_split_variable_give_the_same() -> None:
    expected = (Address.parse("127.0.0.1:0"), Address.parse("unix:/run/app.sock"), Address.parse("[::1]:80"))
    assert config_of(bind=("127.0.0.1:0", "unix:/run/app.sock", "[::1]:80")).bind == expected
    assert config_of({"PREFORK_BIND": " 127.0.0.1:0\tunix:/run/app.sock  [::1]:80\n"}).bind == expected


@pytest.mark.parametrize("flags", [{}, {"bind": (), "workers": None}])
def test_what_is_not_given_leaves_the_default(flags: dict[str, object]) -> None:
    assert config_of({"PATH": "/bin", "PREFORK_SLOT": "1"}, **flags) == config_of()


@pytest.mark.parametrize("text", ["", " ", "\t\n"])
def test_a_server_listens_somewhere(text: str) -> None:
    """An empty variable is a mistake, or not given; never a server without a listener."""
    found = bind_or_sentence(text)
    assert found == config_of().bind or "PREFORK_BIND" in found


def bind_or_sentence(text: str) -> tuple[Address, ...] | str:
    try:
        return config_of({"PREFORK_BIND": text}).bind
    except ConfigError as error:
        return str(error)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"workers": "0"}, "--workers 0: '0' is too small: at least 1; give a number from 1 up, or auto"),
        ({"workers": "four"}, "--workers four: 'four' is not a whole number; give a number from 1 up, or auto"),
        ({"workers": "-2"}, "--workers -2: '-2' is too small: at least 1; give a number from 1 up, or auto"),
        ({"workers": ""}, "--workers : '' is not a whole number; give a number from 1 up, or auto"),
        ({"threads": "0"}, "--threads 0: '0' is too small: at least 1"),
        ({"boot-timeout": "0"}, "--boot-timeout 0: '0' is too short: more than 0"),
        ({"idle_timeout": "soon"}, "--idle-timeout soon: 'soon' is not a duration: plain seconds, or 500ms"),
        ({"interface": "http"}, "--interface http: 'http' is not one of auto, stream, "),
        ({"log_level": "INFO"}, "--log-level INFO: 'INFO' is not one of debug, info, warning, error"),
        ({"bind": ("127.0.0.1:1", "127.0.0.1:70000")}, "'127.0.0.1:70000': '70000' is not a port (0 to 65535)"),
    ],
)  # fmt: skip
def test_a_mistake_names_the_flag_the_value_and_the_reason(flags: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(sentence)) as caught:
        config_of(**flags)
    assert caught.value.exit_code == 2
    assert str(caught.value).startswith("--" + next(iter(flags)).replace("_", "-"))
    assert "\n" not in str(caught.value)


def test_a_mistake_in_the_environment_names_the_variable() -> None:
    with pytest.raises(ConfigError, match=r"^PREFORK_THREADS: 'x' is not a whole number$"):
        config_of({"PREFORK_THREADS": "x"})


# --- what platforms set, and what nothing reads


def test_a_platform_says_port_and_workers() -> None:
    config = config_of({"PORT": "8080", "WEB_CONCURRENCY": "3"})
    assert ([str(address) for address in config.bind], config.workers) == (["0.0.0.0:8080"], 3)
    assert (config.sources["bind"], config.sources["workers"]) == ("PORT", "WEB_CONCURRENCY")


def test_a_platform_yields_to_all_but_the_default() -> None:
    platform = {"PORT": "8080", "WEB_CONCURRENCY": "3"}
    assert config_of(platform, workers="5", bind=("127.0.0.1:1",)).sources["bind"] == "--bind"
    assert config_of(platform | {"PREFORK_WORKERS": "4"}).workers == 4
    line = Setting(raw="6", source="p.toml:1", where="p.toml:1: workers")
    assert resolve(None, {}, platform, {"workers": line}).sources["workers"] == "p.toml:1"


def test_an_empty_variable_of_a_platform_is_none() -> None:
    config = config_of({"PORT": "", "WEB_CONCURRENCY": ""})
    assert (config.sources["bind"], config.sources["workers"]) == ("default", "default")


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("PORT", "http", "PORT=http: '0.0.0.0:http': 'http' is not a port (0 to 65535)"),
        ("PORT", "99999", "PORT=99999: '0.0.0.0:99999': '99999' is not a port (0 to 65535)"),
        ("WEB_CONCURRENCY", "0", "WEB_CONCURRENCY=0: '0' is too small: at least 1"),
        ("WEB_CONCURRENCY", "many", "WEB_CONCURRENCY=many: 'many' is not a whole number"),
    ],
)
def test_a_mistake_of_a_platform_names_its_variable(variable: str, value: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match="^" + re.escape(sentence)):
        config_of({variable: value})


def test_reload_is_for_one_worker_whatever_the_platform_says() -> None:
    config = config_of({"WEB_CONCURRENCY": "3"}, reload="yes")
    assert (config.workers, config.sources["workers"]) == (1, "--reload")
    assert config_of({"PREFORK_WORKERS": "3"}, reload="yes").workers == 3


def test_a_variable_that_nothing_reads_is_named_with_the_near_one() -> None:
    environ = {
        "PREFORK_TREADS": "8", "PREFORK_CONFIG": "x.toml", "PREFORK_PORT": "80", "PREFORK_ZZZ": "", "PATH": "x",
        "PREFORK_SLOT": "1", "PREFORK_GENERATION": "0", "PREFORK_INHERITED": "{}", "PREFORK_CONTROL": "none",
        "PREFORK_APP": "hello",
    }  # fmt: skip
    assert unknown_variables(environ) == {
        "PREFORK_CONFIG": "name the file with --config",
        "PREFORK_PORT": "did you mean PREFORK_BIND?",
        "PREFORK_TREADS": "did you mean PREFORK_THREADS?",
        "PREFORK_ZZZ": "`prefork config` lists all options",
    }


def test_the_variables_of_a_kubernetes_service_named_prefork_are_none_of_ours() -> None:
    environ = {
        "PREFORK_SERVICE_HOST": "10.0.0.1", "PREFORK_SERVICE_PORT": "80", "PREFORK_SERVICE_PORT_HTTP": "80",
        "PREFORK_PORT": "tcp://10.0.0.1:80", "PREFORK_PORT_80_TCP": "tcp://10.0.0.1:80",
        "PREFORK_PORT_80_TCP_ADDR": "10.0.0.1", "PREFORK_PORT_80_TCP_PORT": "80",
    }  # fmt: skip
    assert unknown_variables(environ) == {}


@given(name=st.sampled_from(sorted(OTHER)), text=st.text(max_size=20))
def test_any_text_is_either_taken_or_refused_in_one_sentence(name: str, text: str) -> None:
    sentence = ""
    try:
        config_of({BY_NAME[name].variable: text})
    except ConfigError as error:
        sentence = str(error)
    if sentence:
        assert sentence.startswith(BY_NAME[name].variable + ": ")
        assert len(sentence.splitlines()) == 1


def test_a_configuration_is_frozen() -> None:
    config = config_of()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.workers = 2  # type: ignore[misc]


def test_headers_may_have_blanks_and_are_parted_by_lines_in_the_environment() -> None:
    expected = ("X-Frame-Options: DENY", "Content-Security-Policy: default-src 'self'; img-src *")
    assert (
        config_of(header=("X-Frame-Options:DENY", "Content-Security-Policy: default-src 'self'; img-src * ")).header
        == expected
    )
    lines = "X-Frame-Options: DENY\n\n  Content-Security-Policy:   default-src 'self'; img-src *\r\n"
    assert config_of({"PREFORK_HEADER": lines}).header == expected
    assert config_of({"PREFORK_HEADER": lines}, header=("none",)).header == ("none",)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("DENY", "'DENY' is not a header such as 'X-Frame-Options: DENY'"),
        ("X Y: a", "'X Y: a' is not a header such as"),
        (": a", "': a' is not a header such as"),
        ("X: \u20ac", "'X: €' has a control character, or one that is not in latin-1"),
        ("X: a\x00", "'X: a\\x00' has a control character"),
        ("Connection: close", "'Connection: close': Connection depends on the response, so the server sets it"),
        ("Date: now", "Date depends on the response"),
        ("sec-websocket-protocol: a", "sec-websocket-protocol depends on the response"),
    ],
)
def test_a_header_for_all_responses_is_one(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        config_of({"PREFORK_HEADER": text})
    with pytest.raises(ConfigError, match=re.escape(sentence)) as caught:
        config_of(header=(text, "X-Y: z\nX: y"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"max_request_line": "100"}, "--max-request-line 100: '100' is too small: at least 1024 bytes"),
        ({"max_header": "2m"}, "--max-header 2m: '2m' is too large: at most 1048576 bytes"),
        ({"max_fields": "0"}, "--max-fields 0: '0' is too small: at least 1"),
        ({"underscores": "keep"}, "--underscores keep: 'keep' is not one of drop, refuse, pass"),
    ],
)
def test_limits_of_a_head_have_bounds(flags: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        config_of(**flags)


def test_the_access_log_is_json_where_the_log_is_unless_said_otherwise() -> None:
    def format_of(**flags: object) -> tuple[str, str]:
        config = config_of(**flags)
        return config.access_log_format, config.sources["access-log-format"]

    assert format_of() == ("combined", "default")
    assert format_of(log_format="json") == ("json", "--log-format")
    assert format_of(log_format="json", access_log_format="combined") == ("combined", "--access-log-format")
    assert format_of(access_log_format="json") == ("json", "--access-log-format")


def test_an_unknown_atom_is_told_with_the_near_one() -> None:
    with pytest.raises(ConfigError, match=r"^--access-log-format %h: '%h' is no atom; did you mean '%\(h\)s'\?$"):
        config_of(access_log_format="%h")

"""The environ of PEP 3333, key by key, from requests in bytes."""

from __future__ import annotations

import io
from wsgiref.util import request_uri

import flask
import pytest

from prefork.http.body import FileWrapper
from prefork.http.environ import Environs
from tests.http.calls import CLIENT, compose, environ_of, listener, parse


def test_every_key_of_a_plain_request() -> None:
    errors = io.StringIO()
    environ = environ_of(compose("GET", "/a/b?c=d&e", "User-Agent: curl/8.5", "Accept: */*"), errors=errors)
    assert environ.pop("wsgi.input").read() == b""
    assert environ.pop("wsgi.errors") is errors
    assert environ == {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/a/b",
        "QUERY_STRING": "c=d&e",
        "RAW_URI": "/a/b?c=d&e",
        "REQUEST_URI": "/a/b?c=d&e",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8000",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_SOFTWARE": "prefork",
        "REMOTE_ADDR": "127.0.0.1",
        "REMOTE_PORT": "40312",
        "HTTP_HOST": "example.org",
        "HTTP_USER_AGENT": "curl/8.5",
        "HTTP_ACCEPT": "*/*",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.multithread": False,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "wsgi.file_wrapper": FileWrapper,
        "wsgi.input_terminated": True,
    }


def test_it_is_a_plain_dict_of_native_strings() -> None:
    environ = environ_of(compose("GET", "/%e2%82%ac?%fe", "X: caf\xe9", "Cookie: \x80"))
    assert type(environ) is dict
    cgi = {key: value for key, value in environ.items() if "." not in key}
    assert {type(value) for value in cgi.values()} == {str}
    for value in cgi.values():
        value.encode("latin-1")


def test_two_requests_of_a_connection_share_nothing() -> None:
    shared = listener()
    first = Environs(shared, *CLIENT).of(*parse(compose("GET", "/?a", "X: y", minor=0)))
    first["mine"] = True
    first["wsgi.input"].close()
    second = Environs(shared, *CLIENT).of(*parse(compose()))
    assert not {"mine", "HTTP_X"} & set(second)
    assert (second["QUERY_STRING"], second["SERVER_PROTOCOL"]) == ("", "HTTP/1.1")
    assert second["wsgi.input"].read() == b""


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/", "/", ""),
        ("/?", "/", ""),
        ("/?a=%20b?c", "/", "a=%20b?c"),
        ("/a%20b%2Fc", "/a b/c", ""),
        ("/caf%C3%A9", "/caf\xc3\xa9", ""),
        ("/%E9", "/\xe9", ""),
        ("/100%", "/100%", ""),
        ("/%zz%4", "/%zz%4", ""),
        ("/%2525", "/%25", ""),
        ("/%00%0d%0a", "/\0\r\n", ""),
        ("//double//slash", "//double//slash", ""),
        ("/../up", "/../up", ""),
        ("http://example.org/a?b", "/a", "b"),
        ("/a#b", "/a", ""),
        ("/a?b#c?d", "/a", "b"),
    ],
)
def test_path_and_query(target: str, path: str, query: str) -> None:
    environ = environ_of(compose("GET", target))
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"], environ["QUERY_STRING"]) == ("", path, query)
    assert environ["RAW_URI"] == environ["REQUEST_URI"] == target


def test_the_server_as_a_whole_has_no_path() -> None:
    environ = environ_of(compose("OPTIONS", "*"))
    assert (environ["PATH_INFO"], environ["RAW_URI"]) == ("", "*")


def test_the_address_can_be_put_together_again() -> None:
    assert request_uri(environ_of(compose("GET", "/a%20b?c"))) == "http://example.org/a%20b?c"
    bare = b"GET /a HTTP/1.0\r\n\r\n"
    assert request_uri(environ_of(bare)) == "http://127.0.0.1:8000/a"
    assert request_uri(environ_of(bare, name="", port=0)) == "http://localhost/a"
    assert request_uri(environ_of(bare, name="", port=0, scheme="https")) == "https://localhost/a"


def test_versions_of_the_protocol() -> None:
    assert environ_of(compose(minor=1))["SERVER_PROTOCOL"] == "HTTP/1.1"
    assert environ_of(compose(minor=0))["SERVER_PROTOCOL"] == "HTTP/1.0"
    assert environ_of(compose(minor=2))["SERVER_PROTOCOL"] == "HTTP/1.1"


def test_fields_that_come_twice_are_joined() -> None:
    environ = environ_of(compose("GET", "/", "X-A: 1", "x-a: 2", "X-A:", "Cookie: a=1", "cookie: b=2"))
    assert environ["HTTP_X_A"] == "1, 2, "
    assert environ["HTTP_COOKIE"] == "a=1; b=2"


def test_no_client_can_choose_the_applications_proxy() -> None:
    environ = environ_of(compose("GET", "/", "Proxy: http://evil.example", "PROXY: x", "X: y"))
    assert "HTTP_PROXY" not in environ
    assert "" not in environ
    assert environ["HTTP_X"] == "y"


def test_no_field_passes_for_another_key() -> None:
    fields = ["X_Real_IP: 6.6.6.6", "Remote-Addr: 6.6.6.6", "Script-Name: /x", "Path-Info: /x", "Wsgi.Input: x"]
    environ = environ_of(compose("GET", "/", *fields))
    assert environ["REMOTE_ADDR"] == "127.0.0.1"
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == ("", "/")
    assert "HTTP_X_REAL_IP" not in environ
    assert environ["HTTP_REMOTE_ADDR"] == "6.6.6.6"
    assert environ["wsgi.input"].read() == b""


def test_names_with_an_underscore_can_be_passed_where_they_are_nobodys_else() -> None:
    fields = [
        "X_Y: 1",
        "x_y: 2",
        "X_Real-IP: 6.6.6.6",
        "X-Real-IP: 192.0.2.1",
        "Transfer_Encoding: x",
        "Content_Type: y",
    ]
    environ = environ_of(compose("GET", "/", "Content-Type: text/plain", *fields), underscores="pass")
    assert environ["HTTP_X_Y"] == "1, 2"
    assert environ["HTTP_X_REAL_IP"] == "192.0.2.1"
    assert (environ["CONTENT_TYPE"], environ["HTTP_CONTENT_TYPE"]) == ("text/plain", "y")
    assert not {"HTTP_TRANSFER_ENCODING", ""} & set(environ)
    assert "HTTP_X_Y" not in environ_of(compose("GET", "/", "X_Y: 1", "Proxy: x"))


def test_a_body_and_what_describes_it() -> None:
    environ = environ_of(compose("POST", "/", "Content-Type: text/plain", body=b"one\ntwo"))
    assert (environ["CONTENT_TYPE"], environ["CONTENT_LENGTH"]) == ("text/plain", "7")
    assert not {"HTTP_CONTENT_TYPE", "HTTP_CONTENT_LENGTH"} & set(environ)
    assert environ["wsgi.input"].readlines() == [b"one\n", b"two"]


def test_without_a_body_nothing_describes_one() -> None:
    assert not {"CONTENT_TYPE", "CONTENT_LENGTH"} & set(environ_of(compose()))


def test_a_chunked_body_is_decoded_and_has_a_length() -> None:
    data = compose(
        "POST", "/", "Transfer-Encoding: chunked", body=b"3\r\none\r\n4;x=y\r\n two\r\n0\r\nTrailer: t\r\n\r\n"
    )
    environ = environ_of(data)
    assert environ["CONTENT_LENGTH"] == "7"
    assert "HTTP_TRANSFER_ENCODING" not in environ
    assert environ["wsgi.input"].read() == b"one two"


def test_the_flags_are_those_of_the_engine() -> None:
    environ = environ_of(compose(), multithread=True, multiprocess=False, scheme="https")
    assert (environ["wsgi.multithread"], environ["wsgi.multiprocess"]) == (True, False)
    assert (environ["wsgi.url_scheme"], environ["HTTPS"]) == ("https", "on")


def test_clients_of_a_unix_socket_have_no_address() -> None:
    environ = environ_of(compose(), client=("", ""), name="", port=0)
    assert (environ["REMOTE_ADDR"], environ["REMOTE_PORT"]) == ("", "")
    assert (environ["SERVER_NAME"], environ["SERVER_PORT"]) == ("localhost", "80")


# --- mounted at a path


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/api/items", "/items"), ("/items", "/items"), ("/api", ""), ("/api/", "/"), ("/", "/"), ("/apixy", "/apixy"),
        ("/API/x", "/API/x"), ("/api//x", "//x"), ("//api/x", "//api/x"), ("/%61pi/x", "/x"), ("/api/api/x", "/api/x"),
        ("/api/a%20b?q=/api", "/a b"), ("http://example.org/api/x", "/x"),
    ],
)  # fmt: skip
def test_script_name_is_the_root_path_whether_or_not_a_proxy_takes_it_away(target: str, path: str) -> None:
    environ = environ_of(compose("GET", target), root_path="/api")
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"], environ["REQUEST_URI"]) == ("/api", path, target)


def test_a_root_path_beyond_ascii_is_a_native_string() -> None:
    for target in ("/caf%C3%A9/x", "/x"):
        environ = environ_of(compose("GET", target), root_path="/caf\u00e9")
        assert (environ["SCRIPT_NAME"].encode("latin1").decode(), environ["PATH_INFO"]) == ("/caf\u00e9", "/x")


def test_the_server_as_a_whole_has_no_path_at_a_root_path_either() -> None:
    environ = environ_of(compose("OPTIONS", "*"), root_path="/api")
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == ("/api", "")


def test_flask_makes_addresses_with_the_root_path() -> None:
    app = flask.Flask(__name__)

    @app.route("/items", endpoint="items")
    def items() -> str:
        return f"{flask.url_for('items')} {flask.request.path} {flask.request.script_root}"

    for target in ("/api/items", "/items"):
        environ = environ_of(compose("GET", target), root_path="/api")
        assert b"".join(app(environ, lambda _status, _fields: None)) == b"/api/items /items /api"

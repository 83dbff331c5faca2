"""TLS: certificates of clients, and what applications are told of a connection; handshakes that fail."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import ssl
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.apps.routes import HELLO
from tests.support.client import abort, dial, read_exactly, read_to_end
from tests.support.server import APPS
from tests.support.tls import ASKED, CLIENT, CLIENTS, EXPIRED, FIRST, ODD, SECOND, TLS, trusting
from tests.support.wait import eventually
from tests.support.ways import BOTH, EACH_WAY, LOOPS, ONE, THREADS, WSGI, Way
from tests.support.web import Browser, fetch, request

if TYPE_CHECKING:
    from tests.conftest import Serve, Shared
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow

OPTIONAL = (*ASKED, "--tls-client-cert", "optional")
VERSIONS = pytest.mark.parametrize(
    "version",
    [pytest.param(ssl.TLSVersion.TLSv1_2, id="1.2"), pytest.param(ssl.TLSVersion.TLSv1_3, id="1.3")],
)
EACH_LOOP = pytest.mark.parametrize("way", LOOPS)
NAME = ("CN=Zoë", "O=Acme\\, Sons", "OU=R\\+D", "C=CH")  # of CLIENT, by RFC 4514


def pem_of(path: str) -> str:
    """The certificate in the file."""
    text = Path(path).read_text()
    return text[text.index("-----BEGIN CERTIFICATE-----") :]


def told(server: RunningServer, *, own: str = "", version: ssl.TLSVersion | None = None) -> dict[str, Any]:
    """The extension `tls` of a request over ASGI."""
    with Browser(server, tls=trusting(version=version, own=own)) as browser:
        scopes = [json.loads(browser.get("/scope").body) for _ in range(2)]
    assert scopes[0]["extensions"] == scopes[1]["extensions"]
    facts: dict[str, Any] = scopes[0]["extensions"]["tls"]
    return facts


def environ(server: RunningServer, *, own: str = "", version: ssl.TLSVersion | None = None) -> dict[str, Any]:
    """What the environ of a request over WSGI has of TLS."""
    with Browser(server, tls=trusting(version=version, own=own)) as browser:
        environs = [json.loads(browser.get("/environ").body) for _ in range(2)]
    found = [{key: value for key, value in one.items() if key.startswith(("SSL_", "HTTPS"))} for one in environs]
    assert found[0] == found[1]
    return found[0]


def under_tls(server: RunningServer, context: ssl.SSLContext, session: ssl.SSLSession | None = None) -> ssl.SSLSocket:
    """A connection after its handshake."""
    sock = dial(server.address)
    try:
        return context.wrap_socket(sock, server_hostname="localhost", session=session)
    except ssl.SSLError:
        sock.close()
        raise


def first_byte(server: RunningServer, context: ssl.SSLContext) -> bytes:
    """Of the response to a request."""
    with under_tls(server, context) as sock:
        sock.sendall(request())
        return sock.recv(1)


def refusal(server: RunningServer, **client: Any) -> str:
    """Why a client's handshake is refused, as the client is told."""
    with pytest.raises(ssl.SSLError) as caught:
        first_byte(server, trusting(**client))
    return str(caught.value.reason)


# --- what applications are told


@EACH_LOOP
@VERSIONS
def test_asgi_is_told_of_the_connection_and_the_client(shared: Shared, version: ssl.TLSVersion, way: Way) -> None:
    server = shared(*way, *ONE, *OPTIONAL)
    facts = told(server, own=CLIENT, version=version)
    assert facts["server_cert"] == pem_of(FIRST)
    assert facts["client_cert_chain"][0] == pem_of(CLIENT)
    assert all(part in facts["client_cert_name"] for part in NAME)
    assert facts["client_cert_name"].startswith("CN=Zoë,")
    assert facts["client_cert_error"] is None
    assert facts["tls_version"] == int(version)
    suite = {ssl.TLSVersion.TLSv1_2: 0xC02C, ssl.TLSVersion.TLSv1_3: 0x1302}[version]
    assert facts["cipher_suite"] == suite
    nobody = told(server, version=version)
    assert nobody == {**facts, "client_cert_chain": [], "client_cert_name": None}


@pytest.mark.parametrize("way", [WSGI, THREADS])
@VERSIONS
def test_wsgi_is_told_of_the_connection_and_the_client(shared: Shared, version: ssl.TLSVersion, way: Way) -> None:
    server = shared(*way, *ONE, *OPTIONAL)
    facts = environ(server, own=CLIENT, version=version)
    name = facts.pop("SSL_CLIENT_S_DN").encode("latin1").decode()
    assert all(part in name for part in NAME)
    assert facts == {
        "HTTPS": "on",
        "SSL_PROTOCOL": {ssl.TLSVersion.TLSv1_2: "TLSv1.2", ssl.TLSVersion.TLSv1_3: "TLSv1.3"}[version],
        "SSL_CIPHER": {
            ssl.TLSVersion.TLSv1_2: "ECDHE-ECDSA-AES256-GCM-SHA384",
            ssl.TLSVersion.TLSv1_3: "TLS_AES_256_GCM_SHA384",
        }[version],
        "SSL_CLIENT_VERIFY": "SUCCESS",
        "SSL_CLIENT_CERT": pem_of(CLIENT),
        "SSL_CLIENT_I_DN": "CN=clients,O=Prefork Tests",
        "SSL_CLIENT_M_SERIAL": "0A1B2C",
    }
    nobody = environ(server, version=version)
    assert nobody == {key: facts[key] for key in ("HTTPS", "SSL_PROTOCOL", "SSL_CIPHER")} | {
        "SSL_CLIENT_VERIFY": "NONE"
    }


def test_without_a_ca_no_client_is_asked(shared: Shared) -> None:
    server = shared(*THREADS.values[0], *ONE, *TLS)
    assert environ(server, own=CLIENT)["SSL_CLIENT_VERIFY"] == "NONE"


@EACH_LOOP
def test_a_coroutine_handler_has_the_certificate_where_asyncio_keeps_it(serve: Serve, way: Way) -> None:
    server = serve(f"{APPS / 'coroutines.py'}:whose", *way[1:], *ONE, *ASKED)
    with under_tls(server, trusting(own=CLIENT)) as sock:
        assert read_exactly(sock, 5).decode() == "Zoë\n"


@BOTH
@VERSIONS
def test_sessions_resume_with_the_client_s_certificate(serve: Serve, version: ssl.TLSVersion, way: Way) -> None:
    """A ticket carries it, on each worker."""
    server = serve(*way, "--workers", "2", *ASKED)
    context = trusting(version=version, own=CLIENT)
    path = "/scope" if len(way) == 1 and "asgi" in way[0] else "/environ"
    session, pids = None, set[bytes]()
    for _ in range(40):
        with under_tls(server, context, session) as sock:
            assert sock.session_reused is (session is not None)
            sock.sendall(request(path) + request("/pid", connection="close"))
            facts, pid = read_to_end(sock).split(b"HTTP/1.1 ")[1:]
            assert b"Zo" in facts
            pids.add(pid.rpartition(b"\r\n")[2])
            session = session or sock.session
        if len(pids) == 2:
            return
    raise AssertionError(f"never served by both workers: {pids}")


# --- who is refused


@EACH_WAY
@VERSIONS
def test_who_has_no_good_certificate_is_told_so_and_does_no_harm(
    serve: Serve, version: ssl.TLSVersion, way: Way
) -> None:
    server = serve(*way, *ONE, *ASKED)
    nothing = "CERTIFICATE_REQUIRED" if version is ssl.TLSVersion.TLSv1_3 else "HANDSHAKE_FAILURE"
    assert nothing in refusal(server, version=version)
    said = server.wait_log(r"(connection failed .*)$")[1]
    assert "peer=127.0.0.1:" in said
    assert "it gave no certificate, which --tls-ca asks for" in said
    assert "CERTIFICATE_EXPIRED" in refusal(server, version=version, own=EXPIRED)
    assert "UNKNOWN_CA" in refusal(server, version=version, own=SECOND)
    assert fetch(server, tls=trusting(own=CLIENT, version=version)).body == HELLO
    assert server.stop() == 0
    assert " refused=3 " in server.log
    assert "Traceback" not in server.log
    assert "_ssl.c" not in server.log


@EACH_WAY
@VERSIONS
def test_a_certificate_that_python_cannot_read_is_refused(serve: Serve, version: ssl.TLSVersion, way: Way) -> None:
    server = serve(*way, *ONE, *ASKED)
    workers = server.worker_pids()
    for _ in range(3):
        try:
            assert first_byte(server, trusting(own=ODD, version=version)) == b""
        except (ssl.SSLError, ConnectionError):
            pass
    assert "its certificate is not accepted: it has what is not UTF-8" in server.wait_log(r"(connection failed .*)$")[1]
    assert fetch(server, tls=trusting(own=CLIENT, version=version)).body == HELLO
    assert server.worker_pids() == workers
    assert server.stop() == 0
    assert " refused=3 " in server.log


@EACH_WAY
def test_a_certificate_that_need_not_be_shown_must_still_be_good(shared: Shared, way: Way) -> None:
    server = shared(*way, *ONE, *OPTIONAL)
    assert fetch(server, tls=trusting()).body == HELLO
    assert "UNKNOWN_CA" in refusal(server, own=SECOND)


@pytest.mark.parametrize("own", ["", EXPIRED], ids=["none", "expired"])
@EACH_WAY
def test_a_request_sent_with_the_handshake_is_not_answered(shared: Shared, own: str, way: Way) -> None:
    """In TLS 1.3 a client may send before it knows that it is refused; the alert reaches it nevertheless."""
    server = shared(*way, *ONE, *ASKED)
    for _ in range(5):
        with under_tls(server, trusting(own=own)) as sock:
            sock.sendall(request(method="POST", body=bytes(100_000)))
            with pytest.raises(ssl.SSLError, match="alert"):
                sock.recv(1)


@EACH_WAY
def test_versions_and_ciphers_below_the_least_are_refused(shared: Shared, way: Way) -> None:
    server = shared(*way, *ONE, *TLS, "--tls-min-version", "1.3")
    assert "PROTOCOL_VERSION" in refusal(server, version=ssl.TLSVersion.TLSv1_2)
    assert fetch(server, tls=trusting(version=ssl.TLSVersion.TLSv1_3)).body == HELLO
    cipher = "ECDHE-ECDSA-CHACHA20-POLY1305"
    server = shared(*way, *ONE, *TLS, "--tls-ciphers", cipher)
    with Browser(server, tls=trusting(version=ssl.TLSVersion.TLSv1_2)) as browser:
        assert browser.sock.cipher()[0] == cipher  # type: ignore[attr-defined] # of an SSLSocket
        assert browser.get().body == HELLO
    other = trusting(version=ssl.TLSVersion.TLSv1_2)
    other.set_ciphers("ECDHE-ECDSA-AES128-GCM-SHA256")
    with pytest.raises(ssl.SSLError, match="HANDSHAKE_FAILURE"):
        under_tls(server, other)


@EACH_WAY
def test_a_client_that_refuses_us_is_counted_and_told_of(serve: Serve, way: Way) -> None:
    server = serve(*way, *ONE, *TLS)
    with pytest.raises(ssl.SSLCertVerificationError):
        fetch(server, tls=ssl.create_default_context())
    said = server.wait_log(r"(connection failed .*)$")[1]
    assert "it does not know who has signed the certificate of --tls-cert" in said
    assert server.stop() == 0
    assert " refused=1 " in server.log


@EACH_WAY
def test_a_client_that_leaves_in_its_handshake_makes_no_noise(serve: Serve, way: Way) -> None:
    server = serve(*way, *ONE, *TLS)
    for data in (b"", b"\x16\x03\x01", b"\x16\x03\x01\x02\x00\x01"):
        with dial(server.address) as client:
            client.sendall(data)
    assert fetch(server, tls=trusting()).body == HELLO
    assert server.stop() == 0
    assert "connection failed" not in server.log
    assert " refused=0 " in server.log


@EACH_WAY
def test_alpn_names_http_1_1(shared: Shared, way: Way) -> None:
    server = shared(*way, *ONE, *TLS)
    for offered, chosen in ((["h2", "http/1.1"], "http/1.1"), (["http/1.1"], "http/1.1"), (["h2"], None), ([], None)):
        context = trusting()
        if offered:
            context.set_alpn_protocols(offered)
        with Browser(server, tls=context) as browser:
            assert browser.sock.selected_alpn_protocol() == chosen  # type: ignore[attr-defined] # of an SSLSocket
            assert browser.get().body == HELLO


@EACH_LOOP
def test_alpn_names_nothing_for_a_handler(serve: Serve, way: Way) -> None:
    server = serve(f"{APPS / 'coroutines.py'}:talk", *way[1:], *ONE, *TLS)
    context = trusting()
    context.set_alpn_protocols(["http/1.1", "imap"])
    with under_tls(server, context) as sock:
        assert sock.selected_alpn_protocol() is None
        assert read_exactly(sock, 19) == b"hello from prefork\n"


@EACH_WAY
def test_who_speaks_plain_http_counts_once_however_it_leaves(serve: Serve, way: Way) -> None:
    server = serve(*way, *ONE, *TLS)
    for leave in (abort, socket.socket.close):
        client = dial(server.address)
        client.sendall(request())
        assert b"https://" in client.recv(65536)
        leave(client)
    assert fetch(server, tls=trusting()).body == HELLO
    assert server.stop() == 0
    assert " refused=2 " in server.log
    assert server.log.count("connection failed") == 1, "one line a second"


@EACH_LOOP
def test_who_does_not_speak_tls_to_a_handler_is_cut_at_once(serve: Serve, way: Way) -> None:
    server = serve(f"{APPS / 'coroutines.py'}:talk", *way[1:], *ONE, *TLS, "--header-timeout", "60")
    for data in (request(), b"SSH-2.0-OpenSSH_9.2\r\n"):
        with dial(server.address) as client:
            client.sendall(data)
            read_to_end(client)
    assert "TLS handshake:" in server.wait_log(r"(connection failed .*)$")[1]


# --- whom a reload asks


@BOTH
def test_a_reload_reads_the_ca_again(serve: Serve, tmp_path: Path, way: Way) -> None:
    file = tmp_path / "ca.pem"
    shutil.copy(SECOND, file)
    server = serve(*way, *ONE, *TLS, "--tls-ca", str(file))
    assert "UNKNOWN_CA" in refusal(server, own=CLIENT)
    workers = server.worker_pids()
    shutil.copy(CLIENTS, file)
    server.signal(signal.SIGHUP)
    server.wait_workers(1, without=workers)
    eventually(lambda: fetch(server, tls=trusting(own=CLIENT)).body == HELLO, within_s=15)
    workers = server.worker_pids()
    file.write_text("nothing")
    server.signal(signal.SIGHUP)
    assert f"--tls-ca {file} has no certificate in it" in server.wait_log(r"(reload abandoned .*)$")[1]
    assert server.worker_pids() == workers
    assert fetch(server, tls=trusting(own=CLIENT)).body == HELLO


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
@BOTH
def test_curl_shows_its_certificate_and_is_told_when_it_does_not(shared: Shared, way: Way) -> None:
    server = shared(*way, *ONE, *ASKED)
    port = server.address.rpartition(":")[2]
    curl = ["curl", "-sS", "--max-time", "10", "--cacert", FIRST, f"https://localhost:{port}/"]
    assert subprocess.run([*curl, "--cert", CLIENT], capture_output=True, check=True).stdout == HELLO
    refused = subprocess.run(curl, capture_output=True, check=False)
    assert refused.returncode == 56
    assert b"alert" in refused.stderr


def test_the_end_of_a_refused_client_is_no_reset(shared: Shared) -> None:
    """So that it can read the alert, whatever it has sent meanwhile."""
    server = shared(*WSGI.values[0], *ONE, *ASKED)
    with under_tls(server, trusting()) as sock:
        sock.sendall(bytes(200_000))
        with pytest.raises(ssl.SSLError, match="alert"):
            sock.recv(1)
        assert socket.socket.recv(sock, 1) == b""

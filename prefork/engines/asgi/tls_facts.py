"""WORKER. What an ASGI application is told of a connection's TLS (the extension `tls` of its scopes)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio

_VERSIONS = {"TLSv1.2": 0x0303, "TLSv1.3": 0x0304}  # RFC 8446 4.1.2, as ASGI wants them


def tls_facts(transport: asyncio.BaseTransport) -> dict[str, Any]:
    """Return them. Clients are not asked for certificates, so nothing is said of these."""
    ssl_object = transport.get_extra_info("ssl_object")
    name = ssl_object.cipher()[0]
    suites = [cipher["id"] & 0xFFFF for cipher in ssl_object.context.get_ciphers() if cipher["name"] == name]
    return {
        "server_cert": None,
        "client_cert_chain": [],
        "client_cert_name": None,
        "client_cert_error": None,
        "tls_version": _VERSIONS.get(ssl_object.version()),
        "cipher_suite": suites[0] if suites else None,
    }

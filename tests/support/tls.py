"""The certificates of the tests, and contexts of clients that trust them."""

from __future__ import annotations

import ssl
from pathlib import Path

CERTIFICATES = Path(__file__).with_name("certificates")
_NAMES = ("first", "second", "locked", "clients", "client", "expired", "odd")
FIRST, SECOND, LOCKED, CLIENTS, CLIENT, EXPIRED, ODD = (str(CERTIFICATES / f"{name}.pem") for name in _NAMES)
PASSWORD = "open-sesame"
TLS = ("--tls-cert", FIRST)
ASKED = (*TLS, "--tls-ca", CLIENTS)  # which has signed CLIENT, EXPIRED, and ODD, whose alternative name is not UTF-8


def trusting(*files: str, version: ssl.TLSVersion | None = None, own: str = "") -> ssl.SSLContext:
    """A client's context that trusts these certificates alone, speaks this version alone, and shows this one."""
    context = ssl.create_default_context()
    for file in files or (FIRST,):
        context.load_verify_locations(file)
    if version:
        context.minimum_version = context.maximum_version = version
    if own:
        context.load_cert_chain(own)
    return context

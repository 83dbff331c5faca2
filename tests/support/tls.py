"""The certificates of the tests, and contexts of clients that trust them."""

from __future__ import annotations

import ssl
from pathlib import Path

CERTIFICATES = Path(__file__).with_name("certificates")
FIRST, SECOND, LOCKED = (str(CERTIFICATES / f"{name}.pem") for name in ("first", "second", "locked"))
TLS = ("--tls-cert", FIRST)


def trusting(*files: str) -> ssl.SSLContext:
    """A client's context that trusts these certificates alone."""
    context = ssl.create_default_context()
    for file in files or (FIRST,):
        context.load_verify_locations(file)
    return context

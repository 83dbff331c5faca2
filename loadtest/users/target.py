"""Where the server of a user is: its `--host`, or else a default server's address."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from locust.exception import StopTest

from ..plan import addresses
from .options import protocol_of

if TYPE_CHECKING:
    import socket

    from locust import User


def target(user: User) -> tuple[addresses.Address, socket.AddressFamily, Any]:
    """The address, its family, and what connect() takes. Raises StopTest, which ends the run with the reason."""
    try:
        found = addresses.parse(
            user.host or addresses.DEFAULT, protocol_of(type(user), user.environment.parsed_options), unix=user.unix
        )
        return found, *found.resolve()
    except addresses.AddressError as error:
        raise StopTest(str(error)) from None
    except OSError as error:
        raise StopTest(f"--host {user.host!r}: {error.strerror}") from None

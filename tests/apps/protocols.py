"""Protocols of asyncio, as `loop.create_server` takes them; what some of them do is written into the log."""

from __future__ import annotations

import asyncio
import os
import time
from functools import partial
from typing import Any

from tests.apps.asking import pass_gate
from tests.apps.coroutines import hold_up, say, take_descriptors


class Echo(asyncio.Protocol):
    """The echo server of the standard library's documentation; it leaves the end to the client."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class Line(asyncio.Protocol):
    """What reads a line and answers it."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.got = b""

    def data_received(self, data: bytes) -> None:
        self.got += data
        if b"\n" in self.got:
            self.answer(self.got.partition(b"\n")[0].rstrip(b"\r"))

    def answer(self, line: bytes) -> None:
        self.transport.write(b"you said: " + line + b"\n")
        self.transport.close()


class Talk(Line):
    """Answers as the built-in talkback does."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.write(b"hello from prefork\n")


class Nap(Talk):
    """Talks, and waits for 5 ms before the answer."""

    def answer(self, line: bytes) -> None:
        asyncio.get_running_loop().call_later(0.005, super().answer, line)


class Gated(Talk):
    """Talks, and waits at the test's gate before the answer."""

    def answer(self, line: bytes) -> None:
        self.task = asyncio.get_running_loop().create_task(self.wait(line))

    async def wait(self, line: bytes) -> None:
        await pass_gate()
        super().answer(line)


class Slotted(asyncio.Protocol):
    """A class without a dictionary."""

    __slots__ = ("transport",)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class Buffered(asyncio.BufferedProtocol):
    """Has the loop write into its own buffer."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.buffer = bytearray(1000)

    def get_buffer(self, _sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.transport.write(bytes(self.buffer[:nbytes]))


class Greeting(Echo):
    """One whose maker gives it something."""

    def __init__(self, greeting: bytes) -> None:
        self.greeting = greeting

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.write(self.greeting)


def make() -> Greeting:
    """A factory."""
    return Greeting(b"made by a function\n")


make_partly = partial(Greeting, b"made by a partial\n")


class Guarded(Echo):
    """One that lets nobody set what it has not named."""

    def __setattr__(self, name: str, value: object) -> None:
        if name != "transport":
            raise AttributeError(name)
        super().__setattr__(name, value)


class Named(Echo):
    """One whose subclasses have to say their names."""

    def __init_subclass__(cls, *, name: str) -> None:
        cls.name = name


class Last(Named, name="last"):
    """One of which nothing can be derived just so."""


class LastFails(Last, name="fails"):
    """The same, and it fails in connection_made."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        raise RuntimeError("in connection_made")


class Slot(asyncio.Protocol):
    """Says slot, generation and pid of the worker."""

    def connection_made(self, transport: Any) -> None:
        environ = os.environ
        transport.write(f"{environ['PREFORK_SLOT']} {environ['PREFORK_GENERATION']} {os.getpid()}\n".encode())
        transport.close()


class Stay(Echo):
    """Says the pid, and stays for as long as the client does."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.write(b"%d\n" % os.getpid())


class Obey(Line):
    """Does what a line asks for."""

    def answer(self, line: bytes) -> None:
        word, _, argument = line.decode().partition(" ")
        loop = asyncio.get_running_loop()
        match word:
            case "raise":
                raise RuntimeError(argument)
            case "hello":
                self.transport.write(b"hello\n")
            case "block":
                hold_up(float(argument))
                self.transport.write(b"done\n")
            case "later":
                loop.call_later(0.05, hold_up, float(argument))
                self.transport.write(b"%d\n" % os.getpid())
            case "descriptors":
                take_descriptors(float(argument))
                loop.call_later(float(argument), self.transport.close)
                return
        self.transport.close()


class RaisesAtFirst(Echo):
    """Fails in connection_made."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        raise RuntimeError("in connection_made")


class RaisesOnData(Echo):
    """Fails in data_received."""

    def data_received(self, data: bytes) -> None:
        raise RuntimeError("in data_received")


class RaisesAtLast(Talk):
    """Fails in connection_lost."""

    def connection_lost(self, exc: Exception | None) -> None:
        raise RuntimeError("in connection_lost")


class RaisesAtEnd(Echo):
    """Fails in eof_received."""

    def eof_received(self) -> None:
        raise RuntimeError("in eof_received")


class RaisesInBuffer(Buffered):
    """Fails in get_buffer."""

    def get_buffer(self, _sizehint: int) -> bytearray:
        raise RuntimeError("in get_buffer")


class HalfClosed(Echo):
    """Answers when the client has ended its half."""

    def eof_received(self) -> bool:
        self.transport.write(b"and that was all\n")
        asyncio.get_running_loop().call_soon(self.transport.close)
        return True


class Lost(Stay):
    """Says why it was lost."""

    def connection_lost(self, exc: Exception | None) -> None:
        say("lost", type(exc).__name__)


class Passes(Echo):
    """Hands its transport to another protocol, as an upgrade does."""

    def data_received(self, data: bytes) -> None:
        self.transport.set_protocol(Talk())
        self.transport.get_protocol().connection_made(self.transport)


class Datagrams(asyncio.DatagramProtocol):
    """What no stream can run."""


ONE = Echo()


def always_the_same() -> Echo:
    """A factory that is none."""
    return ONE


def make_nothing() -> None:
    """A factory of nothing."""


def fails() -> Echo:
    """A factory that fails."""
    raise RuntimeError(f"in the factory at {time.monotonic()}")

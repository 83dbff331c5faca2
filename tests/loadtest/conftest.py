"""Fixtures for tests with a real generator: servers to load, and locust processes, all ended with their test."""

from __future__ import annotations

import contextlib
import random
import socket
from typing import TYPE_CHECKING, Any

import pytest

from tests.loadtest.lab import Lab
from tests.loadtest.locust_process import Generator
from tests.loadtest.stand_in import Behaviour, StandIn
from tests.loadtest.websocket_server import WebSocketServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def stand_in() -> Iterator[Callable[[Behaviour], StandIn]]:
    """Start a stand-in server: `stand_in(talkback).address`."""
    servers: list[StandIn] = []

    def start(behaviour: Behaviour) -> StandIn:
        servers.append(StandIn(behaviour))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def web_socket() -> Iterator[Callable[..., WebSocketServer]]:
    """Start a real server: `web_socket(handler, tls=context).address`."""
    servers: list[WebSocketServer] = []

    def start(*args: Any, **keywords: Any) -> WebSocketServer:
        servers.append(WebSocketServer(*args, max_size=None, **keywords))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def generate(tmp_path: Path) -> Iterator[Callable[..., Generator]]:
    """Start a generator in the test's folder: `generate("--host", address).wait().result()`."""
    started: list[Generator] = []

    def start(*args: str, **keywords: Any) -> Generator:
        started.append(Generator(tmp_path, *args, **keywords))
        return started[-1]

    yield start
    for generator in started:
        generator.close()


@pytest.fixture
def refusing_address() -> Iterator[str]:
    """An address that is bound, so that it is nobody else's, but does not listen."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


@pytest.fixture
def free_port() -> int:
    """A port that was free a moment ago, for a program that cannot choose one itself.

    Below those that the kernel gives to clients and to port 0 (ip_local_port_range), so that no other test gets it.
    """
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as bound, contextlib.suppress(OSError):
            bound.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port of 100 is free")


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)

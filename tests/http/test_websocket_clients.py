"""Sessions with two other implementations as clients: both sides understand each other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.http.websocket import CLOSED, OPEN, WebSocket
from prefork.http.websocket_close import Closed
from prefork.http.websocket_deflate import Deflate
from tests.http.outcome import cut
from tests.http.websocket_clients import CLIENTS, Client, Message, WebsocketsClient, connected, opened
from tests.support.examples import examples

both = pytest.mark.parametrize("client", CLIENTS)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
messages = st.lists(
    st.tuples(
        texts | st.binary(max_size=300) | st.sampled_from(["a" * 70_000, bytes(70_000), "ab" * 80]), st.integers(1, 4)
    ),
    max_size=8,
)


@given(
    said=messages,
    kind=st.sampled_from(CLIENTS),
    deflate=st.booleans(),
    offered=st.booleans(),
    step=st.sampled_from([1 << 20, 1000, 7]),
)
@examples(60)
def test_messages_come_back_as_they_were(
    said: list[tuple[Message, int]], kind: type[Client], deflate: bool, offered: bool, step: int
) -> None:
    client, session = connected(kind, deflate=deflate, offered=offered)
    for message, pieces in said:
        for piece in cut(client.send(message, pieces), step):
            for event in session.feed(piece):
                assert isinstance(event, str | bytes)
                back = session.text(event) if isinstance(event, str) else session.binary(event)
                assert client.receive(back) == [message]
        assert session.outgoing() == b""
    assert session.state == OPEN


@both
def test_a_conversation_and_its_end(client: type[Client]) -> None:
    peer, session = connected(client)
    assert session.feed(peer.ping(b"are you there?")) == []
    assert peer.receive(session.outgoing()) == [("pong", b"are you there?")]
    assert peer.receive(session.ping()) == []
    assert session.feed(peer.replies()) == []
    assert session.feed(peer.close(1000, "done")) == [Closed(1000, "done")]
    assert peer.receive(session.outgoing()) == [("close", 1000, "done")]
    assert session.state == CLOSED


@both
def test_a_server_that_retires_is_answered(client: type[Client]) -> None:
    peer, session = connected(client)
    assert peer.receive(session.close(1001, "going away")) == [("close", 1001, "going away")]
    assert session.feed(peer.replies())[0:1] == [Closed(1001, "going away")]
    assert session.state == CLOSED


@both
def test_a_clients_deflate_is_used_both_ways(client: type[Client]) -> None:
    peer, session = connected(client)
    text = "the same again " * 20
    for _ in range(3):
        sent = peer.send(text)
        assert len(sent) < 100
        assert session.feed(sent) == [text]
        back = session.text(text)
        assert len(back) < 100
        assert peer.receive(back) == [text]
        session.ping()  # forgets, which is nothing to a client


@both
def test_a_subprotocol_is_agreed_on(client: type[Client]) -> None:
    peer = client(deflate=False, subprotocols=["v2.chat", "v1.chat"])
    head, _ = opened(peer.opening(), subprotocol="v1.chat")
    peer.answered(head)
    assert peer.subprotocol == "v1.chat"


def test_a_client_that_starts_anew_is_understood() -> None:
    """Both with what a client asks for, and with what it is asked for when it cannot limit its window."""
    key = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    key += b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
    head, _ = opened(key)
    answer = b"Sec-WebSocket-Extensions: permessage-deflate; client_no_context_takeover; server_max_window_bits=12\r\n"
    assert answer in head
    peer, _ = connected(WebsocketsClient)
    session = WebSocket(deflate=Deflate(server_bits=12, client_bits=15, server_anew=True, client_anew=False))
    for text in ("some text " * 20, "other text " * 20) * 2:
        assert session.feed(peer.send(text)) == [text]
        assert peer.receive(session.text(text)) == [text]

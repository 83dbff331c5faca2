"""A Flask application with WebSockets by flask-sock, which looks for the socket in the environ."""

from __future__ import annotations

import threading
from typing import Any

import flask
import flask_sock

app = flask.Flask(__name__)
sock = flask_sock.Sock(app)


@sock.route("/echo")
def echo(ws: Any) -> None:
    """Send each message back, until the client closes."""
    while True:
        ws.send(ws.receive())


@sock.route("/once")
def once(ws: Any) -> None:
    """Send one message, and end."""
    ws.send(f"from {threading.current_thread().name}")


@app.route("/")
def index() -> str:
    """Answer over HTTP."""
    return "ok"

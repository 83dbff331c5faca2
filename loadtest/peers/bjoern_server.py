"""bjoern, a WSGI server in C: one thread, one loop. Usage: bjoern_server.py HOST PORT"""

from __future__ import annotations

import sys

import bjoern
from wsgi_app import app

if __name__ == "__main__":
    bjoern.run(app, sys.argv[1], int(sys.argv[2]), listen_backlog=2048)

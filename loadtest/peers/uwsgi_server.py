"""uWSGI, one worker behind its own HTTP router, which keeps connections alive. Usage: uwsgi_server.py ADDRESS

Its other way, --http-socket, keeps none; with --http11-socket one connection would have the worker for itself.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    program = Path(sys.executable).with_name("uwsgi")
    options = [
        "--http", sys.argv[1], "--http-keepalive", "--wsgi-file", "wsgi_app.py", "--callable", "app",
        "--processes", "1", "--master", "--listen", "1024", "--disable-logging", "--die-on-term", "--need-app",
    ]  # fmt: skip
    os.execv(program, [str(program), *options])

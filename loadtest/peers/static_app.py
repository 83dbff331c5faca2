"""The application of the plan `static`: WhiteNoise around a WSGI application, as Django and Flask sites use it.

It gives out the files of prefork's own page under /static/.
"""

from __future__ import annotations

from pathlib import Path

from whitenoise import WhiteNoise
from wsgi_app import app as site

FOLDER = Path(__file__).resolve().parents[2] / "prefork" / "admin" / "page"

app = WhiteNoise(site, root=str(FOLDER), prefix="static/", max_age=3600)

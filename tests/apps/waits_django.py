"""A site in Django that mostly waits, as sites with a database do: 30 ms of waiting and 1 ms of work for a page."""

from __future__ import annotations

import time
from typing import Any

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path

settings.configure(
    DEBUG=False,
    SECRET_KEY="it protects nothing",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
    LOGGING_CONFIG=None,
)


def page(_: Any) -> HttpResponse:
    time.sleep(0.03)
    done_ns = time.thread_time_ns() + 1_000_000
    while time.thread_time_ns() < done_ns:
        pass
    return HttpResponse("done")


urlpatterns = [path("", page)]
application = get_wsgi_application()

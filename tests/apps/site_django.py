"""A small site in Django, with the same paths as those beside it (see tests/engines/test_frameworks.py).

Settings, paths, views and the application are all here; static files are those beside it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler, StaticFilesHandler
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import FileResponse, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path

FILE = Path(__file__).with_name("web.py")

settings.configure(
    DEBUG=False,
    SECRET_KEY="it protects nothing",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    INSTALLED_APPS=["django.contrib.staticfiles"],
    MIDDLEWARE=["django.middleware.common.CommonMiddleware", "django.middleware.gzip.GZipMiddleware"],
    STATIC_URL="/static/",
    STATICFILES_DIRS=[FILE.parent],
    LOGGING_CONFIG=None,
)


def hello(request: Any) -> HttpResponse:
    return HttpResponse(f"hello {request.GET.get('name', 'you')}")


def form(request: Any) -> HttpResponse:
    return HttpResponse("&".join(f"{key}={value}" for key, value in sorted(request.POST.items())))


def upload(request: Any) -> HttpResponse:
    given = request.FILES["file"]
    return HttpResponse(f"{given.name} {len(given.read())}")


def say_json(request: Any) -> JsonResponse:
    return JsonResponse(json.loads(request.body))


def stream(_: Any) -> StreamingHttpResponse:
    return StreamingHttpResponse((b"line %d\n" % number for number in range(10)), content_type="text/plain")


async def stream_async(_: Any) -> StreamingHttpResponse:
    async def lines() -> Any:
        for number in range(10):
            yield b"line %d\n" % number

    return StreamingHttpResponse(lines(), content_type="text/plain")


def file(_: Any) -> FileResponse:
    return FileResponse(FILE.open("rb"))


def cookie(request: Any) -> HttpResponse:
    visits = int(request.COOKIES.get("visits", 0)) + 1
    answer = HttpResponse(str(visits))
    answer.set_cookie("visits", str(visits))
    answer.set_cookie("second", "x")
    return answer


def fail(_: Any) -> HttpResponse:
    raise RuntimeError("a secret of the application")


urlpatterns = [
    path("", hello),
    path("form", form),
    path("upload", upload),
    path("json", say_json),
    path("stream", stream),
    path("file", file),
    path("cookie", cookie),
    path("fail", fail),
    path("astream", stream_async),
]
site = StaticFilesHandler(get_wsgi_application())
asgi_site = ASGIStaticFilesHandler(get_asgi_application())

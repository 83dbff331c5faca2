"""A small site in Pyramid, with the same paths as those beside it (see tests/engines/test_frameworks.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyramid.config import Configurator
from pyramid.response import FileResponse, Response

FILE = Path(__file__).with_name("web.py")


def cookie(request: Any) -> Any:
    visits = int(request.cookies.get("visits", 0)) + 1
    answer = Response(str(visits))
    answer.set_cookie("visits", str(visits))
    answer.set_cookie("second", "x")
    return answer


def form(request: Any) -> Any:
    return Response("&".join(f"{key}={value}" for key, value in sorted(request.POST.items())))


def upload(request: Any) -> Any:
    given = request.POST["file"]
    return Response(f"{given.filename} {len(given.file.read())}")


def fail(_: Any) -> Any:
    raise RuntimeError("a secret of the application")


views = {
    "/": lambda request: Response(f"hello {request.GET.get('name', 'you')}"),
    "/form": form,
    "/upload": upload,
    "/json": lambda request: Response(json_body=request.json_body),
    "/stream": lambda _: Response(app_iter=(b"line %d\n" % number for number in range(10)), content_type="text/plain"),
    "/file": lambda request: FileResponse(FILE, request=request),
    "/cookie": cookie,
    "/fail": fail,
}
with Configurator() as configurator:
    for path, view in views.items():
        configurator.add_route(path, path)
        configurator.add_view(view, route_name=path)
    site = configurator.make_wsgi_app()

"""A traced application: each request is a span, which a batch exporter writes to a file, by its name."""

from __future__ import annotations

import os
from typing import Any

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult


class FileExporter(SpanExporter):
    """Writes the names of spans."""

    def export(self, spans: Any) -> SpanExportResult:
        """Write them."""
        with open(os.environ["NAMES"], "a") as file:
            file.writelines(f"{span.name}\n" for span in spans)
        return SpanExportResult.SUCCESS


PROVIDER = TracerProvider()
PROVIDER.add_span_processor(BatchSpanProcessor(FileExporter()))
TRACER = PROVIDER.get_tracer("test")


def traced_wsgi(_environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """Serve over WSGI."""
    with TRACER.start_as_current_span("span"):
        start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]


async def traced_asgi(scope: dict[str, Any], _receive: Any, send: Any) -> None:
    """Serve over ASGI."""
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    with TRACER.start_as_current_span("span"):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})

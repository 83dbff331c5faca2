"""HTTP/1.1, WebSocket and lifespan for ASGI applications, on the asyncio engine."""

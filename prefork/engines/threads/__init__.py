"""The engine for handlers that block: threads, each of them accept, handle, close."""

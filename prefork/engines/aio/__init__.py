"""The engine on an asyncio event loop, and the handlers it serves without HTTP: coroutines and Protocols."""

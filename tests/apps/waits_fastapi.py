"""An API in FastAPI that waits for each answer, in the three ways in which that is written."""

from __future__ import annotations

import asyncio
import time

from fastapi import FastAPI

app = FastAPI()


@app.get("/awaits")
async def awaits(ms: int = 30) -> str:
    await asyncio.sleep(ms / 1e3)
    return "done"


@app.get("/thread")
def thread(ms: int = 30) -> str:
    """Runs on one of the 40 threads that the framework keeps for this."""
    time.sleep(ms / 1e3)
    return "done"


@app.get("/blocks")
async def blocks(ms: int = 30) -> str:
    """The mistake: no other request of this process goes on meanwhile."""
    time.sleep(ms / 1e3)
    return "done"

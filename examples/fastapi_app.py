"""A FastAPI handler that publishes in one line.

pip install 'fastapi[standard]'
fastapi run examples/fastapi_app.py
curl localhost:8000/orders --json '{"customer": "ada", "item": "tea"}'
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from rstream import Event, RStream
from rstream.errors import EventError

log = RStream()


class OrderPlaced(Event):
    customer: str
    item: str
    quantity: int = 1


orders = log.stream("fastapi-orders", OrderPlaced, key="customer", shards=4)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    yield
    await log.aclose()


app = FastAPI(lifespan=lifespan)


@app.exception_handler(EventError)  # what no model checks: an empty key, an event that is too large
async def refuse(_: Request, error: EventError) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, status_code=422)


# An event is a pydantic model: FastAPI has checked it before this line runs.
@app.post("/orders", status_code=202)
async def place_order(order: OrderPlaced) -> dict[str, str]:
    return {"id": str(await orders.publish(order))}

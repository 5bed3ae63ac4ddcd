"""The app of docker-compose.yml: a shop that publishes orders, some with a scan of 100 KB, and two groups of handlers.

rstream worker examples.orders:app                      # as many as you like
python -m examples.orders --rate 5                      # orders, until it is stopped
rstream groups orders; rstream read invoices --limit 3
rstream dead list orders --group billing                # one order in fifty is for what the shop does not have
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import logging
import os
import random
import signal

from rstream import Event, Reject, Retention, RStream
from rstream.errors import RStreamError

app = RStream()

CENTS = {"tea": 450, "lamp": 3900, "desk": 24900, "chair": 8900}
SCAN_BYTES = 100_000  # above what stays in Redis, where there is a blob store


class OrderPlaced(Event):
    customer: str
    item: str
    quantity: int = 1
    scan: bytes = b""
    scan_sha256: str = ""


class Invoice(Event):
    customer: str
    cents: int


orders = app.stream("orders", OrderPlaced, key="customer", shards=4, retention=Retention(age="1d", bytes="128MiB"))
invoices = app.stream("invoices", Invoice, key="customer", shards=4, retention=Retention(age="1d", bytes="32MiB"))


@orders.consumer("billing", concurrency=8, emits=invoices)
async def bill(order: OrderPlaced) -> Invoice:
    """The invoice is published by the call to Redis that acks the order."""
    if order.item not in CENTS:
        raise Reject(f"the shop has no {order.item!r}")
    return Invoice(customer=order.customer, cents=CENTS[order.item] * order.quantity)


@orders.consumer("scans", concurrency=2, ordered=False)
def check_scan(order: OrderPlaced) -> None:
    """A plain function: it runs in a thread."""
    if order.scan and hashlib.sha256(order.scan).hexdigest() != order.scan_sha256:
        raise Reject("the scan is not what the customer sent")


def order(dice: random.Random) -> OrderPlaced:
    """What some customer might want."""
    scan = dice.randbytes(SCAN_BYTES) if dice.random() < 0.1 else b""
    return OrderPlaced(
        customer=f"customer-{dice.randrange(50)}",
        item="unicorn" if dice.random() < 0.02 else dice.choice(sorted(CENTS)),
        quantity=dice.randint(1, 3),
        scan=scan,
        scan_sha256=hashlib.sha256(scan).hexdigest(),
    )


async def publish(rate: float, count: int | None, seed: int | None = None) -> None:
    """So many orders a second, until SIGTERM or `count`. Where Redis or the blob store is away for long, an order is
    reported as not placed, and the next one is tried.
    """
    stop, dice, sent = asyncio.Event(), random.Random(seed), 0
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with app:
        while not stop.is_set() and sent != count:
            try:
                await orders.publish(order(dice))
            except RStreamError as error:
                logging.error("an order was not placed: %s", error)
            sent += 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 1 / rate)
    logging.info("%d orders were sent", sent)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Publish orders.")
    parser.add_argument("--rate", type=float, default=float(os.environ.get("ORDERS_PER_SECOND", "5")), help="a second")
    parser.add_argument("--count", type=int, help="how many (default: until it is stopped)")
    parser.add_argument("--seed", type=int, help="the same orders each time")
    options = parser.parse_args()
    logging.basicConfig(level="INFO", format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    asyncio.run(publish(options.rate, options.count, options.seed))

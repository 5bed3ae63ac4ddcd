"""Orders, and groups that read them without a worker: what tests of numbers are made of."""

from __future__ import annotations

from rstream import Stream
from rstream.store.deliveries import GroupOps
from rstream.store.stats import GroupStats, group_stats
from tests.commands import Order


def publish(orders: Stream[Order], count: int) -> None:
    orders.sync.publish_many(Order(customer=f"c{n}", total=n) for n in range(count))


def member(orders: Stream[Order], group: str = "billing", worker: str = "w1", start: str = "0") -> GroupOps:
    ops = GroupOps(orders.sync.layout(), group, worker)
    orders.app.sync_link.run(ops.create(start))
    return ops


def stats(orders: Stream[Order]) -> list[GroupStats]:
    return orders.app.sync_link.run(group_stats(orders.sync.layout()))

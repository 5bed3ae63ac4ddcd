"""`rstream cancel`: end deliveries without an outcome of theirs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from rstream.cli.loop import with_stream
from rstream.cli.target import target_options

if TYPE_CHECKING:
    from rstream.operate import Cancelled


@click.command()
@click.argument("stream")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.option("--group", "-g", required=True, help="The group that is not to handle them (any more).")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@target_options
def cancel(stream: str, ids: tuple[str, ...], group: str, as_json: bool) -> int:
    """End deliveries of a group for good: settled, and counted as cancelled, whoever has them. No other group notices.

    A handler on the event loop is cancelled at once (it may clean up: it gets asyncio.CancelledError). One in a thread,
    in a process or in a batch runs on; whatever it then settles, keeps or emits is refused. In an ordered group the
    next event of the key follows when the handler has ended. What was done outside Redis stays done.

    Of a cancel and the handler's own outcome exactly one counts: where that came first, it is said so. An entry that no
    worker was given yet cannot be cancelled.

    \b
    Examples:
      rstream pending orders --group billing --older-than 1h
      rstream cancel orders 1763630000000-0@1.3 --group billing

    \b
    Exit codes: 0 all cancelled · 1 an error, or some were not, and why · 2 wrong usage
    """
    from rstream.operate import cancel as end

    done = with_stream(stream, lambda opened: end(opened, group, ids))
    for each in done:
        if as_json:
            told = {"verdict": each.verdict, "worker": each.worker, "waited": each.waited, "attempt": each.attempt}
            click.echo(json.dumps({"id": str(each.id), **told}))
        else:
            click.echo(f"{each.id}: {_told(each, stream, group)}", err=each.verdict != "cancelled")
    return 0 if all(each.verdict == "cancelled" for each in done) else 1


def _told(each: Cancelled, stream: str, group: str) -> str:
    if each.verdict == "cancelled" and each.worker is not None:
        return (
            f"cancelled. Worker {each.worker} has it (attempts begun: {each.attempt}) and is told; "
            "where its handler runs on, the outcome is refused"
        )
    if each.verdict == "cancelled":
        return f"cancelled. It waited for a worker ({each.waited}, attempts begun: {each.attempt})"
    if each.verdict == "unread":
        return (
            f"not cancelled: no worker of {group} was given it yet. Cancel it when one was; or have the group pass "
            f"over all before a point: rstream groups reset {stream} --group {group} --to ID"
        )
    if each.verdict == "settled":
        return f"not cancelled: it is settled already. What became of it: rstream show {stream} {each.id}"
    return f"not cancelled: stream {stream} has no such shard any more, or group {group} is gone from it"

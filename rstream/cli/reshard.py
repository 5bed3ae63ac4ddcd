"""`rstream streams reshard`: another number of shards for a stream, while it is written to and read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from rstream.cli.target import stored_app, target_options

if TYPE_CHECKING:
    from rstream.store.layout import Layout
    from rstream.store.reshard import Resharding
    from rstream.stream import Stream


@click.command()
@click.argument("stream")
@click.option("--shards", type=int, required=True, metavar="N", help="How many it shall have.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@target_options
def reshard(stream: str, shards: int, dry_run: bool) -> None:
    """Give a stream another number of shards, while producers and workers run.

    Producers wait for some round trips and go on in the new shards; so do workers, once they have handled what is in
    the old ones, so that the events of a key stay in order. Nothing is moved or lost. Run the same command again
    whenever it was interrupted, at whatever step: it goes on. It also removes old shards in which nothing is left.

    \b
    Examples:
      rstream streams reshard orders --shards 16 --dry-run
      rstream streams reshard orders --shards 16
    """
    with stored_app() as app:
        opened = app.open(stream)
        before = opened.sync.layout()
        try:
            done = _run(opened, shards, before, dry_run)
        except KeyboardInterrupt:
            click.echo(f"Interrupted. To go on: rstream streams reshard {stream} --shards {shards}", err=True)
            raise
    _show_end(done, before)


def _run(opened: Stream[object], shards: int, before: Layout, dry_run: bool) -> Resharding:
    plan = opened.sync.reshard(shards, dry_run=True)
    if plan.generation == before.generation:
        click.echo(f"{plan.stream} has {plan.after} shards already: nothing to do")
    else:
        _show_plan(plan, before)
    return plan if dry_run else opened.sync.reshard(shards, progress=lambda text: click.echo(f"  {text}"))


def _show_plan(plan: Resharding, before: Layout) -> None:
    groups = ", ".join(plan.groups) or "none"
    click.echo(f"{plan.stream}: {plan.before} shards -> {plan.after} (generation {plan.generation}), groups: {groups}")
    if before.planned is not None:
        click.echo("It was begun before and is not done: this goes on")
    if before.key is not None:
        click.echo(
            "Order: a group reads a new shard once it has handled all of the old shards that held its keys "
            f"(at most {_parents(plan, before)} of {plan.before})"
        )


def _parents(plan: Resharding, before: Layout) -> int:
    """How many old shards a new one takes keys of, at most."""
    new = before.of(plan.generation, plan.after)
    return max(sum(shard.overlaps(old) for old in before.current) for shard in new)


def _show_end(done: Resharding, before: Layout) -> None:
    left = ", ".join(f"{group} {'?' if count is None else f'{count:,}'}" for group, count in done.to_drain.items())
    if done.dry_run and done.generation != before.generation:
        click.echo(f"Now to be drained from the old shards: {left or 'nothing, no group reads them'}")
        click.echo("Nothing was done: this was a dry run")
    elif left:
        click.echo(f"Still to be drained from old shards: {left}")

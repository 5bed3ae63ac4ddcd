"""`rstream workers`: who works, on what, and who has fallen silent."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from rstream.cli.groups import ago
from rstream.cli.tables import table
from rstream.cli.target import stored_app, target_options

if TYPE_CHECKING:
    from rstream.store.workers import WorkerInfo

HEAD = ["WORKER", "STATE", "SINCE", "VERSION", "GROUPS", "BUSY", "BUFFER", "HANDLED", "FAILED", "BEAT", "STALL", "MB"]
RIGHT = {2, 5, 6, 7, 8, 9, 10, 11}

HINTS = {
    "blocked": 'beats, but a handler blocks its event loop: stacks are in its log; make it `def`, or run_in="process"',
    "silent": "has not beaten for a lease and lost it: frozen, cut off or killed; others take over what it had",
    "dead": "killed, or ended without saying so: what it had is taken over; forgotten after an hour",
}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="A JSON list of objects, with all that a worker says of itself.")
@target_options
def workers(as_json: bool) -> None:
    """Show the workers of all streams: where they run, since when, what of, and what they do now.

    A worker is its host, its pid and a random part: one that is started anew is another one. BUSY: deliveries that it
    handles, of as many as it would at once. BUFFER: fetched, and not begun. STALL: the longest that its event loop was
    blocked in the last minute.

    \b
    Examples:
      rstream workers
      rstream workers --json | jq '.[] | select(.state != "alive") | {id, state, silent}'
    """
    from rstream.store.steps import drive_sync
    from rstream.store.workers import workers as look

    with stored_app() as app:
        found = drive_sync(app.sync_link, look(app.settings.namespace), app.settings.publish_timeout)
        where = f"namespace {app.settings.namespace!r} at {app.endpoint.label}"
    if as_json:
        click.echo(json.dumps([_row(each) for each in found], indent=2, ensure_ascii=False))
    elif not found:
        click.echo(f"No worker in {where} has lived in the last hour. To start one: rstream worker MODULE:APP")
    else:
        table(HEAD, [_cells(each) for each in found], right=RIGHT)
        for state in dict.fromkeys(each.state for each in found):
            if state in HINTS:
                click.echo(f"{state}: {HINTS[state]}", err=True)


def _row(worker: WorkerInfo) -> dict[str, Any]:
    said = asdict(worker.said) if worker.said is not None else {}
    return {"id": worker.id, "state": worker.state, "beat": worker.beat, "silent": round(worker.silent, 3)} | said


def _cells(worker: WorkerInfo) -> list[str]:
    said = worker.said
    if said is None:
        return [worker.id, worker.state, *"-" * 7, ago(worker.silent), "-", "-"]
    groups = [f"{name} (paused)" if name in said.paused else name for name in said.groups]
    return [
        worker.id,
        worker.state,
        ago(worker.beat - said.started + worker.silent),
        said.version,
        ", ".join(groups[:3]) + (f", … ({len(groups)})" if len(groups) > 3 else ""),
        f"{said.in_flight}/{said.concurrency}",
        f"{said.buffered:,}",
        f"{said.handled:,}",
        f"{said.failed:,}",
        f"{worker.silent:.1f} s",
        f"{said.loop_stall:.1f} s",
        f"{said.rss / 1024 / 1024:,.0f}",
    ]

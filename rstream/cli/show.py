"""`rstream show`: one entry in full, and how every group stands to it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from rstream.cli.loop import since, with_stream
from rstream.cli.pending import kept, waits
from rstream.cli.pending import row as pending_row
from rstream.cli.read import time_of
from rstream.cli.tables import as_text, printable
from rstream.cli.target import target_options

if TYPE_CHECKING:
    from rstream.operate import Claim, GroupState, Shown

WHERE = {
    "redis": "in Redis",
    "archive": "in the archive; trimmed from Redis",
    "letter": "nowhere but in the dead letter: it was trimmed",
}


@click.command()
@click.argument("stream")
@click.argument("id")
@click.option("--no-payload", is_flag=True, help="Without its event and headers; nothing of it is fetched.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object; bytes are base64.")
@target_options
def show(stream: str, id: str, no_payload: bool, as_json: bool) -> None:
    """Show one entry in full: its event, where it lies, and how every group stands to it.

    It is also found in the archive (give --blobs), and where only a dead letter is left of it. ID is what logs, `read`,
    `pending` and `dead` name: 1763630000000-0@1.3.

    \b
    Of each group:
      unread   no worker was given it yet
      pending  a worker has it, or it waits for one: see `rstream pending --help`
      done     settled: acked, expired, a double, cancelled; or passed over, where the group began behind it
      dead     given up: the dead letter is shown
      lost     trimmed before the group had processed it

    \b
    Examples:
      rstream show orders 1763630000000-0@1.3
      rstream show orders 1763630000000-0@1.3 --json | jq '.groups[] | {group, state}'
    """
    from rstream.operate import show as look

    shown = with_stream(stream, lambda opened: look(opened, id, payload=not no_payload))
    if as_json:
        click.echo(json.dumps(_row(shown, payload=not no_payload), ensure_ascii=False, allow_nan=False))
    else:
        click.echo(_in_full(shown, payload=not no_payload))


def _row(shown: Shown, *, payload: bool) -> dict[str, Any]:
    from rstream.event import jsonable

    told: dict[str, Any] = {
        "id": str(shown.id),
        "stream": shown.stream,
        "where": shown.where,
        "key": shown.key,
        "event_id": shown.event_id,
        "published_at": time_of(shown.id),
        "bytes": shown.size,
        "archived": shown.archived,
        "claims": [_claim_row(claim) for claim in shown.claims],
        "groups": [_group_row(state) for state in shown.groups],
    }
    if payload:
        told |= {"headers": jsonable(shown.headers), "event": shown.event}
        if shown.problem is not None:
            told |= {"problem": shown.problem, "fields": {as_text(n): as_text(v) for n, v in shown.fields.items()}}
    return told


def _claim_row(claim: Claim) -> dict[str, Any]:
    told = {"what": claim.what, "sha256": claim.digest, "bytes": claim.size, "key": claim.key, "state": claim.state}
    return told | ({"problem": claim.problem} if claim.problem else {})


def _group_row(state: GroupState) -> dict[str, Any]:
    letters = [
        {
            "id": str(letter.id), "died_at": time_of(letter.id), "reason": letter.reason, "error": letter.error,
            "traceback": letter.traceback, "attempts": letter.attempts, "worker": letter.worker,
        }
        for letter in state.letters
    ]  # fmt: skip
    paused = state.paused and {"by": state.paused.by, "at": state.paused.at, "why": state.paused.why}
    pending = state.pending and pending_row(state.pending)
    return {"group": state.group, "state": state.state, "pending": pending, "dead": letters, "paused": paused}


def _in_full(shown: Shown, *, payload: bool) -> str:
    rows = [
        ("entry", str(shown.id)),
        ("stream", shown.stream),
        ("published", time_of(shown.id) or "-"),
        ("where", WHERE[shown.where] + ("; archived, too" if shown.archived and shown.where == "redis" else "")),
        ("key", shown.key or "-"),
        ("event id", shown.event_id or "-"),
        ("size", f"{shown.size:,} bytes encoded"),
    ]
    if payload:
        rows.append(("headers", json.dumps(dict(shown.headers), ensure_ascii=False) if shown.headers else "-"))
    rows += [("blob", _claim(claim)) for claim in shown.claims]
    if shown.problem is not None:
        rows.append(("problem", shown.problem))
    parts = ["\n".join(printable(f"{name:<10} {text}") for name, text in rows)]
    if payload and shown.event is not None:
        parts.append(json.dumps(shown.event, indent=2, ensure_ascii=False))
    elif payload:
        fields = (f"  {as_text(name)} = {as_text(value)}" for name, value in shown.fields.items())
        parts.append("\n".join(["fields as stored:", *map(printable, fields)]))
    parts += [_group(state) for state in shown.groups]
    if not shown.groups:
        parts.append("No group reads it where it lies.")
    return "\n\n".join(parts)


def _claim(claim: Claim) -> str:
    state = f"unknown: {claim.problem}" if claim.state == "unknown" else claim.state
    return f"{claim.what}: {claim.size:,} bytes, sha256 {claim.digest}, {state}" + (
        f" at {claim.key}" if claim.key else ""
    )


def _group(state: GroupState) -> str:
    lines = [f"group {state.group}: {_state(state)}"]
    if state.paused is not None:
        lines.append(f"  paused by {state.paused.by}" + (f": {state.paused.why}" if state.paused.why else ""))
    for letter in state.letters:
        died = f"  dead letter {letter.id} of {time_of(letter.id) or '-'}: {letter.reason} on attempt {letter.attempts}"
        lines += [died, f"  {' '.join(letter.error.split())}"]
        lines += [f"    {line}" for line in letter.traceback.rstrip().splitlines()]
    return "\n".join(map(printable, lines))


def _state(state: GroupState) -> str:
    one = state.pending
    if one is None:
        return state.state
    who = f"{one.state} by {one.worker}" if one.state == "held" else f"with {one.worker}, which is silent"
    text = f"pending, {who if one.worker else one.state}, for {since(one.since)}, attempts begun: {one.attempt}"
    if one.heartbeat is not None:
        text += f", its worker was heard of {since(one.heartbeat)} ago"
    text += f", {waits(one)}" if waits(one) != "-" else ""
    text += f", kept: {kept(one)}" if kept(one) != "-" else ""
    return text + (", and the entry is trimmed: it will be lost" if one.trimmed else "")

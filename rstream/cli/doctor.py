"""`rstream doctor`: what is wrong with the server and the streams, and what to do."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from rstream.cli.target import declared_app, stored_app, target_options

if TYPE_CHECKING:
    from rstream.doctor.finding import Finding


@click.command()
@click.argument("streams", nargs=-1, metavar="[STREAM]...")
@click.option("--app", "spec", metavar="MODULE:APP", help="Compare what this app declares with what is stored, too.")
@click.option("--strict", is_flag=True, help="Exit 1 also for warnings.")
@click.option("--json", "as_json", is_flag=True, help="A JSON list of objects, the worst first.")
@target_options
def doctor(streams: tuple[str, ...], spec: str | None, strict: bool, as_json: bool) -> int:
    """Look at the server and at all streams, or at some: what is wrong, why it matters, and what to do.

    Nothing is changed. What the server does not tell (managed ones forbid CONFIG, a user may not have the right) is
    said, and the rest is looked at. With a blob store set, it is asked whether it answers.

    \b
    Examples:
      rstream doctor
      rstream doctor orders --app shop.events:app
      rstream doctor --strict --json | jq '.[] | select(.level == "problem")'

    \b
    Exit codes: 0 nothing worse than a note (without --strict: than a warning) · 1 a problem · 2 wrong usage
    """
    from rstream.doctor.examine import examine
    from rstream.doctor.finding import exit_code

    with declared_app(spec) if spec else stored_app() as app:
        findings = [finding.of_app(spec) if spec else finding for finding in examine(app, streams, declared=bool(spec))]
    if as_json:
        click.echo(json.dumps([finding.to_json() for finding in findings], indent=2, ensure_ascii=False))
    else:
        _show(findings)
    return exit_code(findings, strict=strict)


def _show(findings: Sequence[Finding]) -> None:
    for finding in findings:
        if finding.level != "ok":
            click.echo(f"{finding.level.upper():<8} {finding.code}  {finding.where}: {finding.what}")
            if finding.why:
                click.echo(f"         {finding.why}")
            for line in finding.do:
                click.echo(f"         → {line}")
    well: dict[str, list[str]] = {}
    for finding in findings:
        if finding.level == "ok":
            well.setdefault(finding.where, []).append(finding.code)
    for subject, names in well.items():
        click.echo(f"OK       {subject}: {', '.join(names)}")
    counts = Counter(finding.level for finding in findings)
    told = [f"{counts[level]} {level}{'s' if counts[level] != 1 else ''}" for level in ("problem", "warning", "note")]
    click.echo(f"{', '.join(told)}; {counts['ok']} checks found nothing")

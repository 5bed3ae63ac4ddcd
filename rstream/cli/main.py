"""`rstream`: finds the command, imports it, and turns errors into one line and an exit code.

Exit codes: 0 done · 1 it went wrong, and why is on stderr · 2 wrong usage · 130 Ctrl-C.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

import click

from rstream.cli.target import target_options

COMMANDS = {
    "dev": ("rstream.cli.dev", "Run a Redis-compatible server here, for development."),
    "worker": ("rstream.cli.worker", "Run the consumers of an app until told to stop."),
    "publish": ("rstream.cli.publish", "Add events to a stream."),
    "read": ("rstream.cli.read", "Show the entries of a stream."),
    "replay": ("rstream.cli.replay", "Run a handler over a window of a stream."),
    "export": ("rstream.cli.export", "Write a window of a stream to a Parquet, CSV or JSON lines file."),
    "streams": ("rstream.cli.streams", "List the streams, reshard one, or say what of it is kept."),
    "trim": ("rstream.cli.trim", "Trim a stream as its retention says; what keeps it from being trimmed."),
    "schema": ("rstream.cli.schema", "Show the schema of a stream, or check a model against it."),
    "groups": ("rstream.cli.groups", "Show how far the groups of a stream are, or have one read again."),
    "workers": ("rstream.cli.workers", "Show who works, on what, and who has fallen silent."),
    "top": ("rstream.cli.top", "Watch all groups, live: who is behind, and what holds them."),
    "pending": ("rstream.cli.pending", "Who holds what of a group, since when, and what it waits for."),
    "show": ("rstream.cli.show", "Show one entry in full, and how every group stands to it."),
    "pause": ("rstream.cli.pause", "Have the workers of a group begin nothing new."),
    "resume": ("rstream.cli.pause", "Have the workers of a paused group go on."),
    "cancel": ("rstream.cli.cancel", "End deliveries of a group, whoever has them."),
    "history": ("rstream.cli.history", "Show what happened to a stream, by the minute, hour or day."),
    "metrics": ("rstream.cli.metrics", "Serve to Prometheus how all streams and groups are."),
    "doctor": ("rstream.cli.doctor", "Look at the server and the streams: what is wrong, and what to do."),
    "acl": ("rstream.cli.acl", "Print the least rights in Redis of a producer, worker, dashboard or admin."),
    "blobs": ("rstream.cli.blobs", "Delete what is in the blob store and nothing refers to."),
    "archive": ("rstream.cli.archive", "Keep the entries of streams in the blob store, and check them."),
    "dashboard": ("rstream.cli.dashboard", "All of it in a browser: what lags, who has it, what was lost; and act."),
    "dead": ("rstream.cli.dead", "Look at dead letters, redrive or discard them."),
}


class LazyGroup(click.Group):
    """Its help comes from COMMANDS; a command's module is imported when the command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        found = getattr(importlib.import_module(COMMANDS[cmd_name][0]), cmd_name)
        assert isinstance(found, click.Command)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:  # `| head` has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        return result


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="rstream", message="rstream %(version)s")
@target_options
def cli() -> None:
    """A log you can replay and a queue you can trust, on the Redis you already run.

    \b
    A server for development:     rstream dev
    Run an app's consumers:       rstream worker shop.events:app
    What is in a stream:          rstream read orders --from "1h ago"
    How far its consumers are:    rstream groups orders

    `rstream COMMAND --help` shows more examples.
    """


def main() -> NoReturn:
    """The console script."""
    from rstream.errors import RStreamError

    try:
        result = cli.main(prog_name="rstream", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except RStreamError as error:
        sys.exit(_fail([error]))
    except BaseExceptionGroup as group:
        errors = list(_leaves(group))
        if not all(isinstance(error, RStreamError) for error in errors):
            raise
        sys.exit(_fail(errors))
    sys.exit(result if isinstance(result, int) else 0)


def _fail(errors: list[BaseException]) -> int:
    for text in dict.fromkeys(_told(error) for error in errors):
        click.echo(f"Error: {text}", err=True)
    return 1


def _told(error: BaseException) -> str:
    """One line; of schemas that differ one more for each difference."""
    from rstream.errors import SchemaIncompatible

    lines = str(error).splitlines() if isinstance(error, SchemaIncompatible) else [str(error)]
    return "\n  ".join(" ".join(line.split()) for line in lines)


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error

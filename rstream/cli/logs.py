"""How long-running commands log: `--log-level` and `--log-format`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

C = TypeVar("C", bound=Callable[..., Any])

LEVELS = ["debug", "info", "warning", "error"]


def log_options(level: str = "info") -> Callable[[C], C]:
    """Add both options; the command gets `log_level` and `log_format`, for `rstream.logs.to_stderr`."""
    options = (
        click.option("--log-format", type=click.Choice(["text", "json"], case_sensitive=False), default="text",
                     envvar="RSTREAM_LOG_FORMAT", show_default=True, show_envvar=True,
                     help="json: one object a line, with the delivery that it is about."),
        click.option("--log-level", type=click.Choice(LEVELS, case_sensitive=False), default=level,
                     envvar="RSTREAM_LOG_LEVEL", show_default=True, show_envvar=True),
    )  # fmt: skip

    def add(command: C) -> C:
        for option in options:
            command = option(command)
        return command

    return add

"""`rstream acl`: the least rights in Redis of whoever works with a stream."""

from __future__ import annotations

import hashlib
import os
import shlex
import sys
from typing import Any

import click

from rstream.cli.target import target_options

ROLES = ["producer", "worker", "dashboard", "admin"]
FRESH = ("on", "resetkeys", "clearselectors", "nocommands")
"""What a user could do before is forgotten; its passwords are kept."""


@click.command()
@click.argument("role", type=click.Choice(ROLES))
@click.option("--stream", "-s", "streams", multiple=True, required=True, metavar="S",
              help="Of this stream; '*' for all, present and future. Repeatable.")  # fmt: skip
@click.option("--user", metavar="NAME", help="Of the Redis user.  [default: rstream-ROLE]")
@click.option("--emits", multiple=True, metavar="S", help="worker: its handlers emit to this stream. Repeatable.")
@click.option("--limited", is_flag=True,
              help="producer, or with --emits: the stream's retention limits entries or bytes. Who publishes then "
              "trims, and has to see what is there: it may read ids and entries, too.")  # fmt: skip
@click.option("--declares", is_flag=True,
              help="producer: it may be the first to declare the stream, or a new version of its model. Without it, "
              "a worker or an admin has to be.")  # fmt: skip
@click.option("--doctor", is_flag=True,
              help="dashboard, admin: all that `rstream doctor` looks at, also the server's settings, slow calls and "
              "names of keys. Redis cannot confine these: such a user can read requirepass, with which one may do "
              "everything, and what others sent.")  # fmt: skip
@click.option("--file", "as_file", is_flag=True, help="A line of an ACL file (users.acl) instead of the command.")
@click.option("--password-stdin", is_flag=True, help="Read its password from stdin, and put its SHA-256 into the line.")
@target_options
def acl(
    role: Any,
    streams: tuple[str, ...],
    user: str | None,
    emits: tuple[str, ...],
    limited: bool,
    declares: bool,
    doctor: bool,
    as_file: bool,
    password_stdin: bool,
) -> None:
    """Print the least rights that a ROLE needs, as the ACL SETUSER command that gives a Redis user these and no others.

    Nothing is asked or changed: the line is yours to read, keep in version control, and run with redis-cli. Passwords
    that the user has stay as they are; one that is made by it has none, and nobody can log in before you set one.

    \b
    producer   publishes; cannot read entries (but see --limited), settle, or change what is stored of the stream
    worker     all that `rstream worker` and `rstream archive run` do; cannot publish to its own stream
    dashboard  reads everything, changes nothing: also for `rstream groups`, `read`, `metrics`, and
               `doctor`, which says what it could not look at (see --doctor)
    admin      all commands of rstream: redrive, replay, reset, reshard, remove, retention, pause, cancel

    \b
    Examples:
      rstream acl producer --stream orders
      rstream acl worker --stream orders --stream payments --emits invoices --user billing
      rstream acl dashboard --stream '*' --file >> users.acl
      redis-cli ACL SETUSER rstream-producer '>its password'
    """
    from rstream.settings import Settings, check_name
    from rstream.store.roles import rules

    for name in (*streams, *emits):
        if name != "*":
            check_name("stream", name)
    _check_usage(role, emits, limited, declares, doctor)
    namespace = Settings.load().namespace
    user = check_name("user", user or f"rstream-{role}")
    secret = [f"#{_digest()}"] if password_stdin else []
    found = rules(role, namespace, streams, emits=emits, limited=limited, declares=declares, pries=doctor)
    if as_file:
        click.echo(" ".join(["user", user, "on", *secret, *found]))
    else:
        click.echo(" ".join(["ACL", "SETUSER", user, *map(shlex.quote, (*FRESH, *secret, *found))]))


def _check_usage(role: str, emits: tuple[str, ...], limited: bool, declares: bool, doctor: bool) -> None:
    if emits and role != "worker":
        raise click.UsageError(f"--emits is for a worker: a {role} emits nothing")
    if declares and role != "producer":
        raise click.UsageError(f"--declares is for a producer: a {role} {'may' if role != 'dashboard' else 'may not'}")
    if doctor and role not in ("dashboard", "admin"):
        raise click.UsageError("--doctor is for a dashboard or an admin")
    if limited and not (role == "producer" or emits):
        raise click.UsageError(f"--limited is for a producer, or with --emits: leave it out for a {role}")


def _digest() -> str:
    if os.isatty(sys.stdin.fileno()):
        raise click.UsageError("--password-stdin reads a password from a pipe or file, and stdin is a terminal")
    password = sys.stdin.buffer.readline().rstrip(b"\r\n")
    if not password:
        raise click.UsageError("--password-stdin: there is no password on stdin")
    return hashlib.sha256(password).hexdigest()

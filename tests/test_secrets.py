"""Passwords, keys and payloads are in no message, log line, repr or dead letter of ours."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from rstream import Event, RStream
from rstream.blobs import open_store
from rstream.blobs.url import label
from rstream.errors import BlobError, ConfigError, RStreamError, StoreRefused, full_text, masked, one_line
from rstream.settings import Settings
from rstream.store.link import Link, SyncLink
from rstream.store.url import read, words
from tests.commands import Commands
from tests.doctoring import looked
from tests.objects import moto
from tests.servers import KINDS, Server
from tests.waiting import eventually

SECRET = "s3cr3t"


@contextlib.contextmanager
def renamed(directory: Path, kind: str, command: str) -> Iterator[Server]:
    """A server that does not know a command."""
    with Server(KINDS[kind], directory, args=("--rename-command", command, ""), tcp=True) as server:
        yield server


class Note(Event):
    text: str


@pytest.fixture
def guarded(own_server: Server) -> str:
    """The URL of a server that wants a password."""
    with redis.Redis.from_url(own_server.url) as admin:
        admin.execute_command("ACL", "SETUSER", "ada", "on", f">{SECRET}", "~*", "&*", "+@all")
        admin.config_set("requirepass", SECRET)
    return own_server.url.replace("//", f"//ada:{SECRET}@")


# -- what servers say


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("user", ["ada:", ":"])
def test_a_server_that_knows_no_auth_repeats_the_password_and_we_do_not(kind: str, user: str, tmp_path: Path) -> None:
    with renamed(tmp_path / "server", kind, "AUTH") as server:
        url = server.url.replace("//", f"//{user}{SECRET}@")
        with RStream(url) as app, pytest.raises(StoreRefused, match="unknown command 'AUTH'") as caught:
            app.stream("notes", Note).sync.publish(Note(text="a"))
        assert SECRET not in str(caught.value) + full_text(caught.value)
        assert SECRET not in str(looked(url))


@pytest.mark.parametrize("kind", list(KINDS))
async def test_nor_payloads(kind: str, tmp_path: Path) -> None:
    with renamed(tmp_path / "server", kind, "XADD") as server, renamed(tmp_path / "other", kind, "EVALSHA") as other:
        for each in (server, other):
            async with RStream(each.url) as app:
                notes = app.stream("notes", Note, shards=1)
                with pytest.raises(RStreamError) as caught:
                    await notes.publish(Note(text=SECRET))
                assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("ERR unknown command 'AUTH', with args beginning with: 'a' 'b' ", "ERR unknown command 'AUTH'"),
        ("ERR unknown command `AUTH`, with args beginning with: `a\nb`", "ERR unknown command `AUTH`"),
        ("NOAUTH Authentication required.", "NOAUTH Authentication required."),
    ],
)
def test_arguments_are_cut(said: str, told: str) -> None:
    assert words(redis.ResponseError(said)) == words(said) == told


# -- reprs


@pytest.mark.parametrize(
    "url",
    [f"redis://ada:{SECRET}@a", f"redis+cluster://ada:{SECRET}@a,b",
     f"redis+sentinel://ada:{SECRET}@a/main?sentinel_username=eve&sentinel_password={SECRET}"],
)  # fmt: skip
def test_no_repr_holds_a_password(url: str) -> None:
    app = RStream(url, blobs="s3://bucket/prefix")
    notes = app.stream("notes", Note)
    links: list[Any] = [Link(app.endpoint), SyncLink(app.endpoint)]
    for thing in (
        app,
        app.settings,
        app.endpoint,
        app.endpoint._read,
        app.endpoint._sentinels,
        notes,
        *links,
        read(url),
    ):
        assert SECRET not in repr(thing) + str(thing)
        assert SECRET not in repr(getattr(thing, "__dict__", {}).get("_lines", ""))
    assert SECRET not in repr(Settings.load(environ={"RSTREAM_URL": url}))


# -- blob stores

PASTED = [
    *("s3://AKIA:{}@bucket/p", "s3://AKIA:{}@", "s3:/AKIA:{}@b", "AKIA:{}@bucket", "http://u:{}@h/p"),
    *("s3://bucket/p?endpoint=http://u:{}@h", "s3://bucket/p?secret={}", "s3://bucket/p?patience={}", "file://u:{}@h/x"),
    *("s3://[AKIA:{}@bucket", "s3://bucket/p?endpoint=https://h/?token={}", "s3://AKIA:{}@bucket?region=x", "file:///d?t={}"),
]  # fmt: skip


def tell(url: str) -> str:
    try:
        store = open_store(url)
    except ConfigError as error:
        return str(error)
    return store.label + repr(store)


@settings(deadline=None, max_examples=400)
@given(st.sampled_from(PASTED), st.text("/#?:@[]%=.-1a", max_size=5), st.text("/#?:@[]%=.-1a", max_size=5))
def test_no_blob_store_is_told_with_a_secret(url: str, before: str, after: str) -> None:
    pasted = url.format(before + SECRET + after)
    assert SECRET not in tell(pasted), pasted


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("s3://bucket/a/prefix?endpoint=http://h:9000&region=x", "s3://bucket/a/prefix?…"),
        ("file:///data/a@b", "file:///data/a@b"), (f"s3://k:a/{SECRET}@bucket/p", "s3://…@bucket/p"),
        (f"s3://k:a?{SECRET}@bucket/p", "s3://…@?…"), ("bucket", "bucket"),
    ],
)  # fmt: skip
def test_labels_of_blob_stores(url: str, told: str) -> None:
    assert label(url) == told


def test_s3_keys_are_not_in_errors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", f"{SECRET}-token")
    for url in (f"s3://there-is-none/p?endpoint={moto()}", "s3://bucket/p?endpoint=http://127.0.0.1:1&patience=0.2"):
        with pytest.raises(BlobError) as caught:
            open_store(url).put("key", b"payload " + SECRET.encode())
        assert SECRET not in str(caught.value) + full_text(caught.value)


# -- text of any origin


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"at redis://ada:{SECRET}@h:1/0 now", "at redis://…@h:1/0 now"),
        (f"x = f('redis://:{SECRET}@h')", "x = f('redis://…@h')"),
        (f"postgresql://u:a/{SECRET}@h/db", "postgresql://…@h/db"), (f"redis://ada:x@{SECRET}@h", "redis://…@h"),
        (f"redis://{SECRET}@h", "redis://…@h"), ("https://h/~ada@home", "https://h/~ada@home"),
        ("http://h:80/a", "http://h:80/a"), ("ada@example.com", "ada@example.com"),
    ],
)  # fmt: skip
def test_passwords_of_urls_are_cut_out_of_errors(text: str, told: str) -> None:
    assert masked(text) == told
    assert one_line(ValueError(text)) == f"ValueError: {told}"
    assert SECRET not in full_text(ValueError(text))


# -- the command line

DIALS = f"""
from rstream import Event, RetryPolicy, RStream

app = RStream()

class Note(Event):
    text: str

notes = app.stream("notes", Note, shards=1)

@notes.consumer("dial", lease=2.0, retry=RetryPolicy(max_attempts=1))
async def dial(note: Note) -> None:
    raise ConnectionError("cannot reach postgresql://ada:{SECRET}@db/" + connect("redis://:{SECRET}@cache"))

def connect(url: str) -> str:
    return url
"""


def test_commands_and_workers_say_nothing(rs: Commands, guarded: str, namespace: str) -> None:
    rs.env["RSTREAM_URL"] = guarded
    rs.write("dials.py", DIALS)
    told = [rs.ok("publish", "notes", "--app", "dials:app", "--json", '{"text": "a"}')]
    with rs.started("worker", "dials:app", "--log-level", "debug") as running:
        eventually(lambda: "failed attempt 1, the last" in running.err, 30)
        letter = eventually(lambda: ids(rs), 30)[0]
        told += [running.out, running.err]
    told += [
        rs.ok("dead", "show", "notes", "--group", "dial", "--id", letter),
        rs.ok("streams"),
        rs.ok("groups", "notes"),
    ]
    told += [rs.ok("doctor", "--json"), rs.ok("doctor", "--app", "dials:app")]
    for wrong in (
        guarded.replace(SECRET, f"{SECRET}x"),
        "redis://ada:" + SECRET + "@127.0.0.1:1",
        f"redis:/a:{SECRET}@h",
    ):
        for command in (["doctor", "--json"], ["publish", "notes", "--json", "{}"]):
            done = rs.run(*command, "--url", wrong)
            assert done.returncode == 1
            told += [done.stdout, done.stderr]
    assert [text for text in told if SECRET in text] == []


def ids(rs: Commands) -> list[str]:
    listed = rs.ok("dead", "list", "notes", "--group", "dial")
    return [word for word in listed.split() if "@" in word and "-" in word]


def test_a_url_that_has_no_effect_is_told_without_its_password(rs: Commands) -> None:
    rs.write("fixed.py", f'from rstream import RStream\napp = RStream("redis://ada:{SECRET}@h", blobs="s3://b/p")\n')
    for option in (("--url", f"redis://eve:{SECRET}@other"), ("--blobs", f"s3://x:{SECRET}@b")):
        done = rs.run("worker", "fixed:app", *option)
        assert done.returncode == 1 and "has no effect" in done.stderr and SECRET not in done.stderr


def test_a_line_of_code_is_told_without_its_password(rs: Commands) -> None:
    rs.write("broken.py", f'from rstream import RStream\napp = RStream("redis://ada:{SECRET}@h:port")\n')
    rs.write("raises.py", f'def f(url): raise ValueError(url)\nf("amqp://u:{SECRET}@h")\n')
    for module in ("broken", "raises"):
        done = rs.run("worker", f"{module}:app")
        assert done.returncode == 1 and module in done.stderr and SECRET not in done.stderr


def test_the_environment_is_where_secrets_belong() -> None:
    assert "RSTREAM_URL" not in os.environ, "the suite would run on somebody's Redis"

"""`rstream replay` as users run it: a process that is killed, interrupted, started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis
from click.testing import CliRunner

from rstream import EntryId, Event, RStream
from rstream.cli.replay import replay
from tests.servers import Server
from tests.waiting import eventually

# What the replay calls, in its own process. It tells in Redis what it began and what it handled, and after the
# first PASS entries it waits for the gate.
HANDLERS = """
import os, time
import redis

client = redis.Redis.from_url(os.environ["RSTREAM_URL"])
prefix, free = "of:" + os.environ["RSTREAM_NAMESPACE"], int(os.environ["PASS"])

def gated(event, delivery):
    if client.incr(prefix + ":begun") > free:
        while not client.exists(prefix + ":gate"):
            time.sleep(0.005)
    client.rpush(prefix + ":handled", str(delivery.id))

def picky(event):
    if event["n"] == 7:
        raise ValueError("not this one")

def batches(events, batch):
    if client.incrby(prefix + ":begun", len(events)) > free:
        while not client.exists(prefix + ":gate"):
            time.sleep(0.005)
    client.rpush(prefix + ":handled", *[str(delivery.id) for delivery in batch.deliveries])

async def nothing(event, delivery):
    assert delivery.group == "by-name"

constant = 3
"""

SLOTS = 8
HALF = 100


class Seen(Event):
    device: str
    n: int


class Shell:
    """A stream of 300 entries of which 200 are the window, and the command line."""

    def __init__(self, server: Server, namespace: str, directory: Path) -> None:
        self.app = RStream(server.url, namespace=namespace)
        self.raw = redis.Redis.from_url(server.url)
        self.prefix, self.directory = f"of:{namespace}", directory
        (directory / "handlers.py").write_text(HANDLERS)
        stream = self.app.stream("seen", Seen, key="device", shards=4)
        self.ids = sorted(stream.sync.publish_many([Seen(device=f"d{n % 40}", n=n) for n in range(300)]))
        self.window = self.ids[50:250]
        self.shards = [keys.stream for keys in stream.sync.layout().current]
        self.processes: list[subprocess.Popen[str]] = []
        self.env = os.environ | {"RSTREAM_URL": server.url, "RSTREAM_NAMESPACE": namespace, "PASS": str(HALF)}

    def command(self, handler: str = "handlers:gated", *more: str) -> list[str]:
        window = ["--from", str(self.window[0]), "--to", str(self.window[-1])]
        return ["replay", "seen", *window, "--handler", handler, "-c", str(SLOTS), *more]

    def start(self, *args: str, stderr: str = "stderr") -> subprocess.Popen[str]:
        with (self.directory / stderr).open("w") as errors:
            process = subprocess.Popen(
                [sys.executable, "-c", "from rstream.cli.main import main; main()", *(args or self.command())],
                cwd=self.directory,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self.processes.append(process)
        return process

    def run(self, *args: str) -> tuple[int, str, str]:
        """(exit code, stdout, stderr)."""
        process = self.start(*args, stderr="stderr-of-run")
        out = process.communicate(timeout=60)[0]
        return process.returncode, out, self.errors("stderr-of-run")

    def errors(self, name: str = "stderr") -> str:
        return (self.directory / name).read_text()

    def handled(self) -> list[EntryId]:
        return sorted(EntryId.parse(id.decode()) for id in self.raw.lrange(f"{self.prefix}:handled", 0, -1))

    def half_done(self) -> None:
        """Wait until half is handled, as many more as may run are running, and all of that is known to Redis."""
        eventually(lambda: int(self.raw.get(f"{self.prefix}:begun") or 0) == HALF + SLOTS, timeout=20)
        eventually(lambda: self.done_in_redis() == HALF)

    def done_in_redis(self) -> int:
        state = self.stored()
        return int(state.get(b"handled", 0)) + state.get(b"beyond", b"").count(b"=")

    def stored(self) -> dict[bytes, bytes]:
        keys = list(self.raw.scan_iter(f"{self.app.settings.namespace}:replay:*"))
        return self.raw.hgetall(keys[0]) if keys else {}

    def open_gate(self) -> None:
        self.raw.set(f"{self.prefix}:gate", 1)

    def make_live_group(self) -> None:
        for key in self.shards:
            self.raw.xgroup_create(key, "live", "0")
            self.raw.xreadgroup("live", "somebody", {key: ">"}, count=10)

    def groups(self) -> Sequence[Any]:
        return [(self.raw.xinfo_groups(key), self.raw.xpending(key, "live")) for key in self.shards]

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.communicate()
        self.raw.close()
        self.app.close()


@pytest.fixture
def shell(server: Server, namespace: str, tmp_path: Path) -> Iterator[Shell]:
    made = Shell(server, namespace, tmp_path)
    yield made
    made.close()


@pytest.fixture
def one(one_server: Server, namespace: str, tmp_path: Path) -> Iterator[Shell]:
    made = Shell(one_server, namespace, tmp_path)
    yield made
    made.close()


@pytest.mark.long
def test_killed_at_half_and_started_again_all_is_handled_and_no_group_is_touched(shell: Shell) -> None:
    shell.make_live_group()
    before = shell.groups()
    first = shell.start()
    shell.half_done()
    first.kill()
    first.wait()
    shell.open_gate()

    code, out, errors = shell.run(*shell.command())

    assert code == 0, errors
    assert "handled 200 of window" in out and "resumed: 100 were done before" in out
    assert "which never said that it ended" in errors
    assert shell.handled() == shell.window  # each once: what ran when it was killed had handled nothing yet
    assert shell.groups() == before
    assert shell.stored() == {}


def test_what_was_trimmed_before_it_was_killed_and_went_on_is_told(one: Shell) -> None:
    first = one.start()
    one.half_done()
    first.kill()
    first.wait()
    one.open_gate()
    for key in one.shards:
        one.raw.xtrim(key, maxlen=0, approximate=False)

    code, out, _ = one.run(*one.command())

    assert code == 1
    assert "trimmed: entries from" in out and "on were gone from the stream before they were read" in out


def test_a_batch_handler_is_killed_at_half_and_all_is_handled(one: Shell) -> None:
    """At a rate, which is another one afterwards."""
    command = one.command("handlers:batches", "-c", "1", "--batch", "10", "--rate", "2000/s")
    first = one.start(*command)
    eventually(lambda: int(one.raw.get(f"{one.prefix}:begun") or 0) > HALF, timeout=20)
    eventually(lambda: one.done_in_redis() == len(one.handled()))
    first.kill()
    first.wait()
    one.open_gate()
    command[command.index("2000/s")] = "3000/s"
    code, out, errors = one.run(*command)
    assert code == 0, errors
    assert "handled 200 of window" in out and "resumed: " in out
    assert one.handled() == one.window  # each once: the batch that ran had handled nothing yet
    assert one.stored() == {}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "say where the entries go, by one of: --handler MODULE:FUNC"),
        (["--handler", "handlers:picky", "--into-group", "g"], "say where the entries go, by one of"),
        (["--handler", "handlers:picky"], "Missing option '--to': --handler goes through a window that ends"),
        (["--into-group", "g"], "Missing option '--to'"),
        (
            ["--into-group", "g", "--to", "now", "--batch", "3"],
            "--batch does not go with --into-group: the group's own",
        ),
        (["--into-group", "g", "--to", "now", "--unordered"], "--ordered/--unordered does not go with --into-group"),
        (["--as-group", "g", "--to", "now"], "--to does not go with --as-group: a new group gets all that there is"),
        (["--as-group", "g", "--where", "n=1"], "--where does not go with --as-group"),
        (["--as-group", "g", "--rate", "1/s"], "--rate does not go with --as-group"),
    ],
)
def test_wrong_usage_says_what_goes_together(words: list[str], says: str) -> None:
    done = CliRunner().invoke(replay, ["seen", "--from", "earliest", *words], terminal_width=200)
    assert done.exit_code == 2
    assert says in " ".join(done.output.split())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--rate", "fast"], "rate 'fast' cannot be read: write 200/s"),
        (["--where", "colour=red"], "no field 'colour': they have device, n"),
    ],
)
def test_a_wish_that_cannot_be_read_is_one_clear_line(one: Shell, words: list[str], says: str) -> None:
    code, _, errors = one.run(*one.command("handlers:nothing", *words))
    assert code == 1
    assert says in errors and errors.startswith("Error: ") and len(errors.splitlines()) == 1


def test_a_dry_run_into_a_group_tells_what_it_would_get(one: Shell) -> None:
    one.make_live_group()
    pending = sum(one.raw.xpending(key, "live")["pending"] for key in one.shards)
    window = ["--from", "earliest", "--to", "latest", "--into-group", "live"]
    code, out, errors = one.run("replay", "seen", *window, "--dry-run")
    assert (code, errors) == (0, "")
    assert "will get     0 entries again" in out
    assert f"left alone   {pending} pending, {300 - pending} yet to be read by the group" in out
    assert "300 in 4 shards, all of them in Redis" in out and "nothing was given" in out
    code, out, _ = one.run("replay", "seen", *window, "--json")
    told = json.loads(out)
    assert (code, told["way"], told["given"], told["pending"], told["unread"]) == (
        0,
        "group",
        0,
        pending,
        300 - pending,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.long
def test_stopped_and_started_again_each_entry_is_handled_once(shell: Shell, number: signal.Signals) -> None:
    process = shell.start()
    shell.half_done()
    process.send_signal(number)
    eventually(lambda: "stopping" in shell.errors())
    shell.open_gate()
    out = process.communicate(timeout=20)[0]
    assert process.returncode == 128 + number
    assert "run the same command again to go on" in shell.errors()
    assert f"handled {HALF + SLOTS} of" in out
    assert len(shell.handled()) == HALF + SLOTS

    code, out, errors = shell.run(*shell.command())
    assert code == 0, errors
    assert "handled 200 of window" in out and "never said" not in errors
    assert shell.handled() == shell.window


def test_a_second_ctrl_c_ends_it_at_once_and_what_is_done_is_stored(one: Shell) -> None:
    process = one.start()
    one.half_done()
    process.send_signal(signal.SIGINT)
    eventually(lambda: "stopping" in one.errors())
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)  # though the gate is shut
    assert process.returncode == 130
    assert one.done_in_redis() == HALF and one.stored()[b"until"] == b"0"

    one.open_gate()
    assert one.run(*one.command())[0] == 0
    assert one.handled() == one.window


def test_two_at_once_the_second_is_refused(one: Shell) -> None:
    first = one.start()
    one.half_done()
    code, _, errors = one.run(*one.command())
    assert code == 1
    assert "is running already" in errors.splitlines()[-1]
    one.open_gate()
    first.communicate(timeout=20)
    assert first.returncode == 0
    assert one.handled() == one.window


def test_a_dry_run_tells_all_and_changes_nothing(shell: Shell) -> None:
    def everything() -> dict[bytes, Any]:
        return {key: shell.raw.dump(key) for key in shell.raw.scan_iter(f"*{shell.app.settings.namespace}*")}

    before = everything()
    code, out, errors = shell.run(*shell.command("handlers:gated", "--dry-run"))
    assert (code, errors) == (0, "")
    assert "200 in 4 shards" in out and str(shell.window[0]) in out and str(shell.window[-1]) in out
    code, out, errors = shell.run(*shell.command("handlers:gated", "--dry-run", "--json"))
    plan = json.loads(out)
    assert (plan["entries"], plan["left"], plan["resume_after"]) == (200, 200, None)
    assert (plan["start"], plan["end"]) == (str(shell.window[0]), str(shell.window[-1]))
    assert everything() == before


@pytest.mark.long
def test_the_summary_names_what_failed_and_what_is_invalid(shell: Shell) -> None:
    garbage = shell.raw.xadd(shell.shards[0], {"e": b"\xc1"}).decode()
    window = ["--from", "earliest", "--to", "latest", "--handler", "handlers:picky"]
    code, out, errors = shell.run("replay", "seen", *window, "--json")
    result = json.loads(out)
    assert code == 1
    assert (result["handled"], result["failed"], result["invalid"], result["finished"]) == (299, 1, 1, True)
    assert result["invalid_ids"] == [f"{garbage}@1.0"]
    assert "ValueError: not this one" in errors and result["failed_ids"][0] in errors
    code, out, _ = shell.run("replay", "seen", *window)
    assert code == 1
    assert f"failed: 1: {result['failed_ids'][0]}" in out and f"invalid: 1: {garbage}@1.0" in out


def test_a_name_and_an_async_handler(one: Shell) -> None:
    code, out, errors = one.run(*one.command("handlers:nothing", "--group", "by-name", "--key", "d3"))
    assert code == 0, errors
    own = list(one.app.streams["seen"].sync.read(one.window[0], one.window[-1], key="d3"))
    assert f"by-name: handled {len(own)} of window" in out


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seen": "sean"}, "no stream 'sean'"),
        ({"--from": "yesterdai"}, "'yesterdai' is neither an id nor a time"),
        ({"--from": "latest", "--to": "earliest"}, "ends before it begins"),
        ({"--handler": "handlers:missing"}, "handlers has no 'missing'"),
        ({"--handler": "nowhere:f"}, "there is no module 'nowhere'"),
        ({"--handler": "handlers:constant"}, "handlers:constant is a int"),
        ({"--group": "live"}, "'live' is a live consumer group"),
        ({"--group": "a b"}, "replay 'a b' cannot be used"),
    ],
)
def test_bad_input_is_one_clear_line(one: Shell, change: dict[str, str], says: str) -> None:
    one.make_live_group()
    args = {"--from": "earliest", "--to": "latest", "--handler": "handlers:gated"}
    stream = change.pop("seen", "seen")
    options = [word for pair in (args | change).items() for word in pair]
    code, _, errors = one.run("replay", stream, *options)
    assert code == 1
    assert says in errors and errors.startswith("Error: ") and len(errors.splitlines()) == 1
    assert one.handled() == [] and one.stored().get(b"until", b"0") == b"0"


def test_a_window_must_be_named(one: Shell) -> None:
    code, _, errors = one.run("replay", "seen", "--handler", "handlers:gated")
    assert code == 2 and "--from" in errors


def test_the_help_teaches(one: Shell) -> None:
    code, out, _ = one.run("replay", "--help")
    assert code == 0
    assert "rstream replay orders --from" in out and "Exit codes" in out

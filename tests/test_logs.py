"""Log lines: JSON that can be parsed, with the delivery that they are about; nothing secret is in them."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import logging.handlers
import queue
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from rstream import Event, RStream, logs
from rstream.errors import full_text, one_line
from rstream.logs import DeliveryFilter, JsonFormatter, Voice, key_hash
from tests.commands import Commands
from tests.waiting import eventually

SECRET, KEY = "s3cr3t-payload", "ada@example.com"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE}-00f067aa0ba902b7-01"

APP = """
import logging
from rstream import Event, RetryPolicy, RStream

app = RStream()
log = logging.getLogger("shop")

class Order(Event):
    customer: str
    what: str

orders = app.stream("orders", Order, key="customer", shards=2)
notes = app.stream("notes", Order, shards=1)
once = RetryPolicy(max_attempts=1)

@orders.consumer("loop", retry=once)
async def on_loop(order: Order) -> None:
    log.info("on the loop")
    if order.what.startswith("bad"):
        raise ValueError("not today")

@orders.consumer("thread", retry=once)
def in_thread(order: Order) -> None:
    log.info("in a thread", extra={"price": 12})

@orders.consumer("process", run_in="process", concurrency=1)
def in_process(order: Order) -> None:
    log.warning("in a process")

@notes.consumer("batch", batch=10, max_wait=0.05)
async def in_batch(batch: list[Order]) -> None:
    log.info("in a batch")
"""


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def told() -> Iterator[io.StringIO]:
    """What is logged here, as JSON lines."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield stream
    root.removeHandler(handler)
    root.setLevel(before)


@pytest.mark.parametrize(
    "header",
    [
        "00-" + "\n" * 32 + "-x-y",
        "00-" + "é" * 32 + "-" + "b" * 16 + "-01",
        "00-name is Ada Lovelace, has the fl-x-y",
        "",
        "-",
    ],
)
def test_what_is_no_trace_is_none(header: str) -> None:
    """A producer may write there what they like: it would be in the lines of the worker, line ends and all."""
    assert logs.trace_of({"traceparent": header}) == {}


def test_a_trace_is_told() -> None:
    for more in ("", "-of a later version"):
        assert logs.trace_of({"traceparent": TRACEPARENT + more}) == {"trace_id": TRACE}


# -- the worker as its users have it


def test_a_worker_logs_json_and_every_line_tells_its_delivery(rs: Commands) -> None:
    rs.write("shop2.py", APP)
    event = json.dumps({"customer": KEY, "what": f"bad {SECRET}"})
    header = ("--header", f"traceparent={TRACEPARENT}")
    (order,) = rs.ok("publish", "orders", "--app", "shop2:app", "--json", event, *header).split()
    (note,) = rs.ok("publish", "notes", "--app", "shop2:app", "--json", event).split()
    done = rs.run("worker", "shop2:app", "--burst", "--log-format", "json")
    assert done.returncode == 0
    lines = lines_of(done.stderr)
    said = {line["message"]: line for line in lines}
    for group, message in [("loop", "on the loop"), ("thread", "in a thread"), ("process", "in a process")]:
        line = said[message]
        assert line["logger"] == "shop" and line["time"].endswith("Z")
        about = {name: line[name] for name in ("stream", "group", "entry", "attempt", "key_hash", "trace_id")}
        assert about == {
            "stream": "orders", "group": group, "entry": order, "attempt": 1, "key_hash": key_hash(KEY),
            "trace_id": TRACE,
        }  # fmt: skip
    assert said["in a thread"]["price"] == 12
    assert said["in a process"]["process"] != said["in a thread"]["process"]
    assert said["in a process"]["worker"] == said["in a thread"]["worker"]
    batch = said["in a batch"]
    assert (batch["group"], batch["batch"], batch["entries"]) == ("batch", 1, [note]) and "entry" not in batch
    (failed,) = [line for line in lines if "failed attempt 1, the last" in line["message"]]
    assert failed["entry"] == order and failed["group"] == "loop" and failed["level"] == "ERROR"
    assert 0 <= failed["duration_ms"] < 60_000
    assert SECRET not in done.stderr and KEY not in done.stderr


def test_the_format_is_also_set_by_the_environment_and_by_every_process(rs: Commands) -> None:
    rs.write("shop2.py", APP)
    rs.ok("publish", "notes", "--app", "shop2:app", "--json", json.dumps({"customer": KEY, "what": "x"}))
    rs.env |= {"RSTREAM_LOG_FORMAT": "json", "RSTREAM_LOG_LEVEL": "warning"}
    done = rs.run("worker", "shop2:app", "--burst", "--processes", "2")
    assert done.returncode == 0 and {line["level"] for line in lines_of(done.stderr)} <= {"WARNING", "ERROR"}
    done = rs.run("worker", "shop2:app", "--burst", "--processes", "2", "--log-level", "info")
    lines = lines_of(done.stderr)
    assert len({line["process"] for line in lines if " ready: " in line["message"]}) == 2


@pytest.mark.parametrize("command", [("worker", "shop2:app"), ("archive", "run", "notes"), ("replay", "notes")])
def test_long_running_commands_know_the_option(rs: Commands, command: tuple[str, ...]) -> None:
    text = rs.ok(*command, "--help")
    assert "--log-format [text|json]" in text and "RSTREAM_LOG_FORMAT" in text


def test_a_replay_says_which_entry_its_handler_works_on(rs: Commands) -> None:
    rs.write("shop2.py", APP)
    event = json.dumps({"customer": KEY, "what": f"bad {SECRET}"})
    (order,) = rs.ok("publish", "orders", "--app", "shop2:app", "--json", event).split()
    window = ("--from", "earliest", "--to", "now", "--log-format", "json", "--log-level", "info")
    done = rs.run("replay", "orders", *window, "--handler", "shop2:on_loop", "--name", "again")
    lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    for message in ("on the loop", "replay again: entry"):
        (line,) = [each for each in lines if each["message"].startswith(message)]
        told = (line["stream"], line["group"], line["entry"], line["key_hash"])
        assert told == ("orders", "again", order, key_hash(KEY))
    assert KEY not in done.stderr and SECRET not in done.stderr


# -- apps that set logging up themselves


class Item(Event):
    n: int


async def test_an_app_with_a_queue_handler_gets_the_fields(one_app: RStream) -> None:
    waiting: queue.Queue[logging.LogRecord] = queue.Queue()
    handler = logging.handlers.QueueHandler(waiting)
    handler.addFilter(DeliveryFilter())
    app_log = logging.getLogger("app")
    app_log.addHandler(handler)
    app_log.setLevel(logging.INFO)
    items = one_app.stream("items", Item, shards=1)

    @items.consumer("g")
    def handle(item: Item) -> None:
        app_log.info("item %d", item.n)

    ids = await items.publish_many([Item(n=n) for n in range(3)])
    from rstream.worker.worker import Worker

    await Worker(one_app, burst=True).serve(signals=False)
    app_log.removeHandler(handler)
    records = [waiting.get_nowait() for _ in ids]
    text = logging.Formatter("%(stream)s/%(group)s %(entry)s %(attempt)s [%(key_hash)s] %(message)s")
    assert sorted(map(text.format, records)) == [f"items/g {id} 1 [] item {n}" for n, id in enumerate(ids)]
    assert [json.loads(JsonFormatter().format(record))["entry"] for record in records] == [
        str(ids[int(record.getMessage()[-1])]) for record in records
    ]
    outside = logging.LogRecord("app", logging.INFO, "", 0, "none", (), None)
    assert DeliveryFilter().filter(outside) and text.format(outside) == "/   [] none"


async def test_what_handlers_start_and_leave_behind(one_app: RStream, told: io.StringIO) -> None:
    items = one_app.stream("items", Item, shards=1)
    log = logging.getLogger("app")

    @items.consumer("g", concurrency=2)
    async def handle(item: Item) -> None:
        await asyncio.gather(*(asyncio.to_thread(log.info, "thread %d", item.n) for _ in range(3)))

        async def later() -> None:
            await asyncio.sleep(0)
            log.info("task %d", item.n)

        await asyncio.create_task(later())

    ids = await items.publish_many([Item(n=n) for n in range(20)])
    from rstream.worker.worker import Worker

    await Worker(one_app, burst=True).serve(signals=False)
    log.info("after")
    lines = [line for line in lines_of(told.getvalue()) if line["logger"] == "app"]
    assert "entry" not in lines.pop()
    assert len(lines) == 80
    assert all(line["entry"] == str(ids[int(line["message"].split()[1])]) for line in lines)


# -- the formatter


def record(message: str = "m", *args: object, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("app.part", logging.WARNING, "x.py", 1, message, args, None)
    made.__dict__.update(extra)
    return made


@given(st.text(), st.dictionaries(st.text(min_size=1), st.floats() | st.text() | st.binary() | st.none(), max_size=3))
def test_a_line_is_one_line_of_json_whatever_is_in_it(message: str, extra: dict[str, object]) -> None:
    logged = logging.LogRecord("app", logging.INFO, "", 0, "%s", (message,), None)
    logged.__dict__.update({f"x{name}": value for name, value in extra.items()})
    line = JsonFormatter().format(logged)
    line.encode()
    assert "\n" not in line and {"time", "level", "logger", "message", "process"} <= json.loads(line).keys()


def test_what_a_line_says_of_an_error() -> None:
    try:
        raise ValueError("at redis://ada:pw@h")
    except ValueError as error:
        made = logging.LogRecord("app", logging.ERROR, "", 0, "oh", (), (ValueError, error, error.__traceback__))
    line = json.loads(JsonFormatter().format(made))
    assert line["error"] == "ValueError" and line["traceback"].endswith("ValueError: at redis://…@h")
    assert "error" not in json.loads(JsonFormatter().format(record()))


def test_extras_are_told_and_do_not_hide_what_every_line_has() -> None:
    class Odd:
        def __str__(self) -> str:
            raise RuntimeError

    line = json.loads(JsonFormatter().format(record(user=7, time="x", level="y", odd=Odd(), at={"a": [1]})))
    assert (line["user"], line["odd"], line["at"]) == (7, "<Odd>", {"a": [1]})
    assert line["level"] == "WARNING" and line["time"] != "x"


def test_a_key_is_told_as_its_hash_and_with_a_secret_as_a_keyed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RSTREAM_LOG_SECRET", raising=False)
    assert key_hash(KEY) == key_hash(KEY.encode()) == "673b3797ca651be7" != key_hash("eve@example.com")
    monkeypatch.setenv("RSTREAM_LOG_SECRET", "x" * 200)
    assert key_hash(KEY) not in ("673b3797ca651be7", "") and len(key_hash(KEY)) == 16


def test_values_that_pydantic_did_not_like_are_not_told() -> None:
    class Model(BaseModel):
        n: int

    with pytest.raises(ValueError) as caught:
        Model(n=SECRET)  # type: ignore[arg-type]
    for told in (one_line(caught.value), full_text(caught.value)):
        assert "valid integer" in told and SECRET not in told


# -- many at once


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(logs, "time", clock)
    return clock


def test_of_very_many_lines_so_many_are_written_and_the_others_are_counted(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "rstream.test")
    log = logging.getLogger("rstream.test")
    voice = Voice(log, "s/g", {"lost": "entries were lost", "dead": "entries died"}, most=3)
    for n in range(1000):
        voice.say("lost", logging.ERROR, "lost %d", n)
    voice.say("dead", logging.ERROR, "dead")
    clock.now = 9
    voice.rest(all=False)
    assert caplog.messages == ["lost 0", "lost 1", "lost 2", "dead"]
    clock.now = 11
    voice.rest(all=False)
    voice.rest()
    assert caplog.messages[4:] == ["s/g: 997 more entries were lost in the last 11 s"]
    voice.say("lost", logging.ERROR, "lost again")
    assert caplog.messages[5:] == ["lost again"]
    log.setLevel(logging.DEBUG)
    for n in range(10):
        voice.say("dead", logging.ERROR, "each %d", n)
    voice.rest()
    assert Counter(message.split()[0] for message in caplog.messages[6:]) == {"each": 10}


def test_a_flood_of_failures_is_summed_up(rs: Commands) -> None:
    rs.write("shop2.py", APP)
    many = "\n".join(json.dumps({"customer": f"c{n}", "what": "bad"}) for n in range(300))
    rs.ok("publish", "orders", "--app", "shop2:app", "-", stdin=many)
    done = rs.run("worker", "shop2:app", "--burst", "--group", "loop")
    assert done.stderr.count("failed attempt 1, the last") == logs.MOST
    assert f"orders/loop: {300 - logs.MOST} more entries became dead letters in the last" in done.stderr


def test_all_of_them_are_written_where_somebody_wants_to_know(rs: Commands) -> None:
    rs.write("shop2.py", APP)
    many = "\n".join(json.dumps({"customer": f"c{n}", "what": "bad"}) for n in range(70))
    rs.ok("publish", "orders", "--app", "shop2:app", "-", stdin=many)
    with rs.started("worker", "shop2:app", "--burst", "--group", "loop", "--log-level", "debug") as running:
        eventually(lambda: running.process.poll() is not None, 30)
        assert running.err.count("failed attempt 1, the last") == 70

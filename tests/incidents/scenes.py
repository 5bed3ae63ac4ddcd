"""Each incident: what happens, up to where somebody looks; a `yield` is where the page has its commands."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.incidents.stage import Stage
from tests.objects import Objects
from tests.waiting import eventually

Incident = Callable[[Stage], Iterator[None]]

KEEPS = ', retention=Retention(age="7d")'
SLOW = """
if order.item == "slow":
    print(f"begin {order.item}, attempt {delivery.attempt}")
    while not pathlib.Path("go").exists():
        time.sleep(0.02)
print(f"end {order.item}, attempt {delivery.attempt}")
"""
AUDIT = """
@orders.consumer("audit", lease=2.0)
def audit(order: Order) -> None: ...
"""


def worker_frozen(stage: Stage) -> Iterator[None]:
    """A worker stops in mid-handler; another takes over; the first wakes up."""
    stage.serve()
    stage.shop(SLOW, consumer=", concurrency=1", stream=KEEPS)
    stage.publish(("ada", "slow"), ("ada", "lamp"), ago=120)
    first = stage.work()
    stage.wait(first, "begin slow")
    first.freeze()
    eventually(lambda: not stage.raw.keys("*:alive:billing:*"))
    yield
    second = stage.work("rstream worker shop:app --concurrency 2")
    stage.wait(second, "begin slow, attempt 2")
    yield
    (stage.directory / "go").touch()
    stage.wait(second, "end lamp")
    first.thaw()
    stage.wait(first, "LeaseLost")
    yield


def workers_crash(stage: Stage) -> Iterator[None]:
    """An entry kills each process that begins it."""
    stage.serve()
    body = 'print(f"begin {order.item}")\nif order.item == "bomb":\n    os._exit(139)'
    stage.shop(body, consumer=", retry=RetryPolicy(max_attempts=2), concurrency=4", stream=KEEPS)
    stage.declare()
    worker = stage.work("rstream worker shop:app --processes 2")
    stage.wait(worker, "owns")
    stage.publish(("ada", "lamp"), ("ada", "bomb"), ("bob", "desk"), ("eve", "bowl"))
    stage.wait(worker, "set aside as crashed")
    eventually(lambda: worker.log.count("begin") >= 5)
    yield


def dead_letters(stage: Stage) -> Iterator[None]:
    """Some events cannot be handled; then the handler is repaired."""
    stage.serve()
    body = 'prices = {"lamp": 12}\nprint(order.item, prices[order.item])'
    policy = ", retry=RetryPolicy(max_attempts=2, initial_delay=0.1)"
    stage.shop(body, consumer=policy, stream=KEEPS)
    stage.publish(("ada", "lamp"), ("bob", "desk"), ("eve", "desk"))
    stage.wait(stage.work("rstream worker shop:app --burst"), "failed attempt 2, the last")
    eventually(lambda: stage.workers[0].process.poll() is not None)
    yield
    stage.shop(body.replace("12}", '12, "desk": 80}'), consumer=policy, stream=KEEPS)
    yield


def trim_pinned(stage: Stage) -> Iterator[None]:
    """A group that nobody runs any more keeps everything; the stream is full, and producers are refused."""
    stage.serve()
    stage.shop("pass", stream=", retention=Retention(entries=1000)", more=AUDIT)
    stage.declare()
    stage.run("rstream worker shop:app --burst")
    worker = stage.work("rstream worker shop:app --group billing")
    stage.wait(worker, "owns")
    lines = "".join(f'{{"customer": "c{n}", "item": "lamp"}}\n' for n in range(50))
    (stage.directory / "orders.jsonl").write_text(lines)
    (stage.directory / "many.jsonl").write_text(lines * 18)
    stage.run("rstream publish orders --app shop:app --file many.jsonl")
    eventually(lambda: "Error" in stage.run("rstream publish orders --app shop:app --file orders.jsonl"), 60)
    yield
    yield


def eviction(stage: Stage) -> Iterator[None]:
    """The policy of a cache, on a server of streams."""
    stage.serve("--maxmemory-policy", "allkeys-lru")
    stage.shop("print(order.item)", stream=KEEPS)
    stage.publish(("ada", "lamp"))
    stage.wait(stage.work(), "lamp")
    yield
    stage.raw.config_set("maxmemory-policy", "noeviction")
    yield


def redis_reset(stage: Stage) -> Iterator[None]:
    """Redis is started again without what it had, under a worker that lives on."""
    stage.serve("--appendonly", "no")
    stage.shop('print(f"handled {order.item}")', stream=KEEPS)
    stage.publish(("ada", "lamp"), ("bob", "desk"))
    worker = stage.work()
    eventually(lambda: worker.log.count("handled") == 2)
    eventually(lambda: "billing" in stage.run("rstream history orders"))  # somebody remembers that there was one
    stage.server.kill()
    stage.server.start()
    eventually(lambda: stage.raw.exists("rstream:stream:orders"))
    stage.publish(("eve", "bowl"))
    stage.wait(worker, "handled bowl")
    eventually(lambda: "handled bowl" in worker.log and "billing" in stage.run("rstream history orders"))
    yield


def redis_away(stage: Stage) -> Iterator[None]:
    """Redis is gone, and comes back."""
    stage.serve()
    stage.shop('print(f"handled {order.item}")', stream=KEEPS)
    stage.publish(("ada", "lamp"))
    worker = stage.work()
    stage.wait(worker, "handled lamp")
    stage.server.stop()
    stage.wait(worker, "does not answer")
    yield
    stage.server.start()
    stage.publish(("bob", "desk"))
    stage.wait(worker, "handled desk")
    yield


def clock_jump(stage: Stage) -> Iterator[None]:
    """Redis's clock was a day ahead for a moment: the entry that it took then is made by hand."""
    stage.serve()
    stage.shop('print(f"handled {order.item}")', stream=KEEPS.replace("2", "1"))
    stage.publish(("ada", "lamp"))
    stage.publish(("ada", "of tomorrow"), ago=-86_400)
    stage.publish(("ada", "desk"))
    worker = stage.work()
    stage.wait(worker, "handled desk")
    yield


def hot_key(stage: Stage) -> Iterator[None]:
    """One customer has nearly all orders."""
    stage.serve()
    body = 'time.sleep(0.02)\nif order.customer != "whale":\n    print(f"handled {order.item}")'
    stage.shop(body, consumer=", concurrency=16", stream=KEEPS, shards=8)
    stage.publish(("whale", "krill"), ago=4_000)
    stage.publish(*((f"c{n}", "lamp") for n in range(40)), *(("whale", "krill") for _ in range(3_000)))
    worker = stage.work()
    eventually(lambda: worker.log.count("handled lamp") == 40, 60)
    yield


def archiver_behind(stage: Stage) -> Iterator[None]:
    """Nobody archives a stream that has an archive."""
    stage.serve()
    stage.env["RSTREAM_BLOBS"] = f"file://{stage.directory}/blobs"
    stage.shop("pass", stream=KEEPS + ", archive=True")
    stage.publish(("ada", "lamp"), ("ada", "desk"), ago=1_200)
    yield
    yield


def blob_store_down(stage: Stage) -> Iterator[None]:
    """S3 answers 503."""
    objects = Objects()
    stage.callback(objects.stop)
    stage.serve()
    stage.env["RSTREAM_BLOBS"] = objects.url
    stage.names |= {objects.endpoint: "https://s3.example.com", objects.bucket: "shop"}
    stage.names[objects.endpoint.removeprefix("http://")] = "s3.example.com"
    stage.shop('print(f"handled {len(order.item)}")', stream=KEEPS)
    stage.publish(("ada", "x" * 50_000))
    for method in ("GET", "PUT", "HEAD", "POST"):
        objects.fail(method, "503")
    stage.publish(("bob", "desk"))
    worker = stage.work()
    stage.wait(worker, "waits")
    stage.wait(worker, "handled 4")
    (stage.directory / "large.json").write_text(f'{{"customer": "eve", "item": "{"x" * 50_000}"}}\n')
    yield
    objects.heal()
    stage.wait(worker, "handled 50000")
    yield


def schema_mismatch(stage: Stage) -> Iterator[None]:
    """A release has a field more, which what is stored has not."""
    stage.serve()
    stage.shop("print(order.item)", stream=KEEPS)
    stage.publish(("ada", "lamp"))
    shop = (stage.directory / "shop.py").read_text()
    changed = shop.replace("    item: str\n", "    item: str\n    country: str\n")
    (stage.directory / "shop.py").write_text(changed)
    yield
    hook = """
@orders.upgrade(1)
def with_country(fields: dict) -> dict:
    return {**fields, "country": "de"}
"""
    (stage.directory / "shop.py").write_text(changed + hook)
    yield


def entries_lost(stage: Stage) -> Iterator[None]:
    """A stream that may drop what is unprocessed does so."""
    stage.serve()
    stage.shop("pass", stream=', retention=Retention(entries=500, unprocessed="drop")')
    stage.declare()
    stage.run("rstream worker shop:app --burst")
    stage.publish(*((f"c{n}", "lamp") for n in range(3_000)))
    stage.run("rstream trim orders")
    stage.run("rstream worker shop:app --burst")
    yield


def no_worker(stage: Stage) -> Iterator[None]:
    """All workers are gone."""
    stage.serve()
    stage.shop("print(order.item)", stream=KEEPS)
    stage.publish(("ada", "lamp"), ("bob", "desk"), ago=300)
    first = stage.work()
    stage.wait(first, "owns")
    first.kill()
    eventually(lambda: not stage.raw.keys("*:alive:billing:*"))
    yield


def delivery_old(stage: Stage) -> Iterator[None]:
    """A handler hangs; somebody ends it."""
    stage.serve()
    stage.shop(SLOW, consumer=", concurrency=4", stream=KEEPS)
    stage.publish(("ada", "slow"), ("ada", "lamp"), ("bob", "desk"), ago=3_000)
    worker = stage.work()
    stage.wait(worker, "end desk")
    yield
    yield


def group_paused(stage: Stage) -> Iterator[None]:
    """Paused, and gone on."""
    stage.serve()
    stage.shop('print(f"handled {order.item}")', stream=KEEPS)
    stage.declare()
    worker = stage.work()
    stage.wait(worker, "owns")
    stage.run('rstream pause billing --why "the bank is down, ticket 4711"')
    stage.publish(("ada", "lamp"), ("bob", "desk"))
    stage.wait(worker, "paused")
    yield
    yield


SHOWS: dict[str, dict[str, tuple[str, ...]]] = {
    "worker-frozen": {
        "rstream doctor": ("no-worker", "1 are with silent ones"),
        "rstream pending": ("silent", "held"),
        "rstream workers": ("silent: has not beaten for a lease",),
        "rstream worker shop:app --concurrency 2": (
            "took over 1 deliveries of silent workers",
            "begin slow, attempt 2",
        ),
        "rstream worker shop:app": ("LeaseLost: ack of entry",),
        "curl": ('rstream_fenced_settles_total{group="billing",stream="orders"} 1.0',),
    },
    "workers-crash": {
        "rstream worker": (
            "ended with exit code 139",
            "set aside as crashed: every worker that ran it died, 2 of them",
        ),
        "rstream dead list": ("crashed",),
        "rstream doctor": ("dead-letters", "it gave up 1 entries"),
    },
    "dead-letters": {
        "rstream doctor": ("dead-letters", "it gave up 2 entries"),
        "rstream dead list": ("failed", "KeyError: 'desk'"),
        "rstream dead show": ("Traceback (most recent call last)", "print(order.item, prices[order.item])"),
        "rstream dead redrive": ("would be redriven: 2", "redriven: 2 dead letters of group billing"),
        "rstream worker shop:app --burst --group billing": ("desk 80", "handled 2, failed 0"),
    },
    "trim-pinned": {
        "rstream publish": ("is full, nothing was added", "Group 'audit' keeps it from being trimmed", "published 50"),
        "rstream doctor": ("retention-pinned", "group 'audit' keeps 2 of 2 shards", "StreamFull"),
        "rstream trim": ("audit",),
        "rstream groups remove": ("Would remove group audit", "Removed group audit"),
    },
    "eviction": {
        "rstream doctor": ("eviction", "maxmemory-policy is allkeys-lru", "0 problems"),
        "rstream worker": ("it may delete whole streams",),
    },
    "redis-reset": {
        "rstream worker": ("is gone from Redis", "handled bowl"),
        "rstream doctor": ("no-aof", "a restart loses everything"),
        "rstream history": ("RESETS",),
    },
    "redis-away": {
        "rstream doctor": ("server-unreachable", "does not answer"),
        "rstream publish": ("does not answer",),
        "rstream worker": ("does not answer", "handled desk"),
    },
    "clock-jump": {
        "rstream doctor": ("ids-ahead", "ahead of Redis's clock"),
        "rstream read": ("of tomorrow", "desk"),
    },
    "hot-key": {
        "rstream doctor": ("hot-shard", "times the mean of 8 shards"),
        "rstream pending": ("whale",),
        "rstream read": ('3001 "key": "whale"',),
    },
    "archiver-behind": {
        "rstream doctor": ("archiver-behind", "nobody archives it"),
        "rstream archive run": ("archived 2 entries",),
    },
    "blob-store-down": {
        "rstream doctor": ("blob-store", "503"),
        "rstream worker": ("for its payload: rstream.errors.BlobUnavailable", "handled 4", "handled 50000"),
        "rstream publish": ("could not put blob",),
        "rstream pending": ("retry",),
    },
    "schema-mismatch": {
        "rstream worker shop:app": ("Order cannot read version 1: country: required, and not written", "lamp"),
        "rstream doctor": ("schema-mismatch", "SchemaIncompatible"),
        "rstream schema check": ("does not go with what is stored", "goes with all that is stored"),
    },
    "entries-lost": {
        "rstream doctor": ("dropped", "it lost 2,500 entries before it had processed them"),
        "rstream trim": ("DROPPED UNPROCESSED",),
        "rstream history": ("2,500",),
    },
    "no-worker": {
        "rstream doctor": ("no-worker", "nothing is handled"),
        "rstream groups": ("0 of 1 alive",),
        "rstream workers": ("silent",),
    },
    "delivery-old": {
        "rstream pending": ("held",),
        "rstream show": ("pending, held by",),
        "rstream cancel": ("cancelled",),
    },
    "group-paused": {
        "rstream groups": ("is paused since", "the bank is down, ticket 4711"),
        "rstream doctor": ("group-paused",),
        "rstream resume": ("Group billing of stream orders goes on",),
        "rstream worker": ("Nothing new is begun until it is resumed", "handled desk"),
    },
}
"""What these commands say in each: in the page, and whenever it is staged."""

INCIDENTS: dict[str, Incident] = {
    "worker-frozen": worker_frozen,
    "workers-crash": workers_crash,
    "dead-letters": dead_letters,
    "trim-pinned": trim_pinned,
    "eviction": eviction,
    "redis-reset": redis_reset,
    "redis-away": redis_away,
    "clock-jump": clock_jump,
    "hot-key": hot_key,
    "archiver-behind": archiver_behind,
    "blob-store-down": blob_store_down,
    "schema-mismatch": schema_mismatch,
    "entries-lost": entries_lost,
    "no-worker": no_worker,
    "delivery-old": delivery_old,
    "group-paused": group_paused,
}

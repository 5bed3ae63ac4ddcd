"""`rstream export`: what is in the files, and what is said about what is not."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet
import pytest
import redis
from pydantic import create_model

from rstream import Blob, Event, RStream
from rstream.export import parquet
from rstream.export.columns import JSON, Kind, columns, merged
from rstream.export.target import target
from rstream.schema import describe
from tests.commands import Commands
from tests.handlers import Media


class Colour(Enum):
    RED, BLUE = "red", "blue"


class Part(Event):
    name: str
    weight: float | None = None


class Tree(Event):
    children: list[Tree] = []  # noqa: RUF012


class Reading(Event):
    device: str
    n: int
    f: float
    ok: bool
    raw: bytes = b""
    at: datetime | None = None
    day: date | None = None
    price: Decimal = Decimal("1.10")
    id: UUID = UUID(int=5)
    colour: Colour = Colour.RED
    part: Part | None = None
    parts: list[Part] = []  # noqa: RUF012
    tree: Tree | None = None
    extra: dict[str, int] = {}  # noqa: RUF012
    mixed: int | str = 0


AT = datetime(2026, 11, 20, 9, 30, 0, 123, tzinfo=UTC)
FULL = Reading(
    device="a", n=2**60, f=2, ok=True, raw=b"\xff\x00", at=AT, day=date(2026, 11, 20), colour=Colour.BLUE,
    part=Part(name="é", weight=1), parts=[Part(name="p")], tree=Tree(children=[Tree()]), extra={"x": 1}, mixed="m",
)  # fmt: skip
BARE = Reading(device="b", n=-1, f=0.5, ok=False)


@pytest.fixture
def readings(rs: Commands) -> Any:
    with RStream(rs.env["RSTREAM_URL"], namespace=rs.env["RSTREAM_NAMESPACE"]) as app:
        stream = app.stream("readings", Reading, key="device", shards=2)
        stream.sync.publish_many([FULL])
        stream.sync.publish_many([BARE])
        yield stream


def spoil(rs: Commands, readings: Any, *payloads: bytes) -> None:
    with redis.Redis.from_url(rs.env["RSTREAM_URL"]) as raw:
        for payload in payloads:
            raw.xadd(readings.sync.layout().current[0].stream, {"e": payload, "k": "a", "i": bytes(16)})


def test_json_lines(rs: Commands, readings: Any) -> None:
    first, second = map(json.loads, rs.ok("export", "readings").splitlines())
    ids = [entry.id for entry in readings.sync.read()]
    assert [*first][:7] == ["id", "time", "key", "device", "n", "f", "ok"]
    assert first["id"] == str(ids[0]) and first["event.id"] == str(UUID(int=5)) and first["key"] == "a"
    assert first["time"].startswith("20") and first["time"].endswith("Z")
    assert (first["n"], first["raw"], first["at"]) == (2**60, "_wA=", "2026-11-20T09:30:00.000123Z")
    assert (first["part"], first["extra"], first["mixed"]) == ({"name": "é", "weight": 1.0}, {"x": 1}, "m")
    assert second["part"] is None and second["parts"] == [] and second["price"] == "1.10"


def test_csv(rs: Commands, readings: Any) -> None:
    rows = list(csv.DictReader(io.StringIO(rs.ok("export", "readings", "--format", "csv"))))
    assert (rows[0]["n"], rows[0]["ok"], rows[0]["raw"], rows[0]["key"]) == (str(2**60), "true", "_wA=", "a")
    assert json.loads(rows[0]["parts"]) == [{"name": "p", "weight": None}]
    assert (rows[1]["at"], rows[1]["extra"], rows[1]["colour"]) == ("", "{}", "red")


def test_parquet_is_typed(rs: Commands, readings: Any) -> None:
    rs.ok("export", "readings", "-o", "out.parquet")
    table = pa.parquet.read_table(rs.directory / "out.parquet")
    part = pa.struct([("name", pa.string()), ("weight", pa.float64())])
    kinds = {field.name: field.type for field in table.schema}
    assert kinds == {
        "id": pa.string(), "time": pa.timestamp("ms", "UTC"), "key": pa.string(),
        "device": pa.string(), "n": pa.int64(), "f": pa.float64(), "ok": pa.bool_(), "raw": pa.binary(),
        "at": pa.timestamp("us", "UTC"),
        "day": pa.date32(), "price": pa.string(), "event.id": pa.string(), "colour": pa.string(), "part": part,
        "parts": pa.list_(pa.field("element", part)),
        "tree": pa.struct([("children", pa.list_(pa.field("element", pa.string())))]),
        "extra": pa.string(), "mixed": pa.string(),
    }  # fmt: skip
    first, second = table.to_pylist()
    assert (first["n"], first["f"], first["raw"], first["at"]) == (2**60, 2.0, b"\xff\x00", AT)
    assert (first["day"], first["part"], first["colour"]) == (date(2026, 11, 20), {"name": "é", "weight": 1.0}, "blue")
    assert (first["mixed"], first["extra"]) == ('"m"', '{"x":1}')
    assert abs((first["time"] - datetime.now(UTC)).total_seconds()) < 3600
    assert (second["at"], second["part"], second["mixed"]) == (None, None, "0")


def test_parquet_in_groups_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "GROUP_ROWS", 3)
    monkeypatch.setattr(parquet, "GROUP_BYTES", 100)
    with (tmp_path / "f").open("wb") as file:
        writer = parquet.Parquet(file, columns([describe(Part, None)]))
        for n, size in enumerate([1, 1, 1, 99, 1, 5]):
            writer.add((str(n), None, None), {"name": str(n)}, size)
        writer.close()
    found = pa.parquet.ParquetFile(tmp_path / "f")
    assert [found.metadata.row_group(n).num_rows for n in range(found.num_row_groups)] == [3, 2, 1]
    assert found.read().column("name").to_pylist() == [*"012345"]


def test_filters(rs: Commands, readings: Any) -> None:
    def devices(*arguments: str) -> list[str]:
        return [json.loads(line)["device"] for line in rs.ok("export", "readings", *arguments).splitlines()]

    assert devices("--where", "part.name=é", "--where", "ok=true") == ["a"]
    assert devices("--key", "b") == devices("--where", "n=-1") == ["b"]
    last = str([entry.id for entry in readings.sync.read()][-1])
    assert devices("--from", last) == ["b"] and devices("--to", last) == ["a", "b"]
    assert devices("--where", "n=7") == []
    for options, told in [(["--where", "nn=1"], "no field 'nn'"), (["--from", "now", "--to", "1h ago"], "swap them")]:
        refused = rs.run("export", "readings", *options)
        assert refused.returncode == 1 and told in refused.stderr


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_what_does_not_decode_is_counted_and_left_out(rs: Commands, readings: Any, form: str) -> None:
    import msgpack

    bad = [b"\xc1"] * 6
    if form != "jsonl":  # which has no types to keep
        bad.append(msgpack.packb([1, {**{"device": "a", "f": 1.0, "ok": True}, "n": "many"}]))
    spoil(rs, readings, *bad)
    done = rs.run("export", "readings", "--format", form, "-o", "out")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("undecodable: the payload is not msgpack") == 5
    assert "exported 2 entries of readings to out" in done.stderr
    assert f"{len(bad)} could not be decoded, and are left out" in done.stderr
    size = {"jsonl": 2, "csv": 3}.get(form)
    if size:
        assert len((rs.directory / "out").read_text().splitlines()) == size
    else:
        assert pa.parquet.read_table(rs.directory / "out").num_rows == 2


def test_a_value_that_the_schema_does_not_have_is_named(rs: Commands, readings: Any) -> None:
    import msgpack

    spoil(rs, readings, msgpack.packb([1, {"device": "a", "n": "many"}]))
    done = rs.run("export", "readings", "-o", "out.csv")
    assert done.returncode == 1 and "invalid: n: a str where the schema has int" in done.stderr


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_what_is_in_the_blob_store_is_referred_to(rs: Commands, tmp_path: Path, form: str) -> None:
    rs.env["RSTREAM_BLOBS"] = url = f"file://{tmp_path}/blobs"
    large = Blob(b"y" * 100_000)
    with RStream(rs.env["RSTREAM_URL"], namespace=rs.env["RSTREAM_NAMESPACE"], blobs=url) as app:
        media = app.stream("media", Media, key="who", shards=1)
        media.sync.publish_many([Media(who="a", audio=Blob(b"x")), Media(who="b", audio=large)])
    rs.ok("export", "media", "-o", f"out.{form}")
    file = rs.directory / f"out.{form}"
    if form == "parquet":
        found = pa.parquet.read_table(file).to_pylist()
        assert [(row["who"], row["audio"]) for row in found] == [("a", b"x"), ("b", None)]
        return
    rows = csv.DictReader(file.open()) if form == "csv" else map(json.loads, file.open())
    one, other = ((row["who"], row["audio"]) for row in rows)
    assert one == ("a", "eA==")
    told = json.loads(other[1]) if form == "csv" else other[1]
    assert (told["size"], told["digest"]) == (100_000, large.digest)


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_text("before")
    out.chmod(0o640)
    with pytest.raises(KeyboardInterrupt), target(out) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and out.read_text() == "before"
    link = tmp_path / "link"
    link.symlink_to(out)
    with target(link) as file:
        file.write(b"whole")
        assert out.read_text() == "before"
    assert out.read_text() == "whole" and link.is_symlink() and out.stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "out"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
def test_a_full_disk_is_one_line(rs: Commands, readings: Any) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "rstream", "export", "readings"],
            cwd=rs.directory, env=rs.env, stdout=full, stderr=subprocess.PIPE, timeout=60,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.decode() == "Error: Could not open file 'standard output': No space left on device\n"


def test_wrong_usage(rs: Commands, readings: Any) -> None:
    for options in (["--format", "parquet"], ["-o", "nowhere/out.csv"], ["--where"]):
        assert rs.run("export", "readings", *options).returncode == 2


def test_parquet_without_pyarrow(monkeypatch: pytest.MonkeyPatch) -> None:
    from rstream.errors import ConfigError

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"pip install 'rstream\[export\]', or export as jsonl or csv"):
        parquet.pyarrow()


APP = """
from rstream import Blob, Event, RStream
app = RStream()
class Order(Event):
    customer: str
    FIELD
orders = app.stream("orders", Order, key="customer", shards=1)
HOOK
"""
HOOK = '@orders.upgrade(1)\ndef up(old): return {"customer": old["customer"], "cents": int(old["total"] * 100)}'


def test_versions(rs: Commands) -> None:
    """Without the app the columns of all versions, with it those of the model, through its hooks."""
    rs.write("old.py", APP.replace("FIELD", "total: float").replace("HOOK", ""))
    rs.write("new.py", APP.replace("FIELD", "cents: int").replace("HOOK", HOOK))
    rs.ok("publish", "orders", "--app", "old:app", "--json", '{"customer": "c", "total": 1.5}')
    rs.ok("publish", "orders", "--app", "new:app", "--json", '{"customer": "c", "cents": 7}')
    rs.ok("export", "orders", "-o", "all.parquet")
    rows = pa.parquet.read_table(rs.directory / "all.parquet", columns=["total", "cents"]).to_pylist()
    assert rows == [{"total": 1.5, "cents": None}, {"total": None, "cents": 7}]
    rs.ok("export", "orders", "--app", "new:app", "-o", "new.csv")
    assert [line.split(",")[3:] for line in (rs.directory / "new.csv").read_text().splitlines()] == [
        ["customer", "cents"], ["c", "150"], ["c", "7"],
    ]  # fmt: skip
    assert rs.ok("export", "orders", "--app", "new:app", "--where", "cents=150").count("\n") == 1


@pytest.mark.timeout(20)
def test_many_kinds_that_contain_each_other() -> None:
    """As the nodes of a syntax tree."""
    names = [f"Node{n}" for n in range(40)]
    kinds: dict[str, Any] = {}
    for name in names:
        kinds[name] = create_model(name, __base__=Event, a=(int, 0), left=(f"list[{' | '.join(names)}] | None", None))
    for each in kinds.values():
        each.model_rebuild(_types_namespace=kinds)
    top = create_model("Top", __base__=Event, root=(kinds["Node3"], ...))
    (column,) = columns([describe(top, None)])
    assert column.kind == Kind("struct", fields=(("a", Kind("int")), ("left", Kind("list", item=JSON))))


def test_kinds_that_meet() -> None:
    whole, real, text = Kind("int"), Kind("float"), Kind("text")
    assert merged(whole, real) == real and merged(whole, text) == JSON and merged(text, text) == text
    assert merged(Kind("list", item=whole), Kind("list", item=real)) == Kind("list", item=real)
    one, other = (Kind("struct", fields=fields) for fields in ((("a", whole), ("b", text)), (("a", real), ("c", text))))
    assert dict(merged(one, other).fields) == {"a": real, "b": text, "c": text}
    for node in ({}, {"type": "null"}, {"enum": [1, "a"]}):
        assert columns([{"properties": {"f": node}}])[0].kind == JSON

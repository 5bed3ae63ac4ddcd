"""What users may rely on: names, errors, and an import that costs little."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import rstream
from rstream import errors

PUBLIC = [
    "Batch", "Blob", "Delivery", "Entry", "EntryId", "Event", "Keyring", "RStream", "RStreamError", "Reject",
    "Retention", "Retry", "RetryPolicy", "Stream",
]  # fmt: skip

MEMBERS = {
    "Batch": "deliveries fail failures",
    "Delivery": (
        "attempt checkpoint checkpoint_value epoch event_id fence group headers id idempotency_key key step stream"
        " sync worker"
    ),
    "Blob": "digest file open path read rstream_inline rstream_stored rstream_unread size sync",
    "Entry": "event event_id headers id key payload spoil",
    "EntryId": "count generation index ms parse redis seq shard",
    "Keyring": "env file find ids load newest",
    "RStream": "aclose close consumers link open stream sync_link",
    "Retention": (
        "age age_seconds bytes cap counts entries from_json group_ttl soft soft_level to_json ttl_seconds unprocessed"
    ),
    "RetryPolicy": "delay_after factor initial_delay jitter max_attempts max_delay non_retryable total_timeout",
    "Stream": "adopt consumer dead declaration layout prepare publish publish_many read reshard upgrade",
}

ERRORS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, BaseException)]


def test_the_public_names() -> None:
    """A name that is added is a promise; one that is removed breaks somebody."""
    assert sorted(rstream.__all__) == sorted(PUBLIC)
    for name in PUBLIC:
        assert getattr(rstream, name).__doc__


@pytest.mark.parametrize("name", MEMBERS)
def test_the_public_members(name: str) -> None:
    inherited = set(dir(rstream.Event)) | set(dir(object)) if name == "RetryPolicy" else set(dir(object))
    kind = getattr(rstream, name)
    fields = set(getattr(kind, "model_fields", ()))
    found = {member for member in set(dir(kind)) - inherited | fields if not member.startswith("_")}
    assert sorted(found) == MEMBERS[name].split()


def imported(statement: str) -> set[str]:
    """The modules that a fresh interpreter has after a statement, without those of Python's own library."""
    script = f"import sys\nbefore = {{*sys.modules}}\n{statement}\nprint(*sorted({{*sys.modules}} - before))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    made_up = ("_sysconfigdata", "_cython", "cython_runtime")  # by Python, and by compiled modules
    found = {name for name in done.stdout.splitlines()[-1].split() if not name.startswith(made_up)}
    return {name for name in found if name.partition(".")[0] not in sys.stdlib_module_names}


def packages(modules: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules}


def test_an_import_costs_nothing_before_a_name_is_asked_for() -> None:
    assert imported("import rstream; dir(rstream)") == {"rstream"}
    with pytest.raises(AttributeError, match="'rstream' has no attribute 'Topic'"):
        rstream.Topic  # type: ignore[attr-defined]  # noqa: B018
    assert set(PUBLIC) <= set(dir(rstream))


PYDANTIC = {"pydantic", "pydantic_core", "annotated_types", "typing_extensions", "typing_inspection"}
USED_BY_ALL = PYDANTIC | {"anyio", "sniffio", "idna", "msgpack", "xxhash"}
"""What declaring a stream and its consumers imports: no client of Redis, no blob store's, no server, no CLI."""

RARE = [
    f"rstream.{name}" for name in ("archive", "cli", "dashboard", "deadletter", "export", "replay", "reset", "worker")
]
RARE += [f"rstream.store.{name}" for name in ("embedded", "reshard", "room", "stats", "trim", "weigh")]


def test_an_app_imports_what_it_uses() -> None:
    assert packages(imported("from rstream import Event, Entry")) <= PYDANTIC | {"rstream"}
    found = imported("""
import rstream
class Seen(rstream.Event): device: str
app = rstream.RStream("embedded:nowhere")
seen = app.stream("seen", Seen, key="device")
@seen.consumer("g")
def handle(event: Seen) -> None: ...
""")
    assert packages(found) <= USED_BY_ALL | {"rstream"}
    assert not [name for name in found if name.startswith(tuple(RARE))]


CALL = "from rstream.cli.main import main\nsys.argv[1:] = {!r}\ntry: main()\nexcept SystemExit: pass"
COMMANDS = {
    "--help": set[str](),
    "publish --help": {"publish"},
    "groups --help": {"groups", "read", "remove", "reset", "tables", "trim"},
    "worker --help": {"logs", "signals", "worker"},
}


@pytest.mark.parametrize("words", COMMANDS)
def test_help_imports_the_command_alone(words: str) -> None:
    found = imported(CALL.format(words.split()))
    assert packages(found) == {"click", "rstream"}
    modules = {name.removeprefix("rstream.") for name in found if name.startswith("rstream.")} - {"errors"}
    assert modules == {"cli", "cli.main", "cli.target", *(f"cli.{name}" for name in COMMANDS[words])}


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_an_error_says_what_it_is(kind: type[BaseException]) -> None:
    assert issubclass(kind, rstream.RStreamError)
    assert kind.__dict__.get("__doc__"), "no docstring of its own"
    assert f"`{kind.__name__}`" in (errors.__doc__ or ""), "not in the tree at the top of errors.py"


def test_errors_live_in_one_module() -> None:
    assert {kind.__module__ for kind in ERRORS} == {"rstream.errors"}

    def below(kind: type[BaseException]) -> set[type[BaseException]]:
        return {kind}.union(*map(below, kind.__subclasses__()))

    own = {kind for kind in below(rstream.RStreamError) if kind.__module__.startswith("rstream")}
    assert own == set(ERRORS)


def test_the_tree_in_the_docstring_is_the_tree_of_classes() -> None:
    path: list[type] = [Exception]
    for line in (errors.__doc__ or "").splitlines():
        if "`" in line and line.lstrip("│├└─ ").startswith("`"):
            name = line.split("`")[1]
            depth = line.index("`") // 4 + 1
            kind = getattr(errors, name)
            assert kind.__base__ is path[depth - 1], line
            path[depth:] = [kind]


def test_there_is_a_marker_for_type_checkers() -> None:
    assert inspect.getfile(rstream).endswith("__init__.py")
    from importlib.resources import files

    assert files("rstream").joinpath("py.typed").is_file()

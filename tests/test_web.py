"""The examples for web frameworks, as their servers would run them."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import anyio
import httpx
import pytest

from rstream import EntryId, RStream

if TYPE_CHECKING:
    from types import ModuleType

    from tests.servers import Server

GOOD = [{"customer": "ada", "item": "tea"}, {"customer": "bob", "item": "milk", "quantity": 3}]
BAD: list[Any] = [
    {"customer": "ada"},
    {"customer": "ada", "item": 5},
    [],
    "text",
    None,
    {"customer": "", "item": "tea"},
]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch, namespace: str) -> Any:
    """Import an example as a fresh process with this environment would."""

    def imported(name: str, server: Server) -> ModuleType:
        monkeypatch.setenv("RSTREAM_URL", server.url)
        monkeypatch.setenv("RSTREAM_NAMESPACE", namespace)
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)

    return imported


def stored(server: Server, namespace: str, stream: str) -> list[tuple[str, str | None, str, str, int]]:
    """Read back by somebody else."""
    with RStream(server.url, namespace=namespace) as app:
        found = app.open(stream).sync.read()
        return [
            (str(entry.id), entry.key, entry.event["customer"], entry.event["item"], entry.event["quantity"])
            for entry in found
        ]


WANTED = [("ada", "ada", "tea", 1), ("bob", "bob", "milk", 3)]


def test_fastapi(load: Any, server: Server, namespace: str) -> None:
    example = load("examples.fastapi_app", server)

    async def run() -> list[str]:
        transport = httpx.ASGITransport(example.app)
        async with (
            example.app.router.lifespan_context(example.app),
            httpx.AsyncClient(transport=transport, base_url="http://shop") as client,
        ):
            for order in BAD:
                assert (await client.post("/orders", json=order)).status_code == 422
            answers = [await client.post("/orders", json=order) for order in GOOD]
            assert [answer.status_code for answer in answers] == [202, 202]
            return [answer.json()["id"] for answer in answers]

    ids = anyio.run(run)
    assert sorted(stored(server, namespace, "fastapi-orders")) == sorted(
        (id, *order) for id, order in zip(ids, WANTED, strict=True)
    )
    assert not example.log._links._held  # closed with the app


def test_fastapi_under_load(load: Any, one_server: Server, namespace: str) -> None:
    example = load("examples.fastapi_app", one_server)

    async def run() -> set[str]:
        ids: set[str] = set()
        transport = httpx.ASGITransport(example.app)
        async with (
            example.app.router.lifespan_context(example.app),
            httpx.AsyncClient(transport=transport, base_url="http://shop") as client,
            anyio.create_task_group() as group,
        ):

            async def order(n: int) -> None:
                answer = await client.post("/orders", json={"customer": f"c{n % 10}", "item": str(n)})
                ids.add(answer.json()["id"])

            for n in range(200):
                group.start_soon(order, n)
        return ids

    ids = anyio.run(run)
    found = stored(one_server, namespace, "fastapi-orders")
    assert len(ids) == 200 and {id for id, *_ in found} == ids
    assert sorted(int(item) for *_, item, _ in found) == list(range(200))


DJANGO = """
import json, sys
from django.test import Client
from examples.django_view import application, log, urlpatterns
good, bad = json.loads(sys.stdin.read())
client = Client()
def post(order):
    answer = client.post("/orders", json.dumps(order), content_type="application/json")
    return answer.status_code, answer["content-type"].partition(";")[0], json.loads(answer.content)
refused = [post(order) for order in bad]
got = client.get("/orders").status_code
taken = [post(order) for order in good]
log.close()
print(json.dumps([refused, got, taken]))
"""


def test_django(server: Server, namespace: str) -> None:
    """In a process of its own: Django is configured once a process."""
    done = subprocess.run(
        [sys.executable, "-c", DJANGO],
        input=json.dumps([GOOD, BAD]),
        env={**os.environ, "RSTREAM_URL": server.url, "RSTREAM_NAMESPACE": namespace},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    refused, got, taken = json.loads(done.stdout)
    assert got == 405
    assert [status for status, _, _ in refused] == [422] * len(BAD)
    assert all(kind == "application/json" and problems for _, kind, problems in refused)
    assert [(status, kind) for status, kind, _ in taken] == [(202, "application/json")] * 2
    ids = [answer["id"] for _, _, answer in taken]
    assert all(EntryId.parse(id) for id in ids)
    assert sorted(stored(server, namespace, "django-orders")) == sorted(
        (id, *order) for id, order in zip(ids, WANTED, strict=True)
    )


@pytest.mark.parametrize("example", ["fastapi_app", "django_view"])
def test_an_example_publishes_in_one_line(example: str) -> None:
    from pathlib import Path

    text = (Path(__file__).parent.parent / "examples" / f"{example}.py").read_text("utf-8")
    (line,) = [line for line in text.splitlines() if ".publish(" in line]
    assert line.strip().startswith("return ")

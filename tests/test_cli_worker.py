"""`rstream worker`: one process and many, from the start to SIGTERM."""

from __future__ import annotations

import json
import os
import re
import signal
from collections import Counter
from pathlib import Path

import pytest

from tests.commands import SHOP, Commands, Running
from tests.waiting import eventually

CRASHING = """
import os, pathlib
from rstream import Event, RStream

app = RStream()

class Note(Event):
    text: str

notes = app.stream("notes", Note, shards=2)

@notes.consumer("crash", concurrency=1, lease=0.5)
def crash(note: Note) -> None:
    crashed = pathlib.Path("crashed.txt")
    if note.text == "crash" and not crashed.exists():
        crashed.touch()
        os._exit(7)
    with pathlib.Path("handled.txt").open("a") as file:
        file.write(note.text + "\\n")
"""


def order(rs: Commands, *customers: str) -> None:
    lines = "\n".join(json.dumps({"customer": customer, "total": 1}) for customer in customers)
    rs.ok("publish", "orders", "-", "--app", "shop:app", stdin=lines)


def note(rs: Commands, *texts: str, app: str = "shop:app") -> None:
    rs.ok("publish", "notes", "-", "--app", app, stdin="\n".join(json.dumps({"text": text}) for text in texts))


def children(running: Running) -> list[int]:
    """The worker processes of a supervisor, as the kernel knows them."""
    path = Path(f"/proc/{running.process.pid}/task/{running.process.pid}/children")
    return [int(pid) for pid in path.read_text().split()]


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def ready(running: Running, count: int = 1) -> bool:
    return len(re.findall("worker .* ready: ", running.err)) >= count


# -- one process


def test_burst_handles_what_there_is_and_ends(rs: Commands) -> None:
    order(rs, *(f"c{n}" for n in range(100)))

    done = rs.run("worker", "shop:app", "--burst", "--group", "billing", "--group", "orders/shipping")

    assert done.returncode == 0, done.stderr
    expected = Counter(f"{group} c{n} 1" for n in range(100) for group in ("billing", "shipping"))
    assert Counter(rs.handled) == expected
    assert "ready: orders/billing, orders/shipping" in done.stderr
    assert "handled 200" in done.stderr
    assert rs.run("worker", "shop:app", "--burst", "--group", "billing").returncode == 0
    assert len(rs.handled) == 200


FREEZES = """
import gc, pathlib
from rstream import Event, RStream

app = RStream()

class Note(Event):
    text: str

notes = app.stream("notes", Note, shards=2)

@notes.consumer("g")
async def handle(note: Note) -> None:
    pathlib.Path("frozen.txt").write_text(str(gc.get_freeze_count()))
"""


def test_what_a_worker_process_has_loaded_is_kept_from_the_garbage_collector(rs: Commands) -> None:
    (rs.directory / "freezes.py").write_text(FREEZES)
    note(rs, "one", app="freezes:app")
    rs.ok("worker", "freezes:app", "--burst")
    assert int((rs.directory / "frozen.txt").read_text()) > 10_000


def test_only_the_groups_asked_for_run(rs: Commands) -> None:
    order(rs, "c1")

    rs.ok("worker", "shop:app", "--burst", "-g", "orders/billing")

    assert rs.handled == ["billing c1 1"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_running_handlers_finish_and_ends_with_0(rs: Commands, number: signal.Signals) -> None:
    note(rs, "a", "b", "c")
    with rs.started("worker", "shop:app", "-g", "slow") as worker:
        eventually(lambda: len(rs.handled) == 2, 15)
        worker.process.send_signal(number)
        eventually(lambda: f"{number.name}, finishing" in worker.err)
        rs.write("go.txt", "")
        assert worker.ended() == 0
    began = {line.split()[1] for line in rs.handled if line.startswith("begin")}
    assert {line.split()[1] for line in rs.handled if line.startswith("end")} == began
    assert "handled 2" in worker.err.splitlines()[-1]
    rs.ok("worker", "shop:app", "-g", "slow", "--burst")
    assert Counter(rs.handled) == Counter(f"{what} {text}" for text in "abc" for what in ("begin", "end"))


def test_a_second_signal_ends_it_at_once(rs: Commands) -> None:
    note(rs, "a")
    with rs.started("worker", "shop:app", "-g", "slow") as worker:
        eventually(lambda: rs.handled, 15)
        worker.process.terminate()
        eventually(lambda: "finishing" in worker.err)
        worker.process.terminate()
        assert worker.ended() == 128 + signal.SIGTERM


def test_what_runs_on_after_the_grace_is_left_to_others(rs: Commands) -> None:
    note(rs, "a")
    with rs.started("worker", "shop:app", "-g", "slow", "--grace", "0.1") as worker:
        eventually(lambda: rs.handled, 15)
        worker.process.terminate()
        assert worker.ended() == 0
    rs.write("go.txt", "")
    rs.ok("worker", "shop:app", "-g", "slow", "--burst")
    assert rs.handled == ["begin a", "begin a", "end a"]


def test_sigterm_while_the_app_is_loaded_ends_with_0(rs: Commands) -> None:
    rs.write("late.py", "import pathlib, time\npathlib.Path('loading').touch()\ntime.sleep(60)\n")
    with rs.started("worker", "late:app") as worker:
        eventually(lambda: (rs.directory / "loading").exists(), 15)
        worker.process.terminate()
        assert worker.ended() == 0
    assert "Traceback" not in worker.err


MIDST = """
import asyncio, os, signal
from rstream.worker.worker import Worker
from shop import app

prepare = Worker._prepare

async def prepare_and_be_told(self, run):
    # What a signal's handler raises within a callback of the loop, the loop logs and forgets.
    asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGTERM)
    await prepare(self, run)

Worker._prepare = prepare_and_be_told
"""


def test_sigterm_in_the_midst_of_the_start_ends_with_0(rs: Commands) -> None:
    rs.write("midst.py", MIDST)
    done = rs.run("worker", "midst:app")
    assert done.returncode == 0
    assert "stopped before it began" in done.stderr and "Traceback" not in done.stderr


def test_sigterm_that_is_swallowed_while_the_app_is_loaded_ends_with_0(rs: Commands) -> None:
    swallowing = "import contextlib, os, signal\nwith contextlib.suppress(BaseException):\n"
    rs.write("deaf.py", f"{swallowing}    os.kill(os.getpid(), signal.SIGTERM)\nfrom shop import app\n")
    done = rs.run("worker", "deaf:app")
    assert done.returncode == 0
    assert "stopped before it began" in done.stderr and "Traceback" not in done.stderr


THREADED = """
import asyncio, pathlib, threading
from rstream import Event, RStream

class Note(Event):
    text: str

app = RStream()
notes = app.stream("notes", Note, shards=2)

@notes.consumer("slow")
async def wait_in_a_thread(event: Note) -> None:
    pathlib.Path("waits").touch()
    await asyncio.to_thread(threading.Event().wait)
"""


def test_what_an_async_handler_left_to_a_thread_holds_no_process(rs: Commands) -> None:
    rs.write("threaded.py", THREADED)
    note(rs, "a")
    with rs.started("worker", "threaded:app", "--grace", "0.1") as worker:
        eventually(lambda: (rs.directory / "waits").exists(), 15)
        worker.process.terminate()
        assert worker.ended() == 0


def test_a_redis_that_is_not_there_is_a_plain_error(rs: Commands) -> None:
    rs.write("hasty.py", SHOP.replace("RStream()", "RStream(publish_timeout=0.2)"))
    done = rs.run("worker", "hasty:app", "--url", "redis://127.0.0.1:1/0")
    assert done.returncode == 1
    assert "redis://127.0.0.1:1/0" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


# -- many processes

linux = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks at processes through /proc")


@linux
def test_processes_share_the_work_and_burst_ends_with_0(rs: Commands) -> None:
    order(rs, *(f"c{n}" for n in range(100)))

    done = rs.run("worker", "shop:app", "--burst", "-g", "billing", "--processes", "3")

    assert done.returncode == 0, done.stderr
    assert Counter(rs.handled) == Counter(f"billing c{n} 1" for n in range(100))
    assert len(re.findall("worker .* ended: ", done.stderr)) == 3


@linux
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_all_processes(rs: Commands, number: signal.Signals) -> None:
    note(rs, "a", "b", "c", "d")
    with rs.started("worker", "shop:app", "-g", "slow", "-c", "2", "-p", "2") as worker:
        eventually(lambda: ready(worker, 2) and len(rs.handled) == 4, 20)
        pids = children(worker)
        assert len(pids) == 2
        worker.process.send_signal(number)
        eventually(lambda: worker.err.count(f"{number.name}, finishing") == 2)
        rs.write("go.txt", "")
        assert worker.ended() == 0
    assert all(gone(pid) for pid in pids)
    assert Counter(line.split()[0] for line in rs.handled) == {"begin": 4, "end": 4}


@linux
def test_a_second_signal_reaches_all_processes_too(rs: Commands) -> None:
    note(rs, "a", "b", "c", "d")
    with rs.started("worker", "shop:app", "-g", "slow", "-p", "2") as worker:
        eventually(lambda: ready(worker, 2) and rs.handled, 20)
        worker.process.terminate()
        eventually(lambda: worker.err.count("finishing") == 2)
        worker.process.terminate()
        assert worker.ended() == 1


@linux
def test_a_process_that_crashes_is_started_again(rs: Commands) -> None:
    rs.write("crashing.py", CRASHING)
    note(rs, "crash", app="crashing:app")
    with rs.started("worker", "crashing:app", "-p", "2") as worker:
        eventually(lambda: "exit code 7, is started again in 1 s" in worker.err, 20)
        eventually(lambda: ready(worker, 3), 20)
        eventually(lambda: rs.handled == ["crash"], 20)
        assert len(children(worker)) == 2
        worker.process.terminate()
        assert worker.ended() == 0


@linux
def test_processes_do_not_outlive_a_supervisor_that_is_killed(rs: Commands) -> None:
    with rs.started("worker", "shop:app", "-g", "billing", "-p", "2") as worker:
        eventually(lambda: ready(worker, 2), 20)
        pids = children(worker)
        worker.process.kill()
        eventually(lambda: all(gone(pid) for pid in pids), 20)
    assert worker.err.count("SIGTERM, finishing") == 2

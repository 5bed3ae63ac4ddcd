"""Processes of our own for handlers: what goes wrong in one stays with its call, and nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from rstream import Batch, Delivery, EntryId, Reject, Retry, RetryPolicy
from rstream.calling import Answer
from rstream.errors import ConfigError, HandlerDied, HandlerTimeout, full_text
from rstream.processes import ProcessCall
from tests import handlers
from tests.handlers import BadAddress, Order, begun
from tests.waiting import eventually, eventually_async

ROOT = Path(__file__).parent.parent


def delivery(n: int = 0) -> Delivery:
    return Delivery(EntryId(1, n, 1, 0), "work", "g", None, bytes(16), {}, 1, "w")


@asynccontextmanager
async def pool(handler: Any, limit: int = 1, **options: Any) -> AsyncIterator[ProcessCall]:
    call = ProcessCall(handler, limit, **{"answers": True, **options})
    try:
        yield call
    finally:
        call.close()


async def asked(call: ProcessCall, **order: Any) -> Answer:
    async with asyncio.timeout(40):
        return await call(Order(**order), delivery())


def children(of: int | None = None) -> list[psutil.Process]:
    """Living ones; the resource tracker of multiprocessing is none of ours."""
    return [each for each in psutil.Process(of).children() if "spawn_main" in command(each)]


def command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it is a zombie, or gone
        return ""


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != "zombie"
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Makes a module with a handler `pid`, in which `body` runs where a child imports it."""
    names = []

    def make(body: str) -> Any:
        name = f"made_{os.getpid()}_{len(names)}_{tmp_path.name}"
        names.append(name)
        lines = ["import os, multiprocessing, time", "from pathlib import Path", f"folder = Path({str(tmp_path)!r})"]
        lines += ["if multiprocessing.parent_process():", textwrap.indent(textwrap.dedent(body), "    ")]
        lines += ["def pid(event): return os.getpid()"]
        (tmp_path / f"{name}.py").write_text("\n".join(lines))
        return __import__(name)

    monkeypatch.syspath_prepend(str(tmp_path))
    yield make
    for name in names:
        sys.modules.pop(name, None)


# --- starting, and which child gets what


async def test_children_are_started_at_need_and_used_again_and_never_more_than_the_limit(tmp_path: Path) -> None:
    async with pool(handlers.pid, 3) as call:
        assert children() == []
        pids = [(await asked(call)).result for _ in range(5)]
        assert len({*pids}) == 1, "the one that was used last is used next"
        await call.warm()
        await call.warm()
        assert len(children()) == 3
        assert (await asked(call)).result in {each.pid for each in children()}
    async with pool(handlers.until_told, 2) as call:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(asked(call, n=n, folder=str(tmp_path))) for n in range(6)]
            await eventually_async(lambda: len(begun(tmp_path)) == 2, 20)
            assert len(children()) == 2
            (tmp_path / "go").touch()
        assert [task.result().result for task in tasks] == [*range(6)]
        assert len({*begun(tmp_path).values()}) == 2


async def test_warm_starts_all_children_and_has_them_import_at_the_same_time(module: Any) -> None:
    made = module("""
        (folder / str(os.getpid())).touch()
        until = time.monotonic() + 30
        while len([*folder.glob("[0-9]*")]) < 3:  # each waits for the others
            assert time.monotonic() < until
            time.sleep(0.01)
    """)
    async with pool(made.pid, 3) as call:
        await call.warm()
        assert len(children()) == 3


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("raise RuntimeError('CUDA out of\\n memory')", "RuntimeError: CUDA out of memory"),
        ("raise SystemExit('no such model')", "SystemExit: no such model"),
        ("os._exit(3)", "died with exit code 3 while it started"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    ],
)
async def test_warm_says_in_one_line_what_went_wrong_with_which_module(module: Any, body: str, says: str) -> None:
    made = module(body)
    async with pool(made.pid, 2) as call:
        with pytest.raises(ConfigError) as caught:
            await call.warm()
        text = str(caught.value)
        assert f"{made.__name__}:pid" in text and says in text and "\n" not in text
        answer = await asked(call)
        assert answer.error is not None, "and one that is asked all the same does not hang"


async def test_a_first_import_that_fails_fails_its_call_and_puts_no_later_answer_out_of_step(module: Any) -> None:
    """What anyio's pool did: every answer after it was that of the request before."""
    made = module("""
        if not (folder / "flag").exists():
            (folder / "flag").touch()
            raise RuntimeError("CUDA out of memory")
    """)
    async with pool(made.pid) as call:
        first = await asked(call)
        assert isinstance(first.error, RuntimeError) and "CUDA" in str(first.error)
        pids = [(await asked(call)).result for _ in range(3)]
        assert pids == [each.pid for each in children()] * 3


async def test_how_long_an_import_takes_is_not_the_handlers_time(module: Any) -> None:
    made = module("time.sleep(1)")
    async with pool(made.pid, timeout=0.3, hard_timeout=0.6) as call:
        assert (await asked(call)).error is None


@pytest.mark.parametrize("handler", [lambda event: None, handlers.holder.method, handlers.Holder()])
def test_what_another_process_could_not_find_is_refused(handler: Any) -> None:
    with pytest.raises(ConfigError, match="at the top level of a module"):
        ProcessCall(handler, 1)


async def test_methods_of_a_class_and_async_handlers_run_there_too() -> None:
    async with pool(handlers.Holder.of_the_class) as call:
        assert (await asked(call)).result == children()[0].pid
    async with pool(handlers.pid_async) as call:
        assert (await asked(call)).result == children()[0].pid


async def test_what_a_call_leaves_in_context_variables_ends_with_it() -> None:
    async with pool(handlers.tenants) as call:
        assert [(await asked(call)).result for _ in range(2)] == ["nobody", "nobody"]


# --- children that die, and how the worker ends them


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
async def test_a_child_that_is_killed_in_a_call_fails_that_call_only(tmp_path: Path, number: signal.Signals) -> None:
    async with pool(handlers.until_told, 2) as call, asyncio.TaskGroup() as group:
        tasks = [group.create_task(asked(call, n=n, folder=str(tmp_path))) for n in range(4)]
        await eventually_async(lambda: len(begun(tmp_path)) == 2, 20)
        os.kill(begun(tmp_path)[1], number)
        died = await tasks[1]
        assert isinstance(died.error, HandlerDied)
        assert str(died.error) == f"the process that ran tests.handlers:until_told died with signal {number.name}"
        (tmp_path / "go").touch()
        assert [(await tasks[n]).result for n in (0, 2, 3)] == [0, 2, 3]


async def test_a_child_that_dies_while_nobody_asks_it_fails_nothing() -> None:
    async with pool(handlers.pid) as call:
        first = (await asked(call)).result
        os.kill(first, signal.SIGKILL)
        await eventually_async(lambda: not lives(first))
        second = (await asked(call)).result
        assert lives(second) and second != first


async def test_signals_to_the_whole_group_are_for_the_worker_only(tmp_path: Path) -> None:
    async with pool(handlers.until_told) as call, asyncio.TaskGroup() as group:
        task = group.create_task(asked(call, folder=str(tmp_path)))
        signalled = 0
        while not begun(tmp_path):  # from the first moment on: also before Python is up
            for child in children():
                child.send_signal(signal.SIGTERM)
                child.send_signal(signal.SIGINT)
                signalled += 1
            await asyncio.sleep(0)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            os.kill(begun(tmp_path)[0], number)
        assert signalled > 10
        (tmp_path / "go").touch()
        assert (await task).error is None


async def test_a_call_that_is_cancelled_kills_its_child_at_once(tmp_path: Path) -> None:
    async with pool(handlers.until_told) as call:
        task = asyncio.create_task(asked(call, n=1, folder=str(tmp_path)))
        await eventually_async(lambda: begun(tmp_path), 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await eventually_async(lambda: not lives(begun(tmp_path)[1]), 10)
        (tmp_path / "go").touch()
        assert (await asked(call, n=2, folder=str(tmp_path))).result == 2


async def test_a_call_that_is_cancelled_while_its_child_starts_kills_it_too(module: Any) -> None:
    made = module("time.sleep(60)")
    async with pool(made.pid) as call:
        task = asyncio.create_task(asked(call))
        (child,) = await eventually_async(children)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await eventually_async(lambda: not lives(child.pid), 10)


async def test_close_while_calls_run_answers_them_and_can_be_called_twice(tmp_path: Path) -> None:
    async with pool(handlers.until_told, 2) as call, asyncio.TaskGroup() as group:
        tasks = [group.create_task(asked(call, n=n, folder=str(tmp_path))) for n in range(3)]
        await eventually_async(lambda: len(begun(tmp_path)) == 2, 20)
        call.close()
        assert not any(psutil.pid_exists(pid) for pid in begun(tmp_path).values()), "not even zombies"
        call.close()
        for task in tasks:
            answer = await task
            assert isinstance(answer.error, HandlerDied) and "worker" in str(answer.error)
        assert children() == []


@contextmanager
def counted() -> Iterator[None]:
    """Nothing may be left: no process, not even a zombie; no thread; no open file."""
    me = psutil.Process()

    def state() -> tuple[int, int, int]:
        gc.collect()
        return len(me.children()), threading.active_count(), me.num_fds()

    # The threads of an event loop that is closed, as that of an earlier test, end in their own time.
    eventually(lambda: not any("AnyIO" in thread.name for thread in threading.enumerate()))
    before = state()
    yield
    eventually(lambda: state() == before)


def test_nothing_is_left_after_close(tmp_path: Path) -> None:
    async def use(folder: Path) -> None:
        folder.mkdir()  # noqa: ASYNC240
        async with pool(handlers.until_told, 3) as call:
            await call.warm()
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(asked(call, n=n, folder=str(folder))) for n in range(3)]
                await eventually_async(lambda: len(begun(folder)) == 3, 20)
                tasks[0].cancel()
                os.kill(begun(folder)[1], signal.SIGKILL)
                assert (await tasks[1]).error is not None
                (folder / "go").touch()
            assert (await asked(call, n=4, folder=str(folder))).result == 4

    asyncio.run(use(tmp_path / "first"))  # multiprocessing's own helper stays
    with counted():
        for n in range(3):
            asyncio.run(use(tmp_path / str(n)))


def test_a_pool_that_is_dropped_takes_its_children_along() -> None:
    async def use() -> int:
        return int((await asked(ProcessCall(handlers.pid, 1, answers=True))).result)

    pid = asyncio.run(use())
    eventually(lambda: not psutil.pid_exists(pid))


# --- what a handler may do to its process


async def test_a_handler_may_have_children_of_its_own_and_terminate_them() -> None:
    async with pool(handlers.with_own_children) as call:
        answer = await asked(call)
        assert answer.error is None, full_text(answer.error)
        assert answer.result == ([1, 2, 3], -signal.SIGTERM, -signal.SIGTERM, multiprocessing.get_start_method())


async def test_a_fork_that_returns_from_the_handler_does_not_answer() -> None:
    async with pool(handlers.forking) as call:
        pids = [(await asked(call)).result for _ in range(3)]
        assert pids == [each.pid for each in children()] * 3


@pytest.mark.parametrize("kind", ["die", "cancel", "die, forked in C", "cancel, forked in C"])
async def test_a_fork_that_lives_on_holds_nothing_up(tmp_path: Path, kind: str) -> None:
    async with pool(handlers.leaving_a_fork_behind) as call:
        task = asyncio.create_task(asked(call, kind=kind, folder=str(tmp_path)))
        try:
            if kind.startswith("die"):
                answer = await task
                assert str(answer.error).endswith("died with exit code 5")
            else:
                await eventually_async(lambda: begun(tmp_path), 20)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            call.close()
            assert all(child.gone(0) for child in call._children), "no thread waits for it"
            assert lives(int((tmp_path / "fork").read_text()))
        finally:
            os.kill(int((tmp_path / "fork").read_text()), signal.SIGKILL)


@pytest.mark.parametrize("kind", ["garbage", "pickle"])
async def test_a_child_that_answers_what_is_no_answer_is_killed_and_the_next_is_not_confused(kind: str) -> None:
    async with pool(handlers.garbling) as call:
        first = (await asked(call)).result
        answer = await asked(call, kind=kind)
        assert isinstance(answer.error, HandlerDied) and "no answer" in str(answer.error)
        second = (await asked(call)).result
        assert [second] == [each.pid for each in children()] and second != first


# --- time


async def test_what_overran_has_failed_also_where_it_caught_that_and_its_child_goes_on(tmp_path: Path) -> None:
    async with pool(handlers.swallowing, timeout=0.2) as call:
        first = (await asked(call)).result
        answer = await asked(call, kind="swallow", folder=str(tmp_path))
        assert isinstance(answer.error, HandlerTimeout)
        assert str(answer.error) == "the handler was interrupted after 0.2 s"
        assert "signal.pause()" in full_text(answer.error), "it shows where it was"
        assert (tmp_path / "told").exists()
        assert (await asked(call)).result == first


async def test_an_async_handler_is_interrupted_too() -> None:
    async with pool(handlers.hanging_async, timeout=0.2) as call:
        assert isinstance((await asked(call)).error, HandlerTimeout)


@pytest.mark.parametrize("options", [{"hard_timeout": 0.4}, {"timeout": 0.2, "hard_timeout": 0.4}, {"timeout": 0.1}])
async def test_a_handler_that_cannot_be_interrupted_is_killed(
    tmp_path: Path, options: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rstream.processes.KILL_AFTER", 0.3)
    async with pool(handlers.deaf, **options) as call:
        answer = await asked(call, n=1, folder=str(tmp_path))
        assert isinstance(answer.error, HandlerTimeout)
        assert "its process was killed after 0.4 s" in str(answer.error)
        await eventually_async(lambda: not lives(begun(tmp_path)[1]))
        (tmp_path / "go").touch()
        assert (await asked(call, n=2, folder=str(tmp_path))).result == 2


# --- what travels


@pytest.mark.parametrize("kind", handlers.ERRORS)
async def test_an_error_comes_back_as_what_it_was(kind: str, errors: ProcessCall) -> None:
    answer = await asked(errors, kind=kind)
    error: Any = answer.error
    if kind in ("unpicklable", "there", "local"):
        text = {"unpicklable": "1 and 2", "there": "only_there.OnlyThere: and not here", "local": "a local one"}[kind]
        assert type(error) is RuntimeError and text in str(error) and str(error).endswith("(it could not be pickled)")
        assert "\n" not in str(error)
    else:
        expected: Any = handlers.ERRORS[kind]()
        assert type(error) is type(expected) and (kind in ("group", "mute") or error.args == expected.args)
        if kind not in ("unprintable", "group", "mute"):
            assert str(error) == str(expected)
        assert {**vars(error)} == {**vars(expected)} or kind == "mute"
    assert "raise ERRORS[kind]()" in str(error.__cause__), "the traceback of the child"
    assert "raise ERRORS[kind]()" in full_text(error)
    facts: dict[str, Callable[[], bool]] = {
        "retry": lambda: isinstance(error, Retry) and error.after == 8,
        "reject": lambda: isinstance(error, Reject) and error.reason == "no such thing",
        "address": lambda: RetryPolicy(non_retryable=(BadAddress,)).delay_after(1, error) is None,
        "slotted": lambda: (error.code, error.address) == (7, "slots"),
        "missing": lambda: (error.errno, error.filename, error.note) == (2, "a/b", "of my own"),
        "frozen": lambda: error.what == "ice",
        "mute": lambda: error.number == 2,
        "group": lambda: (error.exceptions[0].after, error.exceptions[1].address) == (8, "y"),
    }
    assert facts.get(kind, lambda: True)()


@pytest.fixture
async def errors() -> AsyncIterator[ProcessCall]:
    async with pool(handlers.raising) as call:
        yield call


async def asked_batch(call: ProcessCall, *kinds: str) -> tuple[Answer, Batch]:
    batch = Batch([delivery(n) for n in range(4)])
    async with asyncio.timeout(20):
        return await call([Order(kind=kind) for kind in kinds], batch), batch


@pytest.mark.parametrize("answers", [False, True])
async def test_what_a_batch_was_told_and_the_outcomes_it_returned_come_back(answers: bool) -> None:
    async with pool(handlers.failing_batch, batch=True, answers=answers) as call:
        answer, batch = await asked_batch(call, "", "", "", "retry")
        told: Any = batch.failures[0]
        assert isinstance(told, BadAddress) and told.address == "told"
        assert "BadAddress: told: 0" in str(told.__cause__)
        none, returned, middle, retry = answer.result
        assert (none, middle) == (None, "an answer" if answers else None)
        assert isinstance(returned, BadAddress) and returned.address == "returned" and retry.after == 8
        answer, _ = await asked_batch(call, "", "", "", "unpicklable")
        assert "could not be pickled" in str(answer.result[3]) and answer.result[1].address == "returned"
        answer, batch = await asked_batch(call, "raise", "", "", "retry")
        assert isinstance(answer.error, Retry) and isinstance(batch.failures[0], BadAddress)


async def test_a_result_travels_where_it_is_wanted_and_one_that_cannot_is_an_error() -> None:
    async with pool(handlers.returning, answers=False) as call:
        assert await asked(call, kind="lambda") == Answer() and await asked(call, kind="x") == Answer()
    async with pool(handlers.returning) as call:
        assert await asked(call, kind="x") == Answer({"kind": "x"})
        answer = await asked(call, kind="lambda")
        assert isinstance(answer.error, ConfigError) and "what the handler returned cannot be sent" in str(answer.error)
        assert await asked(call, kind="y") == Answer({"kind": "y"})


async def test_an_event_that_cannot_travel_is_an_error_and_nothing_more(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with pool(handlers.pid) as call:
        first = (await asked(call)).result
        answer = await call(lambda: None, delivery())
        assert isinstance(answer.error, ConfigError) and "cannot be sent to another process" in str(answer.error)
        assert (await asked(call)).result == first
        only_here = type("OnlyHere", (), {"__module__": "only_here"})
        monkeypatch.setitem(sys.modules, "only_here", type(sys)("only_here"))
        monkeypatch.setattr("only_here.OnlyHere", only_here, raising=False)
        answer = await call(only_here(), delivery())
        assert isinstance(answer.error, ModuleNotFoundError)
        assert (await asked(call)).result == first


# --- real workers, as scripts


SCRIPT = """
    import asyncio, os, sys
    from rstream.processes import ProcessCall
    from tests import handlers
    from tests.handlers import Order
    from tests.test_processes import delivery

    class Mine(Exception):
        def __init__(self, first, second):
            super().__init__(f"{first} {second}")
            self.first = first

    class Thing:
        pass

    def mine(event):
        assert type(event) is Thing
        raise Mine(event.first, 2)

    def own(event):
        return Thing()
"""


@contextmanager
def script(folder: Path, body: str, closed: str = "") -> Iterator[subprocess.Popen[str]]:
    """A script of a user's, whose main module it is; `body` is what it does where it is not imported."""
    path = folder / "script.py"
    text = textwrap.dedent(SCRIPT) + "\nasync def main():\n" + textwrap.indent(textwrap.dedent(body), "    ")
    path.write_text(text + "\nif __name__ == '__main__':\n    asyncio.run(main())\n")
    pipe, env = subprocess.PIPE, {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""}
    line = ["sh", "-c", f'exec "$0" "$@" {closed}', sys.executable, str(path), str(folder)]
    with subprocess.Popen(line, env=env, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


BUSY = """
    call = ProcessCall(handlers.until_told, 2)
    tasks = [asyncio.create_task(call(Order(n=n, folder=sys.argv[1]), delivery())) for n in range(2)]
    while len(handlers.begun(handlers.Path(sys.argv[1]))) < 2:
        await asyncio.sleep(0.01)
"""


def test_when_the_worker_is_killed_its_children_are_gone(tmp_path: Path) -> None:
    with script(tmp_path, BUSY + "\n    await asyncio.sleep(60)") as process:
        eventually(lambda: len(begun(tmp_path)) == 2, 20)
        assert all(map(lives, begun(tmp_path).values()))
        process.kill()
        eventually(lambda: not any(map(lives, begun(tmp_path).values())))


@pytest.mark.parametrize("how", ["return", "raise KeyboardInterrupt", "sys.exit(1)"])
def test_a_worker_that_ends_without_close_does_not_wait_for_its_children(tmp_path: Path, how: str) -> None:
    with script(tmp_path, BUSY + f"\n    {how}") as process:
        process.communicate(timeout=30)
        assert len(begun(tmp_path)) == 2
        eventually(lambda: not any(map(lives, begun(tmp_path).values())))


def test_a_worker_that_ends_with_idle_children_and_without_close_ends(tmp_path: Path) -> None:
    body = "import tempfile\ncall = ProcessCall(handlers.pid, 2)\nawait call.warm()\nmain.call = call"
    with script(tmp_path, body) as process:
        assert process.communicate(timeout=30) == ("", "")


def test_what_is_defined_in_the_main_script_travels_both_ways(tmp_path: Path) -> None:
    body = """
        call, other = ProcessCall(mine, 1), ProcessCall(own, 1, answers=True)
        thing = Thing()
        thing.first = 1
        error = (await call(thing, delivery())).error
        assert type(error) is Mine and error.first == 1, error
        result = await other(thing, delivery())
        assert type(result.result) is Thing, result
        call.close()
        other.close()
        print("well")
    """
    with script(tmp_path, body) as process:
        assert process.communicate(timeout=30) == ("well\n", "")


def test_what_a_handler_prints_runs_and_reads_does_no_harm(tmp_path: Path) -> None:
    """Its stdout and stderr are the worker's, and its stdin is empty, also for programs it runs."""
    body = """
        call = ProcessCall(handlers.noisy, 1, answers=True)
        for _ in range(3):
            print((await call(Order(), delivery())).result, file=sys.stderr)
        call.close()
    """
    with script(tmp_path, body) as process:
        out, err = process.communicate("meant for the worker", timeout=60)
    assert err == "cat said '', stdin said ''\n" * 3
    assert out.count("of a log") == 300 and out.count("past Python's buffers\n") == 3
    assert out.count("\n/\n") == 3 and out.count("from a shell") == 3


@pytest.mark.parametrize("closed", ["<&-", "<&- >&- 2>&-"])
def test_a_worker_that_has_no_stdin_or_nothing_at_all_has_children_all_the_same(tmp_path: Path, closed: str) -> None:
    body = """
        call = ProcessCall(handlers.pid, 2, answers=True)
        await call.warm()
        answer = await call(Order(), delivery())
        call.close()
        handlers.Path(sys.argv[1], "answer").write_text(repr(answer))
    """
    with script(tmp_path, body, closed) as process:
        process.communicate(timeout=30)
    assert "error=None" in (tmp_path / "answer").read_text()

"""The job itself, step by step; each step raises `Failed` where something is missing.

Import it only once RSTREAM_URL is set: the app that it works with takes its server from there.
"""

import json
import re
import time

from examples.digits import models, report
from examples.digits.app import digits, predictions, predictions_v2
from examples.digits.events import DigitSeen, Prediction
from examples.digits.processes import Child, Children, Failed
from rstream import Entry

APP = "examples.digits.app:app"
HANDLER = "examples.digits.app:reclassify"
PATIENCE = 30.0  # seconds that any one step may take


class Job:
    """One run of the demo."""

    def __init__(self, children: Children) -> None:
        self._children = children
        self._started = time.monotonic()
        self._killed_worker = ""
        self._held = 0

    def run(self) -> str:
        """Everything in order; returns the report."""
        self._say("training v1, starting two workers and the producer")
        models.save(models.train_v1(), "v1")
        workers = [self._start_worker(name) for name in ("worker-1", "worker-2")]
        producer = self._children.start("producer", "examples.digits.producer", show=True)
        survivor = self._kill_one(workers)
        producer.expect_success(PATIENCE)
        published = list(digits.sync.read())
        self._finish(survivor, published)
        window = published[len(published) // 3 : 2 * len(published) // 3]
        self._say("training v2, replaying the middle third of the stream through it")
        models.save(models.train_v2(), "v2")
        self._replay(window)
        return self._report(published, window)

    def _start_worker(self, name: str) -> Child:
        return self._children.start(name, "rstream", "worker", APP)

    def _kill_one(self, workers: list[Child]) -> Child:
        """SIGKILL the first worker in mid-work; returns the other."""
        victim, survivor = workers
        third = len(models.images()) // 3
        self._children.wait_until(
            "a third of the images is classified, by both workers",
            lambda: _both_at_work(workers, third),
            PATIENCE,
        )
        self._children.wait_until(
            "the worker that is to be killed holds deliveries", lambda: self._caught(victim), PATIENCE
        )
        victim.kill()
        self._say(f"{victim.name} killed while it held {self._held} deliveries")
        return survivor

    def _caught(self, victim: Child) -> bool:
        """Freeze it and look: a frozen worker holds the same when it is killed as when it was asked about."""
        victim.freeze()
        self._killed_worker, self._held = self._in_hand(victim)
        if not self._held:
            victim.thaw()
        return self._held > 0

    def _in_hand(self, worker: Child) -> tuple[str, int]:
        """The worker's id and the number of its deliveries, as the server knows them."""
        text = self._children.output("groups", "rstream", "groups", "digits", "--json", seconds=PATIENCE)
        for group in json.loads(text):
            for member in group["workers"]:
                if f"-{worker.pid}-" in member["worker"]:
                    return member["worker"], member["pending"]
        raise Failed(f"`rstream groups digits --json` does not know {worker.name} (pid {worker.pid})")

    def _finish(self, survivor: Child, published: list[Entry[DigitSeen]]) -> None:
        """Wait for the last image, then end the worker that is left as an operator would."""
        ids = {str(entry.id) for entry in published}
        self._children.wait_until(
            f"all {len(ids):,} images are classified",
            lambda: ids <= {prediction.source for prediction in _v1()},
            PATIENCE,
        )
        survivor.terminate(PATIENCE)
        told = re.search(r" recovered ([\d,]+)", survivor.log.read_text())
        self._redelivered = int(told[1].replace(",", "")) if told else 0
        self._say(f"all images are classified; {survivor.name} ended with exit code 0")

    def _replay(self, window: list[Entry[DigitSeen]]) -> None:
        """Through the CLI, and the window named by its first and last id."""
        first, last = str(window[0].id), str(window[-1].id)
        self._say(f"rstream replay digits --from {first} --to {last} --handler {HANDLER}")
        arguments = ("replay", "digits", "--from", first, "--to", last, "--handler", HANDLER)
        self._children.start("replay", "rstream", *arguments).expect_success(PATIENCE)

    def _report(self, published: list[Entry[DigitSeen]], window: list[Entry[DigitSeen]]) -> str:
        first, second = _v1(), [entry.event for entry in predictions_v2.sync.read()]
        tally = report.tally([str(entry.id) for entry in published], first)
        replayed = report.tally([str(entry.id) for entry in window], second)
        order = report.order(first)
        _check(tally, replayed, order)
        if not self._redelivered:
            raise Failed("a worker was killed with deliveries in hand, but the other one took none over")
        scores = _score_rows(window, first, second)
        return report.table(
            [
                ("published", f"{tally.published:,}", "images"),
                ("classified", f"{tally.distinct:,}", f"distinct: {_times(tally)}"),
                ("redelivered", f"{self._redelivered:,}", f"after {self._killed_worker} was killed"),
                ("replayed", f"{replayed.distinct:,}", f"entries, {window[0].id} to {window[-1].id}"),
                *scores,
                ("per-device order", f"{order.kept} of {order.devices}", "devices kept it, one image at a time"),
                ("seconds", f"{time.monotonic() - self._started:.1f}", "for everything, training included"),
            ]
        )

    def _say(self, what: str) -> None:
        print(f"{time.monotonic() - self._started:5.1f} s  {what}", flush=True)


def _v1() -> list[Prediction]:
    return [entry.event for entry in predictions.sync.read()]


def _both_at_work(workers: list[Child], enough: int) -> bool:
    done = _v1()
    names = {prediction.worker for prediction in done}
    return len(done) >= enough and all(any(f"-{worker.pid}-" in name for name in names) for worker in workers)


def _check(tally: report.Tally, replayed: report.Tally, order: report.Order) -> None:
    """The promises that this run is there to show."""
    expected = len(models.images())
    if tally.published != expected:
        raise Failed(f"{tally.published:,} images in the stream, expected {expected:,}")
    for what, result in (("classified", tally), ("replayed", replayed)):
        if result.missing:
            raise Failed(f"{len(result.missing):,} of {result.published:,} not {what}: {result.missing[:3]} …")
        if result.unknown:
            raise Failed(f"{len(result.unknown):,} {what} that should not be: {result.unknown[:3]} …")
    if order.late:
        raise Failed(f"{order.late:,} predictions came after one of a later image of their device")


def _score_rows(
    window: list[Entry[DigitSeen]], first: list[Prediction], second: list[Prediction]
) -> list[tuple[str, str, str]]:
    """Both models on the same images: those of the window that neither has learned from."""
    learned = models.load("v1").learned_from | models.load("v2").learned_from
    events = {str(entry.id): entry.event for entry in window}
    v1, v2 = (report.score(events, answers, learned) for answers in (first, second))
    return [
        ("accuracy of v1", str(v1), f"{v1.right} of the {v1.counted} of them that no model learned from"),
        ("accuracy of v2", str(v2), f"{v2.right} of the same {v2.counted}"),
    ]


def _times(tally: report.Tally) -> str:
    again = tally.distinct - tally.once
    return f"{tally.once:,} exactly once, {again:,} more often ({tally.duplicates:,} duplicates)"

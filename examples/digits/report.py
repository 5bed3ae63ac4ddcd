"""What the demo says at its end, computed from what lies in the streams and nothing else. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from examples.digits.events import DigitSeen, Prediction


@dataclass(frozen=True)
class Tally:
    """Published images against their predictions."""

    published: int
    missing: tuple[str, ...]  # ids that nobody classified
    unknown: tuple[str, ...]  # predictions of ids that nobody published
    distinct: int
    once: int
    duplicates: int  # predictions beyond the first of an image


@dataclass(frozen=True)
class Score:
    """How many of the images that count a model got right."""

    right: int
    counted: int

    def __str__(self) -> str:
        return f"{self.right / self.counted:.1%}" if self.counted else "-"


@dataclass(frozen=True)
class Order:
    """Whether the predictions of each device came in the order in which it sent its images."""

    devices: int
    kept: int
    late: int  # predictions that came after one of a later image


def tally(published: Sequence[str], predictions: Sequence[Prediction]) -> Tally:
    """Compare the ids that were published with those that were classified."""
    times = Counter(prediction.source for prediction in predictions)
    known = set(published)
    return Tally(
        published=len(published),
        missing=tuple(id for id in published if id not in times),
        unknown=tuple(id for id in times if id not in known),
        distinct=sum(id in known for id in times),
        once=sum(count == 1 for id, count in times.items() if id in known),
        duplicates=sum(times.values()) - len(times),
    )


def score(window: Mapping[str, DigitSeen], predictions: Iterable[Prediction], learned: AbstractSet[int]) -> Score:
    """Accuracy over the window, each image once, without the images that a model has learned from."""
    counted = {id: event.truth for id, event in window.items() if event.image not in learned}
    answers = {prediction.source: prediction.digit for prediction in first_of_each(predictions)}
    return Score(sum(answers.get(id) == truth for id, truth in counted.items()), len(counted))


def order(predictions: Sequence[Prediction]) -> Order:
    """Go through the predictions as they lie in the stream; a repeated one counts where it first came."""
    latest: dict[str, int] = {}
    late: Counter[str] = Counter()
    for prediction in first_of_each(predictions):
        highest = latest.get(prediction.device, -1)
        late[prediction.device] += prediction.number < highest
        latest[prediction.device] = max(highest, prediction.number)
    return Order(len(latest), sum(late[device] == 0 for device in latest), late.total())


def first_of_each(predictions: Iterable[Prediction]) -> list[Prediction]:
    """Only the first prediction of each image, in the order given."""
    first: dict[str, Prediction] = {}
    for prediction in predictions:
        first.setdefault(prediction.source, prediction)
    return list(first.values())


def table(rows: Iterable[tuple[str, str, str]]) -> str:
    """Name, number, what it means: aligned."""
    return "\n".join(f"  {name:<17} {value:>9}  {meaning}".rstrip() for name, value, meaning in rows)

"""Twelve devices that send all images: `python -m examples.digits.producer`.

The first come one at a time, as a web handler would publish them; the rest in batches, as an importer would.
"""

import asyncio
from collections.abc import Iterator

from examples.digits import models
from examples.digits.app import app, digits
from examples.digits.events import DigitSeen

DEVICES = 12
SINGLES = 197
BATCH = 200


def seen() -> Iterator[DigitSeen]:
    """Every image once, dealt to the devices in turn."""
    images = models.images()
    for index in range(len(images)):
        yield DigitSeen(
            device=f"device-{index % DEVICES:02}",
            number=index // DEVICES,
            image=index,
            truth=int(images.truth[index]),
            pixels=images.pixels[index].tobytes(),
        )


async def publish() -> None:
    """Publish everything, in order, and say how far it is."""
    events = list(seen())
    for event in events[:SINGLES]:
        await digits.publish(event)
    _progress(SINGLES, len(events))
    for start in range(SINGLES, len(events), BATCH):
        batch = events[start : start + BATCH]
        await digits.publish_many(batch)
        _progress(start + len(batch), len(events))
    await app.aclose()


def _progress(done: int, total: int) -> None:
    print(f"    producer: {done:,} of {total:,} images published", flush=True)


if __name__ == "__main__":
    asyncio.run(publish())

"""Images in, predictions out: what `rstream worker examples.digits.app:app` runs."""

import asyncio

from examples.digits import models
from examples.digits.events import DigitSeen, Prediction
from rstream import Delivery, RStream

app = RStream()

digits = app.stream("digits", DigitSeen, key="device", shards=8)
predictions = app.stream("predictions", Prediction, key="device", shards=8)
predictions_v2 = app.stream("predictions-v2", Prediction, key="device", shards=8)


# A short lease, so that the demo need not wait long for what a killed worker held.
@digits.consumer("classify", concurrency=16, lease=2.0)
async def classify(event: DigitSeen, delivery: Delivery) -> None:
    """Classify with v1, in a thread: 3 ms of computing would keep everyone else from the loop."""
    prediction = await asyncio.to_thread(predict, "v1", event, delivery)
    await predictions.publish(prediction)


def reclassify(event: DigitSeen, delivery: Delivery) -> None:
    """Classify with v2: the handler for `rstream replay`. A plain function; rstream runs it in a thread."""
    predictions_v2.sync.publish(predict("v2", event, delivery))


def predict(version: str, event: DigitSeen, delivery: Delivery) -> Prediction:
    """Real inference on real pixels; blocks while it computes."""
    model = models.load(version)
    digit, confidence = model.classify(event.pixels)
    return Prediction(
        device=event.device,
        number=event.number,
        source=str(delivery.id),
        model=model.name,
        digit=digit,
        confidence=confidence,
        attempt=delivery.attempt,
        worker=delivery.worker,
    )

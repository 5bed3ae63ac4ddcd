"""What travels: an image that a device saw, and what a model made of it."""

from rstream import Event


class DigitSeen(Event):
    """One handwritten digit, as a device sent it."""

    device: str
    number: int  # its place in the device's own series, from 0
    image: int  # which of scikit-learn's 1,797 images
    truth: int  # rides along for the report; no model is shown it
    pixels: bytes  # 8 × 8, one byte each, 0 (paper) to 16 (ink)


class Prediction(Event):
    """What a model read in one image, and which delivery it was."""

    device: str
    number: int
    source: str  # id of the entry that carried the image
    model: str
    digit: int
    confidence: float
    attempt: int
    worker: str

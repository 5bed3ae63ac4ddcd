"""Two real models of the bundled digits, and the split that keeps their scores honest.

Half of the images (drawn with a fixed seed, balanced by digit) may be learned from: v1 learns from 100 of
them, v2 from all. Every image is published, but accuracy is counted only on those that are in no model's
`learned_from`.
"""

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC

DIRECTORY = "DIGITS_DIR"  # environment variable: where the trainer leaves the models for the workers
SEED = 1797

_loading = threading.Lock()


@dataclass(frozen=True)
class Images:
    """All images (one row of 64 bytes each) and the digits they show."""

    pixels: np.ndarray
    truth: np.ndarray

    def __len__(self) -> int:
        return len(self.truth)


@dataclass(frozen=True)
class Model:
    """A trained model that knows which images it has seen."""

    name: str
    estimator: Any
    learned_from: frozenset[int]

    def classify(self, pixels: bytes) -> tuple[int, float]:
        """The digit it reads in one image, and how sure it is, 0 to 1."""
        row = np.frombuffer(pixels, dtype=np.uint8).reshape(1, -1)
        chances = self.estimator.predict_proba(row)[0]
        best = int(chances.argmax())
        return int(self.estimator.classes_[best]), float(chances[best])


@cache
def images() -> Images:
    """scikit-learn's handwritten digits; they come with the package, nothing is downloaded."""
    bunch = load_digits()
    return Images(bunch.data.astype(np.uint8), bunch.target)


def to_learn_from() -> Sequence[int]:
    """The half of the images that may be learned from, in an order that is the same in every run."""
    everything = np.arange(len(images()))
    half, _ = train_test_split(everything, train_size=0.5, stratify=images().truth, random_state=SEED)
    return [int(index) for index in half]


def train_v1() -> Model:
    """The model of the first week: a forest, and only 100 labelled images to grow it from."""
    return _train("forest-v1", RandomForestClassifier(50, random_state=SEED), to_learn_from()[:100])


def train_v2() -> Model:
    """The better one: an RBF support vector machine, from nine times the labels."""
    # The calibration turns the machine's margins into probabilities; its seedless folds are deterministic.
    machine = CalibratedClassifierCV(SVC(gamma=0.001, C=10), ensemble=False)
    return _train("svm-v2", machine, to_learn_from())


def _train(name: str, estimator: Any, indices: Sequence[int]) -> Model:
    estimator.fit(images().pixels[indices], images().truth[indices])
    return Model(name, estimator, frozenset(indices))


def save(model: Model, version: str) -> None:
    """Leave the model where `load` finds it, in this process and in others."""
    joblib.dump(model, _path(version))


def load(version: str) -> Model:
    """The model of this version, read from its file once per process."""
    # Sixteen handlers ask at the same moment; without the lock each would read the file.
    with _loading:
        return _load(version)


@cache
def _load(version: str) -> Model:
    model: Model = joblib.load(_path(version))
    return model


def _path(version: str) -> Path:
    return Path(os.environ[DIRECTORY], f"{version}.joblib")

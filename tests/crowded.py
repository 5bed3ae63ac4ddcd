"""As tests/steps.py, in workers that keep so little in memory that much has to be put aside."""

from rstream.worker import order
from tests.steps import app

order.KEEP, order.BACKLOG = 8, 40

__all__ = ["app"]

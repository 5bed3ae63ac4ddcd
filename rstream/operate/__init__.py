"""What operators do while everything runs: see who holds what, look at one entry, pause a group, cancel a delivery.

Async functions and plain dataclasses, for the command line and the dashboard alike. Redis is asked in rstream/store.
"""

from rstream.operate.cancel import Cancelled, cancel
from rstream.operate.pause import pause, paused, resume, streams_of
from rstream.operate.pending import Pending, PendingPage, pending
from rstream.operate.show import Claim, GroupState, Shown, show
from rstream.store.pause import Pause

__all__ = [
    "Cancelled",
    "Claim",
    "GroupState",
    "Pause",
    "Pending",
    "PendingPage",
    "Shown",
    "cancel",
    "pause",
    "paused",
    "pending",
    "resume",
    "show",
    "streams_of",
]

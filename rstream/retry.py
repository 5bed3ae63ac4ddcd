"""When a failed delivery is tried again. Pure: no clock, and no randomness of its own."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

_YEAR = 365 * 86_400.0


class Retry(Exception):
    """Raised by a handler: try this delivery again, `after` so many seconds (default: as its policy says).

    It counts as an attempt. Not logged as an error.
    """

    def __init__(self, after: float | timedelta | None = None) -> None:
        self.after = after.total_seconds() if isinstance(after, timedelta) else after
        if self.after is not None and not 0 <= self.after <= _YEAR:
            raise ValueError(f"Retry(after={after!r}): it must be between 0 seconds and a year")
        super().__init__("as soon as its policy says" if self.after is None else f"in {self.after:g} s")


class Reject(Exception):
    """Raised by a handler: never try this delivery again; set it aside as a dead letter with this reason."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class RetryPolicy(BaseModel):
    """max_attempts: handler starts before the entry is dead-lettered · initial_delay, max_delay: seconds · factor: each
    delay is the one before times this · jitter: the part of a delay that is random (0.2: a delay of 10 s becomes 8 to
    10 s) · total_timeout: seconds since the event was published after which no attempt is begun any more ·
    non_retryable: exceptions after which none is.

    The ideas, and `non_retryable`, are those of Temporal's retry policies
    (https://docs.temporal.io/encyclopedia/retry-policies).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    max_attempts: int = Field(default=3, ge=1)
    initial_delay: float = Field(default=1.0, ge=0, le=_YEAR)
    factor: float = Field(default=2.0, ge=1, le=100)
    max_delay: float = Field(default=60.0, ge=0, le=_YEAR)
    jitter: float = Field(default=0.2, ge=0, le=1)
    total_timeout: Annotated[float, Field(gt=0, le=_YEAR)] | None = None
    non_retryable: tuple[type[BaseException], ...] = ()

    def delay_after(
        self, attempt: int, error: BaseException | None = None, *, age: float = 0, dice: float = 0
    ) -> float | None:
        """Seconds until the attempt after `attempt` (from 1), or None where there is none.

        age: seconds since the event was published · dice: a random number from 0 to 1.
        """
        kind = type(error)  # not isinstance(): that asks the object, which may have its own mind
        if attempt >= self.max_attempts or issubclass(kind, (Reject, *self.non_retryable)):
            return None
        delay = self._delay(attempt) * (1 - self.jitter * dice)
        if issubclass(kind, Retry) and (after := getattr(error, "after", None)) is not None:
            delay = after
        if self.total_timeout is not None and age + delay > self.total_timeout:
            return None
        return delay

    def _delay(self, attempt: int) -> float:
        # The exponent is bounded so that a large max_attempts cannot overflow a float.
        return float(min(self.max_delay, self.initial_delay * self.factor ** min(attempt - 1, 64)))

"""When a failed delivery is tried again. Pure: no clock, no randomness of its own."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

_YEAR = 365 * 86_400.0


class RetryPolicy(BaseModel):
    """max_attempts: handler starts before the entry is dead-lettered · initial_delay, max_delay: seconds ·
    factor: each delay is the one before times this.

    The names follow Temporal's retry policies.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_attempts: int = Field(default=3, ge=1)
    initial_delay: float = Field(default=1.0, ge=0, le=_YEAR)
    factor: float = Field(default=2.0, ge=1, le=100)
    max_delay: float = Field(default=60.0, ge=0, le=_YEAR)

    def delay_after(self, attempt: int) -> float | None:
        """Seconds until the attempt after `attempt` (from 1), or None where there is none."""
        if attempt >= self.max_attempts:
            return None
        # The exponent is bounded so that a large max_attempts cannot overflow a float.
        return float(min(self.max_delay, self.initial_delay * self.factor ** min(attempt - 1, 64)))

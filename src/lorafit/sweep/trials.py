"""One trial of a search, as everybody may read it."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

State = Literal["running", "finished", "stopped early", "failed"]


@dataclass(frozen=True)
class Trial:
    """One trial.

    Attributes:
        number: from 0.
        changes: the recipe's keys that it chose, and their values.
        state: how far it came.
        score: the best epoch's validation score; NaN where it did not come to its end.
        folder: its run's.
        host: the machine on which that lies.
        reason: why it failed.
        facts: loss, best epoch, seconds, trained parameters.
    """

    number: int
    changes: dict[str, Any]
    state: State
    score: float
    folder: Path
    host: str
    reason: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def merit(self) -> tuple[float, float]:
        """What is compared: the score, and of equal ones the lower loss."""
        return (-math.inf if math.isnan(self.score) else self.score), -self.facts.get("loss", math.inf)


def best_of(trials: list[Trial]) -> Trial | None:
    """Return the trial with the highest score, of equals the one with the lower loss, or None if none is finished."""
    return max((trial for trial in trials if trial.state == "finished"), key=lambda trial: trial.merit, default=None)

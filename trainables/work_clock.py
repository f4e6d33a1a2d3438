"""For how long a computation has worked, over interruptions."""

from __future__ import annotations

import json
import time
from pathlib import Path

#: Beside a state, and among a stage's files.
SECONDS_FILE = "seconds.json"


class WorkClock:
    """For how long a computation has worked.

    It starts when its process does the work itself: that a stage has waited for machines, or for
    room on them, says nothing of its settings. Killed computations write nothing at their end, so
    the seconds are kept with each state; what comes after it is done again, and counts then.

    Args:
        before_s: what went into the state that is gone on from.
    """

    def __init__(self, before_s: float = 0.0) -> None:
        self._before_s = before_s
        self._started_s = time.monotonic()

    @classmethod
    def going_on(cls, folder: Path) -> WorkClock:
        """That of the state in a folder."""
        return cls(seconds_worked(folder) or 0.0)

    @property
    def seconds(self) -> float:
        """Until now."""
        return self._before_s + time.monotonic() - self._started_s

    def write(self, folder: Path) -> None:
        """Keep them beside a state, or in the folder of a stage that is done."""
        (folder / SECONDS_FILE).write_text(json.dumps({"worked_s": self.seconds}), encoding="utf-8")


def seconds_worked(folder: Path) -> float | None:
    """What a :class:`WorkClock` has written there; None where none has."""
    path = folder / SECONDS_FILE
    return json.loads(path.read_bytes())["worked_s"] if path.exists() else None

"""When a run has to end, and how what makes its data ready ends in time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from seld.errors import InputError
from seld.shards import Executor

Item = TypeVar("Item")
Result = TypeVar("Result")


class OutOfTimeError(Exception):
    """The time limit was reached before the data were ready."""


@dataclass(frozen=True)
class Deadline:
    """When a run has to end.

    Attributes:
        at: of ``time.monotonic()``; None for never.
    """

    at: float | None = None

    @classmethod
    def after(cls, hours: float | None) -> Deadline:
        """So long from now."""
        if hours is None:
            return cls()
        if not hours > 0:
            raise InputError("command line", "--budget-hours", hours, "more than 0")
        return cls(time.monotonic() + hours * 3600)

    @property
    def is_over(self) -> bool:
        """Whether it has been reached."""
        return self.at is not None and time.monotonic() >= self.at

    def seconds_left(self) -> float | None:
        """For trials; a moment, where what came before them took too long."""
        return None if self.at is None else max(1.0, self.at - time.monotonic())

    def check(self) -> None:
        """Between two pieces of work: raise :class:`OutOfTimeError` once it has been reached."""
        if self.is_over:
            raise OutOfTimeError

    def stops(self, progress: Callable[[int, int], None]) -> Callable[[int, int], None]:
        """``progress`` that ends the work it is told of, unless all is done."""

        def moved(done: int, total: int) -> None:
            progress(done, total)
            if done < total:
                self.check()

        return moved

    def keeps_from_starting(
        self, progress: Callable[[int, int], None]
    ) -> Callable[[int, int], None]:
        """Likewise of work whose pieces do not stay: begun in time, it is finished."""
        begun = False

        def moved(done: int, total: int) -> None:
            nonlocal begun
            progress(done, total)
            if done < total and not begun:
                self.check()
            begun = True

        return moved


#: Of a run that takes as long as it takes.
NEVER = Deadline()


@dataclass(frozen=True)
class StoppedInTime:
    """An executor that gives no further results after the deadline.

    What is there already is none of its work: where nothing is left to do, nothing is stopped.
    """

    executor: Executor
    deadline: Deadline

    def map(
        self, function: Callable[[Item], Result], items: Sequence[Item], *, workers: int
    ) -> Iterator[Result]:
        """See :class:`seld.shards.Executor`."""
        self.deadline.check()
        results = self.executor.map(function, items, workers=workers)
        for done, result in enumerate(results, start=1):
            yield result
            if done < len(items):
                self.deadline.check()

"""Names for what goes wrong in a trial, and what is done about each."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Iterator

import ray.exceptions
import torch
from ray.train import TrainingFailedError

from seld.errors import InputError
from seld.records import FAILURE_KINDS, Failure
from trainables.steps import NonFiniteLossError

#: How many more times a stage is tried after each kind of failure, and why.
RETRIES: dict[str, int] = {
    "gpu_memory": 1,  # a neighbour on a shared GPU may have gone
    "host_memory": 1,  # likewise
    "non_finite_loss": 0,  # the same seed would diverge again
    "bad_data": 0,
    "disk_full": 0,  # writing more does not help
    "lost_node": 3,  # spot machines come and go
    "timeout": 1,
    "code_error": 0,
}

_LOST = (
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.ActorDiedError,
    ray.exceptions.ActorUnavailableError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.OwnerDiedError,
    ray.exceptions.ObjectLostError,
)


def failure_kind(error: BaseException) -> str:
    """The kind (a key of ``seld.records.FAILURE_KINDS``) of an exception or of its causes."""
    for cause in _causes(error):
        if isinstance(cause, torch.OutOfMemoryError):
            return "gpu_memory"
        if isinstance(cause, (MemoryError, ray.exceptions.OutOfMemoryError)):
            return "host_memory"
        if isinstance(cause, NonFiniteLossError):
            return "non_finite_loss"
        if isinstance(cause, InputError):
            return "bad_data"
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return "disk_full"
        if isinstance(cause, (TimeoutError, ray.exceptions.GetTimeoutError)):
            return "timeout"
        if isinstance(cause, _LOST):
            return "lost_node"
    return "code_error"


def describe_failure(error: BaseException, *, stage: str, attempts: int) -> Failure:
    """The record of a failure: its kind, first cause and full traceback."""
    kind = failure_kind(error)
    assert kind in FAILURE_KINDS
    *_, first = _causes(error)
    retries = RETRIES[kind]
    return Failure(
        kind=kind,
        message=str(first).strip().splitlines()[0] if str(first).strip() else type(first).__name__,
        traceback="".join(traceback.format_exception(error)),
        stage=stage,
        policy="not tried again" if retries == 0 else f"tried {retries} more times",
        attempts=attempts,
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """``error`` and what caused it, through Ray's wrappers, outermost first."""
    seen: set[int] = set()
    pending = [error]
    while pending:
        current = pending.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        if isinstance(current, TrainingFailedError):
            pending += list(getattr(current, "worker_failures", {}).values())
        inner = getattr(current, "cause", None)
        if isinstance(inner, BaseException):
            pending.append(inner)
        if current.__cause__ is not None:
            pending.append(current.__cause__)

"""Names for what goes wrong in a trial, and what is done about each."""

from __future__ import annotations

import errno
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from typing import TypeVar

import ray.exceptions
import torch
from ray.train.v2._internal import exceptions as train_exceptions

from seld.errors import InputError, first_line
from seld.records import FAILURE_KINDS, Failure
from trainables.steps import NonFiniteLossError

Item = TypeVar("Item")
Result = TypeVar("Result")

#: How many more times a stage is tried after each kind of failure, and why. The one place that
#: decides it for failures of a stage; Ray itself only starts a trial again whose own process has
#: died, and Ray Train asks again for workers that find no room.
RETRIES: dict[str, int] = {
    # A neighbour on a shared GPU may have gone; then the trial goes on with half the batch.
    "gpu_memory": 1,
    "host_memory": 1,  # a neighbour's may be free again
    "non_finite_loss": 0,  # the same seed would diverge again
    "bad_data": 0,
    "disk_full": 0,  # writing more does not help
    "storage_unreachable": 6,  # networks and buckets come back, within minutes of growing pauses
    "lost_node": 3,  # spot machines come and go
    "timeout": 1,
    "code_error": 0,
}
#: Kinds that machines, disks and networks are to blame for, not the trial: once those are mended,
#: the same settings may well finish.
NOT_OF_THE_TRIAL = frozenset(
    {"host_memory", "disk_full", "storage_unreachable", "lost_node", "timeout"}
)
#: First wait before something is tried again; doubles with every further try.
BACKOFF_S = 5.0

_LOST = (
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.ActorDiedError,
    ray.exceptions.ActorUnavailableError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.OwnerDiedError,
    ray.exceptions.ObjectLostError,
    train_exceptions.WorkerGroupStartupFailedError,
    train_exceptions.WorkerHealthCheckFailedError,
)
_TIMEOUTS = (
    TimeoutError,
    train_exceptions.CollectiveTimeoutError,
    train_exceptions.WorkerGroupStartupTimeoutError,
    train_exceptions.WorkerHealthCheckTimeoutError,
)

#: Of a disk or bucket behind a network; s3fs makes such numbers of what S3 answers.
_UNREACHABLE_NUMBERS = {
    *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT),
    *(errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH),
    errno.EBUSY,  # "slow down", "service unavailable"
    121,  # "internal error": EREMOTEIO, which not every system names
}
#: The same of clients of buckets, by name: they need not be installed.
_UNREACHABLE_CLASSES = {
    "aiohttp.client_exceptions.ClientConnectionError",
    "aiohttp.client_exceptions.ClientPayloadError",
    "botocore.exceptions.ConnectionError",
    "botocore.exceptions.HTTPClientError",
    "fsspec.exceptions.FSTimeoutError",
}
#: The same of Arrow, through which Ray Train keeps checkpoints; it has only words.
_UNREACHABLE_WORDS = tuple(
    f"AWS Error {word}"
    for word in (
        *("NETWORK_CONNECTION", "REQUEST_TIMEOUT", "SLOW_DOWN", "THROTTLING"),
        *("SERVICE_UNAVAILABLE", "INTERNAL_FAILURE"),
    )
)

#: torch.save has only these words for a write that the disk took no more of.
_SHORT_WRITE = ("PytorchStreamWriter failed writing", "inline_container.cc")

#: What CUDA and its libraries say where the GPU's memory is used up.
_GPU_SHORT = (
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUFFT_ALLOC_FAILED",
    # All that is left of it where no plan of a convolution finds room for its workspace.
    "unable to find an engine to execute this computation",
    "Cuda failure 2 'out of memory'",  # NCCL's
)
#: What CUDA says of a GPU that is broken; what it says of a kernel that is wrong is not among it.
_GPU_BROKEN = (
    "uncorrectable ECC error",
    "uncorrectable NVLink error",
    "hardware stack error",
    "unspecified launch failure",
    "GPU is lost",
)

#: Where Ray's wrappers keep what they wrap.
_WRAPPED_AS = (
    "cause",  # RayTaskError
    "worker_failures",  # WorkerGroupError: rank → exception
    "controller_failure",  # ControllerError
    "health_check_failure",  # WorkerHealthCheckFailedError
    "_base_exc",  # UserExceptionWithTraceback
)


def failure_kind(error: BaseException) -> str:
    """The kind (a key of ``seld.records.FAILURE_KINDS``) of an exception or of its causes.

    Causes are asked innermost first: what a worker died of says more than that it died. Workers
    that only tell that another went away say least.
    """
    causes = list(_causes(error))
    for cause in reversed(causes):
        kind = _kind_of(cause)
        if kind is not None:
            return kind
    first = [cause for cause in causes if not list(_wrapped(cause))]
    return "lost_node" if first and all(map(_is_lost_peer, first)) else "code_error"


def _kind_of(error: BaseException) -> str | None:
    if isinstance(error, torch.OutOfMemoryError) or _gpu_library_is_short_of_memory(error):
        return "gpu_memory"
    if isinstance(error, (MemoryError, ray.exceptions.OutOfMemoryError)) or _killed_for_memory(
        error
    ):
        return "host_memory"
    if isinstance(error, NonFiniteLossError):
        return "non_finite_loss"
    if isinstance(error, InputError):
        return "bad_data"
    if _disk_is_full(error):
        return "disk_full"
    if _storage_is_unreachable(error):
        return "storage_unreachable"
    if isinstance(error, _TIMEOUTS):
        return "timeout"
    if isinstance(error, _LOST) or _gpu_is_broken(error):
        return "lost_node"
    return None


def _is_lost_peer(error: BaseException) -> bool:
    """A collective operation whose other end has gone; Gloo has only words for it."""
    if isinstance(error, torch.distributed.DistError):
        return "invalid usage" not in str(error)  # NCCL's word for what no other try makes right
    return isinstance(error, RuntimeError) and "gloo/transport" in str(error)


def _gpu_library_is_short_of_memory(error: BaseException) -> bool:
    """Whether a CUDA library found no GPU memory for itself, which only its text says."""
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _GPU_SHORT)


def _gpu_is_broken(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _GPU_BROKEN)


def _killed_for_memory(error: BaseException) -> bool:
    """An actor that Ray's memory monitor killed says so in words only."""
    return isinstance(error, ray.exceptions.RayActorError) and "running low on memory" in str(error)


def _disk_is_full(error: BaseException) -> bool:
    if isinstance(error, ray.exceptions.OutOfDiskError):
        return True
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _SHORT_WRITE)


def _storage_is_unreachable(error: BaseException) -> bool:
    if isinstance(error, (ConnectionError, socket.gaierror)):
        return True
    if isinstance(error, OSError) and error.errno in _UNREACHABLE_NUMBERS:
        return True
    if isinstance(error, OSError) and any(words in str(error) for words in _UNREACHABLE_WORDS):
        return True
    names = {f"{each.__module__}.{each.__qualname__}" for each in type(error).__mro__}
    return not names.isdisjoint(_UNREACHABLE_CLASSES)


def with_retries(function: Callable[[Item], Result], item: Item) -> Result:
    """``function(item)``, tried again as long as storage is out of reach.

    Raises:
        InputError: it stays so, or the function says so.
    """
    attempts = 0
    while True:
        attempts += 1
        try:
            return function(item)
        except Exception as error:
            if failure_kind(error) != "storage_unreachable":
                raise
            if attempts > RETRIES["storage_unreachable"]:
                if isinstance(error, InputError):
                    raise
                expected = f"within reach in {attempts} tries (then the same command goes on)"
                found = f"{type(error).__name__}: {error}"
                raise InputError("storage", "answer", found, expected) from error
        time.sleep(BACKOFF_S * 2 ** (attempts - 1))


def describe_failure(error: BaseException, *, stage: str, attempts: int) -> Failure:
    """The record of a failure: its kind, first cause, full traceback and what was done about it.

    Args:
        error: what was raised last.
        stage: what failed.
        attempts: how often it was tried, since its last progress.
    """
    kind = failure_kind(error)
    assert kind in FAILURE_KINDS
    causes = list(_causes(error))
    named = [cause for cause in causes if _kind_of(cause) == kind]
    first = (named or causes)[-1]
    retries = max(attempts - 1, 0)
    return Failure(
        kind=kind,
        message=first_line(first),
        traceback="".join(traceback.format_exception(error)),
        stage=stage,
        policy={0: "not tried again", 1: "tried once more"}.get(
            retries, f"tried {retries} more times"
        ),
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
        pending += _wrapped(current)


def _wrapped(error: BaseException) -> Iterator[BaseException]:
    """What is directly within ``error``."""
    held: list[object] = []
    for name in _WRAPPED_AS:
        value = getattr(error, name, None)
        held += value.values() if isinstance(value, dict) else [value]
    for inner in (*held, error.__cause__):
        if isinstance(inner, BaseException):
            yield inner

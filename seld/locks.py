"""One process of a machine at a time."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Wait until no other process is in a block of the same ``path``, and keep them out of this.

    The lock is the file's, which stays; a process that is killed lets go of it. A file system
    without locks (some network ones) keeps nobody out: what is guarded must then be work done
    twice, never harm.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as lock:
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield

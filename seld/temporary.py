"""Folders of a process's own that do not outlive it, however it ends."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """An empty folder on this machine's temporary disk, removed at the end of the block.

    A process that is killed cannot remove its own. Each folder has a lock beside it that is let go
    with its process, and whoever makes a folder removes those whose lock nobody holds.
    """
    shared = Path(tempfile.gettempdir()) / f"seld-temporary-{os.getuid()}"
    shared.mkdir(mode=0o700, exist_ok=True)
    for left in shared.glob("*.lock"):
        _remove_if_left_behind(left)
    path = shared / f"{uuid.uuid4().hex}.lock"
    with path.open("x") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = _folder_of(path)
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            path.unlink(missing_ok=True)


def _remove_if_left_behind(path: Path) -> None:
    # Held by a living process, or removed by another one meanwhile.
    with suppress(OSError), path.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(_folder_of(path), ignore_errors=True)
        path.unlink()


def _folder_of(lock: Path) -> Path:
    return lock.with_suffix("")

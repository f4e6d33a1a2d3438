"""Which code made a result: commit, uncommitted changes, package versions."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import socket
import subprocess
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

#: Our packages whose code makes results.
SOURCE_PACKAGES = ("seld", "trainables")
#: Names the commit where the code was shipped without its repository, as ``COMMIT`` or, where
#: files had changed since, ``COMMIT+``.
COMMIT_VARIABLE = "SELD_GIT_COMMIT"
PACKAGES = ("torch", "torchvision", "torchaudio", "ray", "optuna", "numpy", "pandas", "pyarrow")


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What a trial record says about the code that made it.

    ``source`` is a digest of the code itself, equal on all machines of a run; ``place`` is where
    the driver's lies, as ``host:folder``.
    """

    git_commit: str
    git_dirty: bool
    versions: dict[str, str]
    source: str = ""
    place: str = ""

    @property
    def commit_label(self) -> str:
        """The value of :data:`COMMIT_VARIABLE` for code like this."""
        return self.git_commit + ("+" if self.git_dirty else "")


class OtherCodeError(RuntimeError):
    """A worker would have computed with code that is not the driver's."""


def current_provenance() -> Provenance:
    """Of the checkout this process runs from, or was shipped from; else the commit is empty."""
    root = Path(__file__).parents[1]
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    commit = _git(root, "rev-parse", "HEAD")
    dirty = bool(_git(root, "status", "--porcelain", "--untracked-files=no"))
    if not commit:
        shipped = os.environ.get(COMMIT_VARIABLE, "")
        commit, dirty = shipped.rstrip("+"), shipped.endswith("+")
    return Provenance(
        git_commit=commit,
        git_dirty=dirty,
        versions=versions,
        source=source_digest(),
        place=_place(),
    )


@cache
def source_digest() -> str:
    """Of the code this process imports, wherever it was shipped to."""
    digest = hashlib.sha256()
    for package in SOURCE_PACKAGES:
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        # Each package by itself: Ray ships them to folders of their own.
        folder = Path(spec.origin).parent
        for path in sorted(folder.rglob("*.py")):
            digest.update(f"{package}/{path.relative_to(folder)}".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def require_same_source(driver: Provenance) -> None:
    """Refuse to compute with code that is not the driver's.

    A process that imports from the driver's own folder is not asked.

    Raises:
        OtherCodeError: naming the machine and what would help.
    """
    if driver.place != _place() and driver.source != source_digest():
        commit = _git(Path(__file__).parents[1], "rev-parse", "HEAD") or "unknown"
        raise OtherCodeError(
            f"{_place()} (commit {commit}) has other code than the driver's {driver.place} "
            f"(commit {driver.git_commit}): submit the run as a job, or ship the checkout to all "
            "nodes by `ray up` again"
        )


def _place() -> str:
    return f"{socket.gethostname()}:{Path(__file__).parents[1]}"


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
        )
    except (FileNotFoundError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()

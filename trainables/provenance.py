"""Which code made a result: commit, uncommitted changes, package versions."""

from __future__ import annotations

import platform
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "torchvision", "torchaudio", "ray", "optuna", "numpy", "pandas", "pyarrow")


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What a trial record says about the code that made it."""

    git_commit: str
    git_dirty: bool
    versions: dict[str, str]


def current_provenance() -> Provenance:
    """Of the checkout this process runs from; the commit is empty outside a git checkout."""
    root = Path(__file__).parents[1]
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return Provenance(
        git_commit=_git(root, "rev-parse", "HEAD"),
        git_dirty=bool(_git(root, "status", "--porcelain", "--untracked-files=no")),
        versions=versions,
    )


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
        )
    except (FileNotFoundError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()

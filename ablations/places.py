"""Where things are: the checkout, and under a storage URI the stages and results."""

from __future__ import annotations

import shutil
from pathlib import Path

from rich.console import Console

from seld.records import STUDY_FILE
from seld.storage import absolute, is_local, join, upload_folder, written_whole

ROOT = Path(__file__).parents[1]


def stages_root(storage: str | None, results: Path) -> str:
    """Where finished stages are kept: beside shards and results under a URI, else as said."""
    if storage is None:
        return str((results / "stages").resolve())
    # Ray Train takes no relative path.
    return absolute(storage) if is_local(storage) else join(storage, "stages")


def results_uri(storage: str | None, study: str) -> str | None:
    """Where a study's results are kept beside its stages; None where they stay in their folder."""
    if storage is None or is_local(storage):
        return None
    return join(storage, f"results/{study}")


def keep_plan(study_folder: Path, kept: str | None) -> None:
    """Copy ``study.json`` to where results are kept, if anywhere, before there are any.

    Whoever fetches them while the run goes on, or after its end by Ctrl-C, learns what is missing.
    """
    if kept is not None:
        with written_whole(join(kept, STUDY_FILE)) as copy:
            shutil.copyfile(study_folder / STUDY_FILE, copy)


def keep_results(study_folder: Path, storage: str | None, console: Console) -> None:
    """Copy tables and report beside the stages, where those are under a URI."""
    kept = results_uri(storage, study_folder.name)
    if kept is not None:
        upload_folder(study_folder, kept)
        console.print(f"kept in {kept}", markup=False, highlight=False, soft_wrap=True)


def print_report_path(report: Path, console: Console) -> None:
    """Say where to look, on a line that can be copied."""
    console.print(f"report: {report}", markup=False, highlight=False, soft_wrap=True)

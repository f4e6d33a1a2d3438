"""Results wherever they are kept: what became of a trial, and all of a study fetched from a bucket.

Results are below a folder (``--results``), or below a URI beside the stages (``--storage``).
"""

from __future__ import annotations

import argparse
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from ablations.data import make_writable
from ablations.places import only_run, print_report_path, results_uri, stages_root
from seld.errors import InputError
from seld.records import (
    FAILURE_KINDS,
    LOG_FILE,
    RECORD_FILE,
    STUDY_FILE,
    TRIALS_FOLDER,
    TrialRecord,
    read_record,
)
from seld.storage import fetch_folder, files_below, join, local_copy
from trainables.stages import StageStore


def is_asked_for(arguments: argparse.Namespace) -> bool:
    """Whether the command line is about results that are there."""
    return arguments.show is not None or bool(arguments.fetch)


def run(arguments: argparse.Namespace, study: str) -> int:
    """Do what ``--show`` or ``--fetch`` asks; returns the exit code."""
    console = Console()
    kept = results_uri(arguments.storage, study)
    if arguments.fetch:
        return fetch(kept, arguments.results / study, console)
    store = StageStore(stages_root(arguments.storage, arguments.results))
    return show(kept or str(arguments.results / study), store, arguments.show, console)


def fetch(kept: str | None, study_folder: Path, console: Console) -> int:
    """Copy what there is of a study from a bucket into a local folder, and report on it.

    A run puts its own report there when it ends; trials are there as soon as they have ended.
    """
    if kept is None:
        raise InputError("command line", "--storage", kept, "the URI of the run to fetch from")
    make_writable(study_folder, "--results")
    with only_run(study_folder):
        fetch_folder(kept, study_folder)
    from analysis import Analysis  # what draws takes a second to import

    analysis = Analysis.of([study_folder])
    analysis.print(console)
    print_report_path(analysis.write(study_folder / "report"), console)
    return 0


def show(study_folder: str, store: StageStore, wanted: str, console: Console) -> int:
    """Print record and log of every trial whose name begins with ``wanted``.

    Args:
        study_folder: folder or URI.
        store: of the stages; where their files are is told.
        wanted: name of a trial or its beginning, ``all``, or ``failed`` for all
            that failed or whose records cannot be read.

    Raises:
        InputError: there is no such trial, or no study.
    """
    trials = join(study_folder, TRIALS_FOLDER)
    files = files_below(trials)
    names = sorted({name.partition("/")[0] for name in files})
    if not names and STUDY_FILE not in files_below(study_folder):
        expected = "the folder of a study that has begun (--results, --storage, --name)"
        raise InputError(study_folder, STUDY_FILE, "missing", expected)
    chosen = [name for name in names if wanted == "all" or name.startswith(wanted)]
    if wanted == "failed":
        records = {name: _record(trials, name) for name in names}
        chosen = [name for name, record in records.items() if _has_failed(record)]
    if not chosen and wanted not in ("failed", "all"):
        known = ", ".join(names) or "none yet"
        expected = f"the name of a trial or its beginning, 'failed' or 'all'; there: {known}"
        raise InputError(trials, "--show", wanted, expected)
    for name in chosen:
        print_trial(_record(trials, name), store, _log(trials, name), name, console)
    if not chosen:
        console.print("no trial has failed" if names else "no trial has begun")
    return 0


def _has_failed(record: TrialRecord | InputError | None) -> bool:
    """A record that cannot be read may be of a failure: who asks for failures is to see it."""
    return isinstance(record, InputError) or (record is not None and record.status == "failed")


def print_trial(
    record: TrialRecord | InputError | None,
    store: StageStore,
    log: str,
    name: str,
    console: Console,
) -> None:
    """What became of a trial, why, where its networks are, and what it said on the way."""

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    console.rule(escape(name))
    if record is None:
        say("no record: under way, or its driver has died")
    elif isinstance(record, InputError):
        say(f"a record that cannot be read: {record}")
    else:
        say(f"{record.status}, {record.started_at} to {record.finished_at}, {record.git_commit}")
        for stage in record.stages:
            how = "computed" if stage.computed else "shared"
            say(f"  {stage.name} {stage.key}: {how}, {stage.duration_s:.1f} s")
            say(f"    {store.location(stage.name, stage.key) or 'its files are gone'}")
        if record.metrics:
            scores = ", ".join(f"{name} {value:.3f}" for name, value in record.metrics.items())
            say(f"  {scores}")
        if record.failure is not None:
            failure = record.failure
            say(f"  {failure.kind} in {failure.stage}: {FAILURE_KINDS[failure.kind]}")
            say(f"  {failure.message} (try {failure.attempts}; {failure.policy})")
    say(log or "no log")


def _record(trials: str, name: str) -> TrialRecord | InputError | None:
    with suppress(FileNotFoundError), local_copy(join(trials, f"{name}/{RECORD_FILE}")) as path:
        try:
            return read_record(path.parent)
        except InputError as error:
            return error
    return None


def _log(trials: str, name: str) -> str:
    with suppress(FileNotFoundError), local_copy(join(trials, f"{name}/{LOG_FILE}")) as path:
        return path.read_text(encoding="utf-8")
    return ""

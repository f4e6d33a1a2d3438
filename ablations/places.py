"""Where things are: the checkout, and under a storage URI the stages and results."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shlex
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from rich.console import Console

from ablations.wording import counted
from seld.errors import InputError
from seld.records import (
    RECORD_FILE,
    REFERENCE_FOLDER,
    STUDY_FILE,
    TRIALS_FOLDER,
    read_record,
    trial_folder,
)
from seld.storage import (
    absolute,
    check_writable,
    fetch_files,
    files_below,
    is_local,
    join,
    local_copy,
    refusals,
    upload_folder,
    written_whole,
)
from trainables.stage_keys import StageKey
from trainables.stages import StageStore

ROOT = Path(__file__).parents[1]

#: Below the results, or below the URI they are kept at: finished stages.
STAGES_FOLDER = "stages"
#: Of a sweep's folder: all that Optuna knows.
JOURNAL_FILE = "optuna.journal"
#: Likewise: who has run the sweep last, locked while they do.
LAST_RUN_FILE = "last-run.txt"
#: Of a grid's folder: locked while a command adds to its plan.
PLAN_LOCK_FILE = "study.lock"


def stages_root(storage: str | None, results: Path) -> str:
    """Where finished stages are kept: beside shards and results under a URI, else as said."""
    if storage is None:
        return str((results / STAGES_FOLDER).resolve())
    # Ray Train takes no relative path.
    return absolute(storage) if is_local(storage) else join(storage, STAGES_FOLDER)


def results_uri(storage: str | None, study: str) -> str | None:
    """Where a study's results are kept beside its stages; None where they stay in their folder."""
    if storage is None or is_local(storage):
        return None
    return join(storage, f"results/{study}")


@contextmanager
def only_run(study_folder: Path) -> Iterator[None]:
    """Hold the folder of a sweep: a second run would take the trials of the first for lost.

    Raises:
        InputError: another run holds it.
    """
    with (study_folder / LAST_RUN_FILE).open("a+", encoding="utf-8") as holder:
        try:
            fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder.seek(0)
            expected = "none at the same time; wait for its end, or choose another --name"
            raise InputError(study_folder, "a run", holder.read(), expected) from None
        except OSError:  # a shared disk without locks
            pass
        holder.truncate(0)
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        command = shlex.join(["python", *sys.argv])
        holder.write(f"{command} (since {since}, {socket.gethostname()}, process {os.getpid()})")
        holder.flush()
        yield


@contextmanager
def only_head(storage: str | None, sweep: str, console: Console) -> Iterator[None]:
    """Hold what a bucket keeps of a sweep, if one does, as :func:`only_run` holds its folder.

    Of two heads each would keep its journal in the place of the other's. One that has died holds
    it until its heart has stood still for as long as that of any stage's.

    Raises:
        InputError: another head holds it.
    """
    kept = results_uri(storage, sweep)
    if storage is None or kept is None:
        yield
        return
    check_writable(kept)
    waited_for: set[str] = set()

    def say(owner: str) -> None:
        if owner not in waited_for:
            console.print(f"waits to see whether {owner} still runs", markup=False, highlight=False)
        waited_for.add(owner)

    # Beside the stages: what is below the results is copied to and fro.
    store = StageStore(join(storage, STAGES_FOLDER))
    with store.hold(StageKey(name="sweep", digest=sweep), waiting=say) as owner:
        if owner is not None:
            expected = "none at the same time; wait for its end, or choose another --name"
            raise InputError(kept, "a run", owner, expected)
        yield


def keep_plan(study_folder: Path, kept: str | None) -> None:
    """Copy ``study.json`` to where results are kept, if anywhere, before there are any.

    Whoever fetches them while the run goes on, or after its end by Ctrl-C, learns what is missing.
    """
    if kept is not None:
        with written_whole(join(kept, STUDY_FILE)) as copy:
            shutil.copyfile(study_folder / STUDY_FILE, copy)


def keep_journal(study_folder: Path, kept: str | None, console: Console) -> None:
    """Copy what Optuna knows to where results are kept, if anywhere: a head may die with its disk.

    A run goes on without, and the next trial's end copies all of it.
    """
    if kept is None:
        return
    try:
        with written_whole(join(kept, JOURNAL_FILE)) as copy:
            shutil.copyfile(study_folder / JOURNAL_FILE, copy)
    except refusals(kept) as error:
        console.print(f"{JOURNAL_FILE} is not kept yet: {error}", markup=False, highlight=False)


def fetch_kept(study_folder: Path, kept: str | None, console: Console) -> None:
    """Copy what earlier runs of a sweep have kept, if anywhere, to a machine where none has been.

    Without it the plan, the proposals and other commands' trials would begin anew, and take the
    place of what is kept. What the folder has of its own stands, unless the sweep has gone on
    elsewhere since: then what is kept holds.
    """
    if kept is None:
        return
    there = files_below(kept)
    replaced = JOURNAL_FILE in there and _has_gone_on_elsewhere(study_folder, kept, console)
    ours: tuple[str, ...] = (JOURNAL_FILE,)
    if replaced or not (study_folder / STUDY_FILE).exists():
        ours += (f"{REFERENCE_FOLDER}/", f"{TRIALS_FOLDER}/", STUDY_FILE)
    wanted = [
        name
        for name in there
        if name.startswith(ours) and (replaced or not (study_folder / name).exists())
    ]
    # These come last: where they are, all is.
    last = (STUDY_FILE, JOURNAL_FILE)
    wanted.sort(key=lambda name: last.index(name) if name in last else -1)
    fetch_files(kept, wanted, study_folder)
    if wanted:
        console.print(f"goes on from {kept}", markup=False, highlight=False, soft_wrap=True)


def fetch_trials(study_folder: Path, kept: str | None, console: Console) -> None:
    """Copy the trials of a grid that other machines have kept, if anywhere, and this one has not.

    Of a trial that both have, the later record holds: one that failed here may have finished
    there. What is kept in the end is this folder, in the place of what was there.
    """
    if kept is None:
        return
    there = files_below(kept)
    names = {name.split("/")[1] for name in there if name.startswith(f"{TRIALS_FOLDER}/")}
    others = [name for name in sorted(names) if _is_later(kept, there, study_folder, name)]
    ours = tuple(f"{TRIALS_FOLDER}/{name}/" for name in others)
    # In order of name: of each trial the record comes last.
    wanted = [
        name
        for name in there
        if name.startswith(ours)
        or (name.startswith(f"{REFERENCE_FOLDER}/") and not (study_folder / name).exists())
    ]
    fetch_files(kept, wanted, study_folder)
    if others:
        said = f"{counted(len(others), 'trial')} of other machines taken from {kept}"
        console.print(said, markup=False, highlight=False, soft_wrap=True)


def _is_later(kept: str, there: Mapping[str, int], study_folder: Path, trial_id: str) -> bool:
    """Whether what is kept of a trial is later than what the study's folder has of it, if any."""
    folder = trial_folder(study_folder, trial_id)
    own, record = folder / RECORD_FILE, f"{TRIALS_FOLDER}/{trial_id}/{RECORD_FILE}"
    if record not in there or not own.exists():
        return record in there or not folder.exists()
    # Most are the same: to read the records of all would take a request for each.
    if own.stat().st_size == there[record]:
        return False
    with local_copy(join(kept, record)) as copy:
        return _finished_at(copy.parent) > _finished_at(folder)


def _finished_at(folder: Path) -> str:
    """Of a trial's record; without one that can be read, before all others."""
    try:
        return read_record(folder).finished_at
    except InputError:
        return ""


def _has_gone_on_elsewhere(study_folder: Path, kept: str, console: Console) -> bool:
    """Whether the kept journal has entries that the folder's own, if there is one, has not.

    Journals only grow. One that has entries of its own, too, as of a trial under way when its run
    died, is put aside: the stages of its trials are in the bucket.
    """
    journal = study_folder / JOURNAL_FILE
    if not journal.exists():
        return False
    own = _whole_lines(journal)
    with local_copy(join(kept, JOURNAL_FILE)) as copy:
        theirs = _whole_lines(copy)
    if own.startswith(theirs):
        return False
    if not theirs.startswith(own):
        aside = journal.with_name(f"{JOURNAL_FILE}.{hashlib.sha256(own).hexdigest()[:6]}")
        shutil.copyfile(journal, aside)
        console.print(
            f"the sweep has gone on elsewhere; {journal} was another, and is {aside.name} now",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    return True


def _whole_lines(journal: Path) -> bytes:
    content = journal.read_bytes()
    return content[: content.rfind(b"\n") + 1]


def keep_results(study_folder: Path, storage: str | None, console: Console) -> None:
    """Copy the study's folder beside the stages, where those are under a URI.

    Raises:
        InputError: they cannot be written there.
    """
    kept = results_uri(storage, study_folder.name)
    if kept is None:
        return
    try:
        upload_folder(study_folder, kept)
    except refusals(kept) as error:
        expected = f"one that can be written; all is in {study_folder}, the same command copies it"
        raise InputError(kept, "bucket", str(error), expected) from error
    console.print(f"kept in {kept}", markup=False, highlight=False, soft_wrap=True)


def print_report_path(report: Path, console: Console) -> None:
    """Say where to look, on a line that can be copied."""
    console.print(f"report: {report}", markup=False, highlight=False, soft_wrap=True)

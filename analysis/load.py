"""Studies on disk → trials in memory; what cannot be read is listed, never fatal."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from seld.errors import InputError, first_line
from seld.metrics import COUNT_COLUMNS
from seld.records import (
    COUNTS_FILE,
    RECORD_FILE,
    SCORE_COLUMNS,
    STUDY_FILE,
    TRIALS_FOLDER,
    StudyRecord,
    TrialRecord,
    read_record_of,
    read_study,
    trials_table,
)
from seld.settings import flat_mapping

#: Settings by which trials of one arm differ anyway.
_CELL_KEYS = ("seed", "annotation_minutes")

_READERS = 4

#: As trials are named: doa_wise-1.5min-seed0-93a1f0.
_TRIAL_ID = re.compile(r"(?P<arm>.+)-(?P<minutes>\d+(\.\d+)?)min-seed(?P<seed>\d+)\b")


@dataclass(frozen=True)
class Counts:
    """Additive metric statistics of one trial's predictions.

    Attributes:
        recordings: (recording,) identifiers in ascending order.
        values: (recording, class, column), columns as ``seld.metrics.COUNT_COLUMNS``.
    """

    recordings: tuple[str, ...]
    values: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Trial:
    """One readable trial; ``counts`` is None where it did not finish. Equal only to itself."""

    study_folder: Path
    arm: str
    record: TrialRecord
    counts: Counts | None

    @property
    def folder(self) -> Path:
        """Where the trial's files are."""
        return self.study_folder / TRIALS_FOLDER / self.record.trial_id

    @property
    def finished(self) -> bool:
        """Whether the trial has scores."""
        return self.record.status == "finished"

    @property
    def budget_minutes(self) -> float:
        """Annotated minutes the trial was fine-tuned on."""
        return self.record.annotation_minutes


@dataclass(frozen=True)
class StudyFolder:
    """A study's folder and its question; ``record`` is None where study.json is unusable."""

    folder: Path
    record: StudyRecord | None


@dataclass(frozen=True)
class Unreadable:
    """A file that could not be used, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class MissingTrial:
    """A trial without a record: planned and not begun, or under way."""

    study_folder: Path
    trial_id: str
    arm: str
    seed: int
    annotation_minutes: float


Labelled = TypeVar("Labelled", Trial, MissingTrial)


@dataclass(frozen=True)
class Results:
    """Everything that the given folders hold.

    Attributes:
        other_settings: trials of a grid in whose place (arm, seed, budget) another one counts, as
            after a command with other settings.
        other_tests: trials in a place that a grid does not plan, scored on recordings that none
            of its planned trials was scored on, as before a command with other data.
        labels: what an arm of a study's folder is called here, by folder and by the study's own
            name for it; in the order of the studies and of their plans, arms without a trial too.
        swept_arms: arms of sweeps: their trials are points of a response, not repetitions.
    """

    studies: tuple[StudyFolder, ...]
    trials: tuple[Trial, ...]
    unreadable: tuple[Unreadable, ...]
    missing: tuple[MissingTrial, ...]
    other_settings: tuple[Trial, ...]
    other_tests: tuple[Trial, ...]
    labels: Mapping[tuple[Path, str], str]
    swept_arms: frozenset[str]

    @property
    def finished(self) -> list[Trial]:
        """Trials with scores."""
        return [trial for trial in self.trials if trial.finished]

    @cached_property
    def cells(self) -> dict[tuple[str, float], list[Trial]]:
        """Trials of each compared (arm, budget), by seed; swept arms have no cells."""
        cells: dict[tuple[str, float], list[Trial]] = defaultdict(list)
        for trial in sorted(self.trials, key=lambda trial: trial.record.seed):
            if trial.arm not in self.swept_arms:
                cells[trial.arm, trial.budget_minutes].append(trial)
        return dict(cells)

    @cached_property
    def arms(self) -> list[str]:
        """Compared arms that have a trial, in the order in which their studies list them."""
        found = {trial.arm for trial in self.trials} - self.swept_arms
        return [arm for arm in dict.fromkeys(self.labels.values()) if arm in found]

    @property
    def only_swept(self) -> bool:
        """Whether sweeps were begun, and no arm is there to be compared."""
        sweeps = [study for study in self.studies if study.record and not study.record.cells]
        grids = [study for study in self.studies if study.record and study.record.cells]
        return not self.arms and bool(self.swept_arms or (sweeps and not grids))

    @cached_property
    def drawn_arms(self) -> list[str]:
        """All arms, the compared ones first: an arm's place gives its colour."""
        return [*self.arms, *sorted(self.swept_arms)]

    @cached_property
    def budgets_minutes(self) -> list[float]:
        """Annotation budgets of the compared arms, ascending."""
        return sorted({budget for _, budget in self.cells})

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per trial (``seld.records.trials_table``); ``arm`` is the label used here."""
        table = trials_table([trial.record for trial in self.trials])
        return table.assign(arm=[trial.arm for trial in self.trials]) if len(table) else table


def load_studies(folders: Sequence[Path]) -> Results:
    """Read study folders.

    Args:
        folders: study folders, or folders that hold study folders.

    Returns:
        All trials. An arm's name that means different things in two studies is prefixed with
        its study's name, or its folder where studies have the same name.

    Raises:
        InputError: a folder is not there or holds no study.
    """
    read = [_read_folder(folder) for folder in _study_folders(folders)]
    studies = [each.study for each in read]
    trials = [trial for each in read for trial in each.trials]
    labels = _arm_labels(read, _ambiguous_arms(trials))

    def labelled(items: Iterable[Labelled]) -> tuple[Labelled, ...]:
        return tuple(replace(item, arm=labels[item.study_folder, item.arm]) for item in items)

    compared = labelled(trials)
    return Results(
        studies=tuple(studies),
        trials=compared,
        unreadable=tuple(item for each in read for item in each.unreadable),
        missing=labelled(item for each in read for item in each.missing),
        other_settings=labelled(item for each in read for item in each.other_settings),
        other_tests=labelled(item for each in read for item in each.other_tests),
        labels=labels,
        swept_arms=_swept_arms(studies, compared),
    )


@dataclass(frozen=True, kw_only=True)
class _Contents:
    """What a study's folder holds; see :class:`Results`."""

    study: StudyFolder
    trials: Sequence[Trial]
    unreadable: Sequence[Unreadable]
    missing: Sequence[MissingTrial] = ()
    other_settings: Sequence[Trial] = ()
    other_tests: Sequence[Trial] = ()

    @property
    def arms(self) -> list[str]:
        """The study's own names for them: of its plan first, then of what else is there."""
        planned = self.study.record.arms if self.study.record else []
        items = (*self.trials, *self.missing, *self.other_settings, *self.other_tests)
        return list(dict.fromkeys([*planned, *sorted(item.arm for item in items)]))


def _read_folder(folder: Path) -> _Contents:
    """The study in a folder, its trials sorted by what may be said of them."""
    trials, broken = _read_trials(folder)
    try:
        plan = read_study(folder)
    except InputError as error:
        reason = Unreadable(folder / STUDY_FILE, first_line(error))
        return _Contents(
            study=StudyFolder(folder, None), trials=trials, unreadable=[reason, *broken]
        )
    trials, other_tests = _of_its_test(trials, plan)
    trials, other_settings = _one_per_place(trials, plan)
    begun = [item for item in broken if _is_under_way(item.path, plan)]
    broken = [item for item in broken if item not in begun]
    missing = _missing(folder, plan, trials, broken)
    if not plan.cells:  # a sweep's
        missing += [_proposed_trial(folder, item.path.name) for item in begun]
    return _Contents(
        study=StudyFolder(folder, plan),
        trials=trials,
        unreadable=broken,
        missing=missing,
        other_settings=other_settings,
        other_tests=other_tests,
    )


def read_counts(path: Path, class_count: int) -> Counts:
    """Read ``counts.parquet``; a recording without rows of a class has zeros there."""
    try:
        table = pq.read_table(path).to_pydict()
    except (OSError, pa.ArrowException) as error:
        raise InputError(path, "content", first_line(error), "metric counts as Parquet") from error
    lacking = sorted({"recording", "class_id", *COUNT_COLUMNS} - set(table))
    if lacking:
        raise InputError(path, "columns", lacking, "to be there")
    recordings, row = np.unique(np.asarray(table["recording"], dtype=str), return_inverse=True)
    class_id = np.asarray(table["class_id"], dtype=np.int64)
    if not len(recordings):
        raise InputError(path, "rows", 0, "at least one recording")
    if class_id.min() < 0 or class_id.max() >= class_count:
        raise InputError(path, "class_id", int(class_id.max()), f"0 to {class_count - 1}")
    values = np.zeros((len(recordings), class_count, len(COUNT_COLUMNS)))
    values[row, class_id] = np.stack(
        [np.asarray(table[column], dtype=np.float64) for column in COUNT_COLUMNS], axis=-1
    )
    return Counts(tuple(recordings.tolist()), values)


def _study_folders(folders: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            raise InputError("RESULTS_DIR", "folder", str(folder), "a study's results folder")
        if _is_study(folder):
            found.append(folder)
            continue
        inner = [inner for inner in sorted(folder.iterdir()) if inner.is_dir() and _is_study(inner)]
        if not inner:
            raise InputError(folder, "content", "no study.json", "a study's results folder")
        found += inner
    return list(dict.fromkeys(folder.resolve() for folder in found))


def _is_study(folder: Path) -> bool:
    return (folder / STUDY_FILE).is_file() or (folder / TRIALS_FOLDER).is_dir()


def _read_trials(folder: Path) -> tuple[list[Trial], list[Unreadable]]:
    trials_folder = folder / TRIALS_FOLDER
    if not trials_folder.is_dir():
        return [], []
    inner = sorted(inner for inner in trials_folder.iterdir() if inner.is_dir())
    with ThreadPoolExecutor(_READERS) as pool:
        read = list(pool.map(_read_trial, inner))
    trials = [item for item in read if isinstance(item, Trial)]
    return trials, [item for item in read if isinstance(item, Unreadable)]


def _read_trial(folder: Path) -> Trial | Unreadable:
    try:
        record = read_record_of(folder)
        counts = None
        if record.status == "finished":
            lacking = [name for name in SCORE_COLUMNS if record.metrics.get(name) is None]
            if lacking:
                raise InputError(folder / RECORD_FILE, "metrics", lacking, "to be there")
            counts = read_counts(folder / COUNTS_FILE, len(record.class_names))
    except (InputError, OSError) as error:
        return Unreadable(folder, first_line(error))
    return Trial(study_folder=folder.parent.parent, arm=record.arm, record=record, counts=counts)


def _is_under_way(folder: Path, study: StudyRecord) -> bool:
    """Whether a trial has begun and not ended: neither its tables nor its record.

    Of a grid that is one it plans; a sweep plans none, but names them all alike.
    """
    planned = {cell["trial_id"] for cell in study.cells}
    known = folder.name in planned if planned else _TRIAL_ID.match(folder.name)
    ended = (COUNTS_FILE, RECORD_FILE)
    return bool(known) and not any((folder / name).exists() for name in ended)


def _proposed_trial(study_folder: Path, trial_id: str) -> MissingTrial:
    """What the name of a sweep's trial says of it."""
    named = _TRIAL_ID.match(trial_id)
    assert named is not None
    return MissingTrial(
        study_folder=study_folder,
        trial_id=trial_id,
        arm=named["arm"],
        seed=int(named["seed"]),
        annotation_minutes=float(named["minutes"]),
    )


def _missing(
    folder: Path, study: StudyRecord, trials: list[Trial], broken: list[Unreadable]
) -> list[MissingTrial]:
    there = {trial.record.trial_id for trial in trials} | {item.path.name for item in broken}
    return [
        MissingTrial(
            study_folder=folder,
            trial_id=cell["trial_id"],
            arm=cell["arm"],
            seed=cell["seed"],
            annotation_minutes=cell["annotation_minutes"],
        )
        for cell in study.cells
        if cell["trial_id"] not in there
    ]


def _of_its_test(trials: list[Trial], study: StudyRecord) -> tuple[list[Trial], list[Trial]]:
    """The trials of a grid's own test, and those that other data have left in the folder.

    What is in a planned place is the plan's matter. Elsewhere a trial counts if it was scored on
    the recordings of a planned one: nobody could tell a curve through budgets of two tests from
    one of a single test. A sweep, which plans no cells, has one data set.
    """
    places = {_place(cell) for cell in study.cells}
    planned = {cell["trial_id"] for cell in study.cells}
    tests = {t.record.test_fingerprint for t in trials if t.record.trial_id in planned}
    strangers = [
        trial
        for trial in trials
        if places and _place_of(trial) not in places and trial.record.test_fingerprint not in tests
    ]
    return [trial for trial in trials if trial not in strangers], strangers


def _one_per_place(trials: list[Trial], study: StudyRecord) -> tuple[list[Trial], list[Trial]]:
    """The trials that count, and those in whose place another one does.

    Of a grid's (arm, seed, budget) the planned trial counts, run or not; where none is planned,
    the one that has finished last. A sweep, which plans no cells, has no places.
    """
    planned = {_place(cell): cell["trial_id"] for cell in study.cells}
    if not planned:
        return trials, []
    counted = set(planned.values())
    latest: dict[Any, str] = {}
    for trial in sorted(trials, key=lambda trial: (trial.finished, trial.record.finished_at)):
        latest[_place_of(trial)] = trial.record.trial_id
    counted |= {trial_id for place, trial_id in latest.items() if place not in planned}
    return (
        [trial for trial in trials if trial.record.trial_id in counted],
        [trial for trial in trials if trial.record.trial_id not in counted],
    )


def _place(cell: Mapping[str, Any]) -> tuple[str, int, float]:
    return cell["arm"], cell["seed"], cell["annotation_minutes"]


def _place_of(trial: Trial) -> tuple[str, int, float]:
    return trial.record.arm, trial.record.seed, trial.budget_minutes


def differing_settings(trials: Sequence[Trial]) -> list[str]:
    """Names of the settings in which trials of one arm and budget differ, but for their seeds."""
    flat = [flat_mapping(_without_cell(trial.record.config)) for trial in trials]
    names = sorted({name for settings in flat for name in settings})
    return [name for name in names if len({repr(settings.get(name)) for settings in flat}) > 1]


def _without_cell(config: Any) -> Any:
    if isinstance(config, dict):
        return {key: _without_cell(item) for key, item in config.items() if key not in _CELL_KEYS}
    return config


def _ambiguous_arms(trials: list[Trial]) -> set[str]:
    """Arm names that two studies use for different settings or tests, or for the same trials."""
    folders: dict[str, dict[Path, list[Trial]]] = defaultdict(lambda: defaultdict(list))
    for trial in trials:
        folders[trial.arm][trial.study_folder].append(trial)
    ambiguous = set()
    for arm, by_folder in folders.items():
        if len(by_folder) < 2:
            continue
        studies = list(by_folder.values())
        pooled = [trial for study in studies for trial in study]
        # One test at all budgets: nobody could tell a curve through two tests' budgets from one.
        tests = {trial.record.test_fingerprint for trial in pooled}
        places = Counter(_place_of(trial) for trial in pooled)
        if len(tests) > 1 or max(places.values()) > 1 or _settings_disagree(studies):
            ambiguous.add(arm)
    return ambiguous


def _settings_disagree(studies: Sequence[list[Trial]]) -> bool:
    """Whether the trials that several studies have of one arm are of different settings.

    At a budget that two studies share, all settings must be the same. Between other budgets, those
    must that no study varies by budget: ``finetune.steps``, say, may depend on it.
    """
    pooled = [trial for study in studies for trial in study]
    for budget in {trial.budget_minutes for trial in pooled}:
        shared = [at for study in studies if (at := _at_budget(study, budget))]
        if len(shared) > 1 and differing_settings([trial for at in shared for trial in at]):
            return True
    by_budget: set[str] = set()
    for study in studies:
        budgets = {trial.budget_minutes for trial in study}
        within = {name for at in budgets for name in differing_settings(_at_budget(study, at))}
        by_budget |= set(differing_settings(study)) - within
    return not by_budget.issuperset(differing_settings(pooled))


def _at_budget(trials: Sequence[Trial], budget_minutes: float) -> list[Trial]:
    return [trial for trial in trials if trial.budget_minutes == budget_minutes]


def _arm_labels(read: Sequence[_Contents], ambiguous: Set[str]) -> dict[tuple[Path, str], str]:
    """As :attr:`Results.labels`: an ambiguous arm's begins with its study's."""
    studies = _study_labels([each.study for each in read])
    return {
        (folder, arm): f"{studies[folder]}: {arm}" if arm in ambiguous else arm
        for folder, arms in ((each.study.folder, each.arms) for each in read)
        for arm in arms
    }


def _study_labels(studies: Sequence[StudyFolder]) -> dict[Path, str]:
    """What tells the studies apart: their names, or as much of their folders as differs."""
    names = {one.folder: one.record.name if one.record else one.folder.name for one in studies}
    labels = {}
    for folder, name in names.items():
        alike = [other for other in names if names[other] == name and other != folder]
        ends = ["/".join(folder.parts[-depth:]) for depth in range(1, len(folder.parts) + 1)]
        labels[folder] = (
            name
            if not alike
            else next(
                end for end in ends if not any(f"/{other}".endswith(f"/{end}") for other in alike)
            )
        )
    return labels


def _swept_arms(studies: Sequence[StudyFolder], trials: Sequence[Trial]) -> frozenset[str]:
    """Arms of sweeps, which plan no cells.

    Where study.json says nothing, those are taken for a sweep's that repeat a seed and budget.
    """
    sweeps = {study.folder for study in studies if study.record and not study.record.cells}
    unknown = {study.folder for study in studies if study.record is None}
    places = Counter(
        (trial.arm, *_place_of(trial)) for trial in trials if trial.study_folder in unknown
    )
    repeated = {arm for (arm, *_), count in places.items() if count > 1}
    return frozenset(repeated | {trial.arm for trial in trials if trial.study_folder in sweeps})

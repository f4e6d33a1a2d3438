"""What a trial leaves on disk, and its schema.

A study's results are one folder::

    results/<study>/
      study.json            the question, arms, budgets, seeds, baseline, command
      reference/*.csv       the scored recordings' annotations, once
      trials/<trial id>/
        record.json         everything below but the tables (written last, atomically)
        counts.parquet      additive metric statistics per test recording and class
        history.csv         stage,step,name,value: training curves and probes over time
        log.txt             when each stage began, waited, failed (with traceback) and ended
        predictions/*.csv   DCASE predictions of the test recordings
      trials.parquet, trials.csv, report/index.html
      tensorboard/<trial id>/   the same curves and scores while they grow, as event files
      logs/ray.log, logs/tune/  what Ray and the libraries print, what Ray Tune keeps
      optuna.journal            of a sweep: all that Optuna knows
      last-run.txt              likewise: who has run it last
      study.lock                of a grid: locked while a command adds to the plan

``analysis`` reads study, references and trials, and nothing else. Scores are fractions and degrees
as the metric gives them; points (×100) are made when a table is printed.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd

from seld.errors import InputError, first_line
from seld.storage import written_whole

SCHEMA_VERSION = 1

# The layout of a study's folder: what trials write is what analysis reads.
STUDY_FILE = "study.json"
REFERENCE_FOLDER = "reference"
TRIALS_FOLDER = "trials"
#: Of each trial.
RECORD_FILE = "record.json"
LOG_FILE = "log.txt"
HISTORY_FILE = "history.csv"
COUNTS_FILE = "counts.parquet"
PREDICTIONS_FOLDER = "predictions"

Status = Literal["finished", "failed", "stopped"]

#: Failure kinds, each with what it means to the reader of a table.
FAILURE_KINDS: dict[str, str] = {
    "gpu_memory": "the accelerator ran out of memory",
    "host_memory": "the machine ran out of memory",
    "non_finite_loss": "a loss or gradient was not finite",
    "bad_data": "a shard or recording could not be used",
    "disk_full": "the disk or bucket had no room",
    "storage_unreachable": "the disk or bucket, or the network to it, was out of reach",
    "lost_node": "a machine or worker process died",
    "timeout": "a stage made no progress for too long",
    "code_error": "an exception in the code",
}

#: The columns of ``trials.parquet`` and ``trials.csv`` that hold scores.
SCORE_COLUMNS: tuple[str, ...] = ("seld_error", "er20", "f20", "le_cd_deg", "lr_cd")


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a trial did not finish.

    Attributes:
        kind: a key of :data:`FAILURE_KINDS`.
        message: first line of the innermost cause.
        traceback: of the whole exception.
        stage: which one failed: pretrain, finetune or evaluate; ``begin`` or ``collect`` where the
            trial's own files could not be written; empty before any.
        policy: how often it was tried again, for people.
        attempts: tries of the stage, since its last progress.
    """

    kind: str
    message: str
    traceback: str
    stage: str
    policy: str
    attempts: int


@dataclass(frozen=True, kw_only=True)
class StageUse:
    """One stage as a trial used it; ``computed`` is false where another trial had made it."""

    name: str
    key: str
    computed: bool
    duration_s: float


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One trial: an arm with a seed and an annotation budget, and what came of it.

    ``config`` holds every setting, nested; ``parameters`` the few that vary in the study
    (flat, dotted names), which is what sweeps are analysed by. ``metrics`` has the keys of
    :data:`SCORE_COLUMNS`, the regression ``loss`` before any threshold, and where it can be told
    the :func:`~seld.elevation.elevation_correlation`; ``per_class`` and ``per_room`` rows carry the
    scores under a ``class_name`` or ``room``. ``probes`` are diagnostics of the pretrained encoder
    (retrieval, linear probes, embedding spread; chance levels under ``<name>_chance``).
    ``pretraining_learnt`` is of classes alone, whether sound finds pictures of its class better
    than by luck; an encoder that learnt directions only has it false. ``smaller_batches``
    (``finetune.batch_size`` → windows) is what did not fit the accelerator otherwise.
    """

    study: str
    trial_id: str
    arm: str
    seed: int
    annotation_minutes: float
    status: Status
    config: Mapping[str, Any] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    per_class: list[dict[str, Any]] = field(default_factory=list)
    per_room: list[dict[str, Any]] = field(default_factory=list)
    probes: Mapping[str, float] = field(default_factory=dict)
    pretraining_learnt: bool | None = None
    smaller_batches: Mapping[str, int] = field(default_factory=dict)
    failure: Failure | None = None
    stages: list[StageUse] = field(default_factory=list)
    durations_s: Mapping[str, float] = field(default_factory=dict)
    class_names: list[str] = field(default_factory=list)
    unannotated_classes: list[str] | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    git_commit: str = ""
    git_dirty: bool = False
    data_fingerprint: str = ""
    test_fingerprint: str = ""
    code_fingerprint: str = ""
    metric_version: str = ""
    started_at: str = ""
    finished_at: str = ""
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if self.failure is not None and self.failure.kind not in FAILURE_KINDS:
            kinds = f"one of {', '.join(FAILURE_KINDS)}"
            raise InputError("trial record", "failure.kind", self.failure.kind, kinds)
        if (self.status == "failed") != (self.failure is not None):
            raise InputError("trial record", "failure", self.failure, f"to fit {self.status!r}")

    @property
    def commit(self) -> str:
        """Of the code, in short and for people; empty where it is not known."""
        changed = " with uncommitted changes" if self.git_commit and self.git_dirty else ""
        return self.git_commit[:12] + changed


@dataclass(frozen=True, kw_only=True)
class StudyRecord:
    """What was asked: written before the first trial so that a report can say what is missing.

    ``cells`` lists every planned trial as ``{trial_id, arm, seed, annotation_minutes}``; ``goals``
    is what a sweep minimises, of which it knows no trial beforehand.
    """

    name: str
    question: str
    arms: list[str]
    baseline: str
    budgets_minutes: list[float]
    seeds: list[int]
    scale: str
    command: str
    cells: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    goals: list[str] = field(default_factory=lambda: ["seld_error"])
    schema_version: int = SCHEMA_VERSION


def trial_folder(study_folder: Path, trial_id: str) -> Path:
    """Where the trial's files are."""
    return study_folder / TRIALS_FOLDER / trial_id


def write_study(study: StudyRecord, study_folder: Path) -> None:
    """Write ``study.json``."""
    write_atomically(study_folder / STUDY_FILE, _as_json(study))


def read_study(study_folder: Path) -> StudyRecord:
    """Read ``study.json``, whose cells have all that plans and tables rely on.

    Raises:
        InputError: it is missing, of another schema, or holds what it should not.
    """
    path = study_folder / STUDY_FILE
    try:
        study = StudyRecord(**_read_json(path, StudyRecord))
    except TypeError as error:
        raise InputError(path, "record", str(error), "a study record") from error
    _check_study(study, path)
    return study


def write_record(record: TrialRecord, study_folder: Path) -> None:
    """Write ``record.json``; the trial's other files must be there already."""
    write_atomically(trial_folder(study_folder, record.trial_id) / RECORD_FILE, _as_json(record))


def read_record(folder: Path) -> TrialRecord:
    """Read one trial's ``record.json``.

    Raises:
        InputError: it is missing, of another schema, or holds what it should not.
    """
    path = folder / RECORD_FILE
    values = _read_json(path, TrialRecord)
    # One written by a newer or broken program can fail in ways that nothing here foresees (a list
    # where a mapping belongs).
    try:
        if values.get("failure") is not None:
            values["failure"] = Failure(**values["failure"])
        values["stages"] = [StageUse(**stage) for stage in values.get("stages", [])]
        record = TrialRecord(**values)
        _check_record(record, path)
    except (TypeError, AttributeError, KeyError) as error:
        raise InputError(path, "record", first_line(error), "a trial record") from error
    return record


def read_record_of(folder: Path) -> TrialRecord:
    """The record of the trial that the folder is named after: a copied folder would count twice."""
    try:
        record = read_record(folder)
    except OSError as error:
        raise InputError(folder / RECORD_FILE, "file", first_line(error), "readable") from error
    if record.trial_id != folder.name:
        raise InputError(folder, "trial_id", record.trial_id, "the folder's name")
    return record


def readable_records(study_folder: Path) -> list[TrialRecord]:
    """The records of a study that can be read, in order of id; a report names the others."""
    records = []
    for path in sorted((study_folder / TRIALS_FOLDER).glob(f"*/{RECORD_FILE}")):
        with suppress(InputError):
            records.append(read_record_of(path.parent))
    return records


def trials_table(records: list[TrialRecord]) -> pd.DataFrame:
    """One row per trial, as in ``trials.parquet``: identity, scores, probes, provenance.

    ``classes_learnt`` is the record's ``pretraining_learnt``. Swept parameters come as
    ``parameter.<dotted name>``, probes as ``probe.<name>``, durations as ``duration_s.<stage>``;
    nested config stays in ``record.json``.
    """
    rows = []
    for record in records:
        row: dict[str, Any] = {
            "study": record.study,
            "trial_id": record.trial_id,
            "arm": record.arm,
            "seed": record.seed,
            "annotation_minutes": record.annotation_minutes,
            "status": record.status,
            "failure_kind": record.failure.kind if record.failure else None,
            "failure_message": record.failure.message if record.failure else None,
            **{column: record.metrics.get(column) for column in SCORE_COLUMNS},
            "classes_learnt": record.pretraining_learnt,
            "smaller_batches": ", ".join(
                f"{name}={size}" for name, size in record.smaller_batches.items()
            ),
            "stages_computed": sum(stage.computed for stage in record.stages),
            "stages_shared": sum(not stage.computed for stage in record.stages),
            "git_commit": record.git_commit,
            "data_fingerprint": record.data_fingerprint,
            "test_fingerprint": record.test_fingerprint,
            "code_fingerprint": record.code_fingerprint,
            "metric_version": record.metric_version,
            "started_at": record.started_at,
            "finished_at": record.finished_at,
        }
        row |= {f"parameter.{name}": value for name, value in record.parameters.items()}
        row |= {f"probe.{name}": value for name, value in record.probes.items()}
        row |= {f"duration_s.{name}": value for name, value in record.durations_s.items()}
        rows.append(row)
    return pd.DataFrame(rows)


def write_atomically(path: Path, text: str) -> None:
    """Write ``text`` so that a reader sees the old file or the whole new one, never a part."""
    with (
        written_whole(str(path)) as temporary,
        temporary.open("w", encoding="utf-8") as stream,
    ):
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def _as_json(record: TrialRecord | StudyRecord) -> str:
    return json.dumps(dataclasses.asdict(record), indent=1, ensure_ascii=False)


def _read_json(path: Path, kind: type) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(path, "file", "missing", f"a {kind.__name__} as JSON") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(path, "content", str(error), f"a {kind.__name__} as JSON") from error
    if not isinstance(values, dict) or values.get("schema_version") != SCHEMA_VERSION:
        found = values.get("schema_version") if isinstance(values, dict) else type(values).__name__
        raise InputError(path, "schema_version", found, str(SCHEMA_VERSION))
    known = {item.name for item in dataclasses.fields(kind)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise InputError(path, "keys", unknown, f"only the fields of {kind.__name__}")
    return values


_NUMBER = (int, float)

#: What JSON's author calls the types of a record's fields.
_WORDS: dict[Any, str] = {
    str: "text",
    int: "a whole number",
    dict: "an object",
    list: "a list",
    _NUMBER: "a number",
}

#: JSON holds what it likes; what plans, tables and figures would stumble over is refused.
_RECORD_TYPES: dict[str, type | tuple[type, ...]] = {
    "annotation_minutes": _NUMBER,
    "seed": int,
    **dict.fromkeys(
        ("config", "parameters", "metrics", "probes", "smaller_batches", "durations_s", "versions"),
        dict,
    ),
    **dict.fromkeys(("per_class", "per_room", "class_names"), list),
    **dict.fromkeys(("arm", "trial_id", "study", "git_commit", "metric_version"), str),
    **dict.fromkeys(("data_fingerprint", "test_fingerprint", "code_fingerprint"), str),
    **dict.fromkeys(("started_at", "finished_at"), str),
}
_STUDY_LISTS: dict[str, type | tuple[type, ...]] = {
    "arms": str,
    "budgets_minutes": _NUMBER,
    "seeds": int,
    "cells": dict,
    "goals": str,
    "notes": str,
}
_CELL_TYPES: dict[str, type | tuple[type, ...]] = {
    "trial_id": str,
    "arm": str,
    "seed": int,
    "annotation_minutes": _NUMBER,
}


def _check_record(record: TrialRecord, path: Path) -> None:
    for name, kind in _RECORD_TYPES.items():
        value = getattr(record, name)
        if not isinstance(value, kind):
            raise InputError(path, name, value, _WORDS[kind])
    if record.status not in get_args(Status):
        raise InputError(path, "status", record.status, f"one of {', '.join(get_args(Status))}")
    score = SCORE_COLUMNS[0]
    for number, row in enumerate(record.per_room):
        value = row.get(score) if isinstance(row, dict) and "room" in row else None
        if not isinstance(value, _NUMBER):
            raise InputError(path, f"per_room[{number}]", row, f"a room and its {score}")
    for name, numbers in (("metrics", record.metrics), ("probes", record.probes)):
        for key, value in numbers.items():
            if not isinstance(value, _NUMBER):
                raise InputError(path, f"{name}.{key}", value, _WORDS[_NUMBER])


def _check_study(study: StudyRecord, path: Path) -> None:
    for name, kind in _STUDY_LISTS.items():
        value = getattr(study, name)
        if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
            raise InputError(path, name, value, f"a list of {_WORDS[kind]}")
    for name in ("name", "question", "baseline", "scale", "command"):
        if not isinstance(getattr(study, name), str):
            raise InputError(path, name, getattr(study, name), "text")
    for cell in study.cells:
        for name, kind in _CELL_TYPES.items():
            if not isinstance(cell.get(name), kind):
                raise InputError(path, f"cells, {name}", cell.get(name), _WORDS[kind])

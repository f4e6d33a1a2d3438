"""A study folder as trials leave it, from known truth: no training, no sound."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from seld.annotations import write_annotations
from seld.classes import STARSS_CLASSES
from seld.metrics import COUNT_COLUMNS, METRIC_VERSION, SCORE_NAMES, score_from_recordings
from seld.records import (
    Failure,
    StudyRecord,
    TrialRecord,
    trial_folder,
    write_record,
    write_study,
)

FRAMES = 600


@dataclass(frozen=True, kw_only=True)
class ArmTruth:
    """What an arm does: chances of finding and placing an event, and mean error where placed.

    Attributes:
        found: chance that a reference track is detected.
        near: chance that a detected track is within 20°.
        gain_per_doubling: what each doubling of the budget adds to ``found``.
        class_shift: added to ``found`` for single classes; by -1, a class is never found.
        probes: as in a trial's record; None where the arm is not pretrained.
        elevation_correlation: of each seed but the first, and of the first.
    """

    found: float = 0.55
    near: float = 0.7
    gain_per_doubling: float = 0.04
    class_shift: Mapping[str, float] = field(default_factory=dict)
    probes: Mapping[str, float] = field(default_factory=dict)
    elevation_correlation: tuple[float, float] = (0.8, 0.8)


HEALTHY_PROBES: Mapping[str, float] = {
    "retrieval_top1": 0.40,
    "retrieval_top1_chance": 0.06,
    "retrieval_direction_shuffled_top1": 0.15,
    "linear_doa_error_deg": 35.0,
    "linear_doa_error_deg_chance": 80.0,
    "linear_class_accuracy": 0.55,
    "linear_class_accuracy_chance": 0.15,
    "participation_ratio": 24.0,
    "temporal_variance_share": 0.4,
    "empty_direction_share": 0.7,
    "loss_share_empty_directions": 0.3,
}

VARIANTS: Mapping[str, ArmTruth] = {
    "scratch": ArmTruth(),
    "avc": ArmTruth(found=0.57, near=0.71, probes=HEALTHY_PROBES),
    "doa_wise": ArmTruth(found=0.63, near=0.80, probes=HEALTHY_PROBES),
    "recording_wise": ArmTruth(found=0.61, near=0.77, probes=HEALTHY_PROBES),
    "recording_wise_unrotated": ArmTruth(found=0.58, near=0.72, probes=HEALTHY_PROBES),
}


@dataclass(frozen=True, kw_only=True)
class SimulatedStudy:
    """How much is simulated, and how strongly seeds and recordings vary (standard deviations).

    Attributes:
        planned: study.json lists the trials, as a grid's does and a sweep's does not.
        goals: what a sweep minimises.
        effect: added to each arm's ``found``, by seed.
    """

    name: str = "variants"
    arms: Mapping[str, ArmTruth] = field(default_factory=lambda: VARIANTS)
    baseline: str = "scratch"
    budgets_minutes: Sequence[float] = (15.0, 60.0)
    seeds: Sequence[int] = (0, 1, 2)
    recordings: int = 24
    rooms: Sequence[int] = (2, 9, 23)
    seed_spread: float = 0.015
    recording_spread: float = 0.08
    unannotated_classes: Sequence[str] | None = STARSS_CLASSES
    predictions: bool = True
    planned: bool = True
    goals: Sequence[str] = ("seld_error",)
    effect: Callable[[int], float] = lambda _: 0.0
    random_seed: int = 0

    @property
    def recording_names(self) -> list[str]:
        """In the form of STARSS22's test files."""
        return [
            f"fold4_room{self.rooms[n % len(self.rooms)]}_mix{n:03d}"
            for n in range(self.recordings)
        ]


def write_simulated_study(
    folder: Path,
    study: SimulatedStudy | None = None,
    change: Callable[[TrialRecord], TrialRecord] = lambda record: record,
) -> Path:
    """Write the whole study; ``change`` may alter any record before it is written."""
    study = study or SimulatedStudy()
    generator = np.random.default_rng(study.random_seed)
    references = {
        name: simulated_reference(np.random.default_rng(n))
        for n, name in enumerate(study.recording_names)
    }
    (folder / "reference").mkdir(parents=True)
    if study.predictions:
        for name, table in references.items():
            write_annotations(table, folder / "reference" / f"{name}.csv")
    load = generator.integers(2, 30, size=(study.recordings, len(STARSS_CLASSES)))
    ease = generator.normal(0, study.recording_spread, size=(study.recordings, 1))
    cells = []
    for budget in study.budgets_minutes:
        for seed in study.seeds:
            common = generator.normal(0, study.seed_spread)
            for arm, truth in study.arms.items():
                record = TrialRecord(
                    study=study.name,
                    trial_id=f"{arm}-{budget:g}min-seed{seed}",
                    arm=arm,
                    seed=seed,
                    annotation_minutes=budget,
                    status="finished",
                    config={"arm": arm, "seed": seed, "annotation_minutes": budget},
                    probes=dict(truth.probes),
                    class_names=list(STARSS_CLASSES),
                    unannotated_classes=(
                        None
                        if study.unannotated_classes is None
                        else list(study.unannotated_classes)
                    ),
                    versions={"python": "3.11.2", "torch": "2.14.1"},
                    git_commit="0123456789abcdef0123456789abcdef01234567",
                    data_fingerprint="simulated-data",
                    test_fingerprint="simulated-test",
                    code_fingerprint="simulated-code",
                    metric_version=METRIC_VERSION,
                    durations_s={"total": 60.0},
                    started_at="2026-01-01T00:00:00+00:00",
                    finished_at="2026-01-01T00:01:00+00:00",
                )
                doublings = np.log2(budget / study.budgets_minutes[0])
                shift = np.array([truth.class_shift.get(name, 0.0) for name in STARSS_CLASSES])
                found = truth.found + truth.gain_per_doubling * doublings + common + ease + shift
                found = found + generator.normal(0, study.seed_spread) + study.effect(seed)
                counts = simulated_counts(generator, load, found, truth.near)
                cells.append(
                    {
                        "trial_id": record.trial_id,
                        "arm": arm,
                        "seed": seed,
                        "annotation_minutes": budget,
                    }
                )
                record = change(record)
                others, first = truth.elevation_correlation
                heard = first if seed == study.seeds[0] else others
                write_trial(folder, record, study.recording_names, counts, heard)
                if study.predictions:
                    write_predictions(folder, record.trial_id, references, truth, generator)
    write_study(
        StudyRecord(
            name=study.name,
            question="Does DOA-aware pretraining lower the SELD error, and which variant?",
            arms=list(study.arms),
            baseline=study.baseline,
            budgets_minutes=list(study.budgets_minutes),
            seeds=list(study.seeds),
            scale="simulated",
            command=f"python ablations/run_grid.py {study.name}",
            cells=cells if study.planned else [],
            goals=list(study.goals),
        ),
        folder,
    )
    return folder


def simulated_counts(
    generator: np.random.Generator,
    load: NDArray[np.int64],
    found: NDArray[np.float64],
    near: float,
) -> NDArray[np.float64]:
    """Counts (recording, class, column) of ``load`` (recording, class) reference tracks."""
    detected = generator.binomial(load, np.clip(found, 0.02, 0.98) * (found > -0.1))
    placed = generator.binomial(detected, near)
    missed = load - detected
    invented = generator.poisson(0.25 * load)
    distance = placed * generator.normal(9, 1, load.shape) + (detected - placed) * 60.0
    errors = np.maximum(missed.sum(axis=1), (invented + detected - placed).sum(axis=1))
    columns = {
        "references": load,
        "true_positives": placed,
        "spatial_false_positives": detected - placed,
        "false_positives": invented,
        "false_negatives": missed,
        "distance_sum_deg": distance,
        "recording_errors": np.broadcast_to(errors[:, None], load.shape),
        "recording_references": np.broadcast_to(load.sum(axis=1)[:, None], load.shape),
    }
    return np.stack([columns[name] for name in COUNT_COLUMNS], axis=-1).astype(np.float64)


def write_trial(
    folder: Path,
    record: TrialRecord,
    recordings: Sequence[str],
    counts: NDArray[np.float64],
    elevation_correlation: float = 0.8,
) -> None:
    """Write a trial's counts, and its record with the scores that follow from them."""
    place = trial_folder(folder, record.trial_id)
    place.mkdir(parents=True)
    if record.status == "finished":
        scored = score_from_recordings(recordings, counts, class_names=record.class_names)
        record = replace(
            record,
            metrics={name: getattr(scored, name) for name in SCORE_NAMES}
            | {"elevation_correlation": elevation_correlation},
            per_class=scored.per_class.rename_axis("class_name").reset_index().to_dict("records"),
            per_room=scored.per_room.reset_index().to_dict("records"),
        )
        rows = pd.DataFrame(counts.reshape(-1, len(COUNT_COLUMNS)), columns=list(COUNT_COLUMNS))
        rows.insert(0, "recording", np.repeat(recordings, counts.shape[1]))
        rows.insert(1, "class_id", np.tile(np.arange(counts.shape[1]), len(recordings)))
        rows.to_parquet(place / "counts.parquet", index=False)
    write_record(record, folder)


def failed(record: TrialRecord) -> TrialRecord:
    """The record as it stands after running out of memory."""
    return replace(
        record,
        status="failed",
        failure=Failure(
            kind="gpu_memory",
            message="CUDA out of memory. Tried to allocate 2.00 GiB",
            traceback="Traceback (most recent call last): ...",
            stage="pretrain",
            policy="halve the batch and try again",
            attempts=2,
        ),
    )


def simulated_reference(generator: np.random.Generator) -> pd.DataFrame:
    """A minute with a dozen moving events."""
    parts = []
    for source in range(12):
        start = int(generator.integers(1, FRAMES - 120))
        frame = np.arange(start, start + int(generator.integers(20, 110)))
        azimuth = generator.uniform(-180, 180) + generator.normal(0, 0.5) * np.arange(len(frame))
        parts.append(
            pd.DataFrame(
                {
                    "frame": frame,
                    "class_id": int(generator.integers(len(STARSS_CLASSES))),
                    "source_id": source,
                    "azimuth_deg": np.round((azimuth + 180) % 360 - 180).astype(int),
                    "elevation_deg": int(generator.integers(-30, 45)),
                }
            )
        )
    return pd.concat(parts).sort_values("frame", kind="stable").reset_index(drop=True)


def write_predictions(
    folder: Path,
    trial_id: str,
    references: Mapping[str, pd.DataFrame],
    truth: ArmTruth,
    generator: np.random.Generator,
) -> None:
    """The references with misses, confusions and angular error."""
    out = trial_folder(folder, trial_id) / "predictions"
    out.mkdir()
    for name, reference in references.items():
        kept = reference[generator.random(len(reference)) < truth.found].copy()
        error = generator.normal(0, 8 / truth.near, len(kept))
        azimuth = kept["azimuth_deg"] + np.round(error).astype(int)
        kept["azimuth_deg"] = (azimuth + 180) % 360 - 180
        confused = generator.random(len(kept)) < 0.1
        kept.loc[confused, "class_id"] = (kept.loc[confused, "class_id"] + 1) % len(STARSS_CLASSES)
        write_annotations(kept, out / f"{name}.csv")

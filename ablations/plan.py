"""What a run would do and cost, before any of it is done."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ablations.calibrate import calibrated_durations_s
from ablations.cluster import ClusterOptions, machines_of, placement_of
from ablations.data import DataOptions, check_budgets, data_for_plan
from ablations.places import stages_root
from ablations.wording import counted
from search_spaces.scales import ScaleSettings
from search_spaces.studies import Study
from seld.errors import InputError
from trainables.cells import Cell, stages_of
from trainables.evaluate_job import scored_clips
from trainables.prepare import PreparedData
from trainables.resources import Placement
from trainables.stage_keys import StageKey
from trainables.stages import StageStore

STAGE_NAMES = ("pretrain", "finetune", "evaluate")


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """One kind of stage over all cells of a study.

    Attributes:
        uses: cells that need such a stage.
        unique: different ones among them.
        done: of those, how many are in the store.
        expected_s: time of one lane for what is missing; None where nothing like it has run and
            it was not calibrated.
        of_cells_s: how long each cell's will take, 0 where nothing is missing; as ``expected_s``.
        result_bytes: size of what will be stored; None where nothing like it has run.
    """

    name: str
    uses: int
    unique: int
    done: int
    expected_s: float | None
    of_cells_s: tuple[float, ...] | None
    result_bytes: float | None


def plan_study(
    study: Study,
    *,
    trials: Sequence[Sequence[Cell]] | None = None,
    heading: str | None = None,
    data: DataOptions,
    cluster: ClusterOptions,
    results: Path,
    storage: str | None = None,
    calibrate: bool = False,
) -> int:
    """Print what running the study would compute and cost. Starts no Ray, renders nothing.

    Calibrated without a cluster, it is planned on as many machines like this one as a pretraining
    needs.

    Args:
        trials: what is run, where it is not each of the study's cells: of a trial the cells that
            it trains one after the other.
        heading: how many trials that is, where more is to be said of them.
    """
    data.check(study)
    console = Console()
    machines = machines_of(cluster)
    if calibrate and cluster.address is None:
        (here,) = machines
        machines *= machines_of_a_trial(here.get("GPU", 0.0), cluster)
    if trials is None:
        trials = [[cell] for cell in study.cells()]
    placement = placement_of(study, machines, cluster, trials=len(trials))
    prepared = data_for_plan(data, study)
    for known in prepared.values():
        if known.trainable_minutes:
            check_budgets(study, known)
    store = StageStore(stages_root(storage, results))
    committed = {name: store.committed(name) for name in STAGE_NAMES}
    to_run = sum(not is_done(trial, prepared, committed["evaluate"]) for trial in trials)
    placement = placement.for_trials(max(1, to_run))
    scale = study.scale
    device = "cuda" if placement.worker_gpus else "cpu"
    if calibrate and device == "cuda" and not torch.cuda.is_available():
        raise InputError("command line", "--calibrate", "no GPU", "a GPU here, as the workers have")

    def measure(cell: Cell) -> Mapping[str, float]:
        torch.set_num_threads(placement.worker_threads)
        return calibrated_durations_s(
            cell,
            class_count=len(prepared[cell.data].class_names),
            test_minutes=scored_minutes(cell, prepared[cell.data], scale),
            picture_px=(scale.shards.frame_height_px, scale.shards.frame_width_px),
            train_workers=placement.train_workers,
            device=device,
        )

    cells = list(itertools.chain.from_iterable(trials))
    plans = plan_stages(cells, prepared, committed, measure if calibrate else None)
    heading = heading or counted(len(trials), "trial")
    if len(machines) > 1 and cluster.address is None:
        heading += f", on {len(machines)} machines like this one"
    console.print(f"{study.name}: {heading}; {placement.describe()}", highlight=False)
    console.print(finetuning_lengths(study), highlight=False)
    print_plan(plans, placement, console, longest_s=longest_trial_s(trials, plans))
    return 0


def is_done(
    trial: Sequence[Cell], data: Mapping[str, PreparedData], evaluated: Container[str]
) -> bool:
    """Whether all that the trial computes is stored.

    Args:
        evaluated: digests of the evaluations that are.
    """
    return all(stages_of(cell, data[cell.data]).evaluate.digest in evaluated for cell in trial)


def scored_minutes(cell: Cell, data: PreparedData, scale: ScaleSettings) -> float:
    """Length of the recordings that the cell is scored on.

    Before the data are prepared, that of the scale's test scenes.
    """
    if not data.trainable_minutes:
        return scale.scenes.test.minutes
    rooms = data.validation_rooms if cell.scored_on == "validation" else None
    return scored_clips(data.annotated.index(), rooms).minutes


def finetuning_lengths(study: Study) -> str:
    """How long each budget is fine-tuned: a scale may have fewer steps for some than for others."""
    lengths = {(cell.annotation_minutes, cell.finetune.steps): None for cell in study.cells()}
    parts = (f"{steps} steps with {minutes:g}" for minutes, steps in lengths)
    return f"fine-tuning: {', '.join(parts)} annotated minutes"


def machines_of_a_trial(gpus: float, cluster: ClusterOptions) -> int:
    """How many machines with so many GPUs the workers of one pretraining need.

    One worker is timed, which takes but one of them.
    """
    worker_gpus = 1.0 if cluster.gpus_per_worker is None else cluster.gpus_per_worker
    workers = math.floor(gpus / worker_gpus) if worker_gpus > 0 else 0
    return math.ceil(cluster.train_workers / workers) if workers else 1


def plan_stages(
    cells: Sequence[Cell],
    data: Mapping[str, PreparedData],
    committed: Mapping[str, Mapping[str, Mapping[str, Any]]],
    calibrate: Callable[[Cell], Mapping[str, float]] | None = None,
) -> list[StagePlan]:
    """Stages of all cells after sharing, and the time of those that are missing.

    Args:
        data: the data sets by name; where one is not prepared yet, nothing made from it is done.
        committed: what is known of finished stages, by their name and digest.
        calibrate: gives a cell's durations by stage where no earlier run does.
    """
    keys = [stages_of(cell, data[cell.data]) for cell in cells]
    calibration = _Calibration(cells, calibrate)
    plans = []
    for name in STAGE_NAMES:
        stage_keys = [getattr(key, name) for key in keys]
        plans.append(_plan_stage(name, stage_keys, committed[name], calibration))
    return plans


class _Calibration:
    """Durations measured at one cell of each arm, and only where asked for.

    Other cells of the arm (of a sweep) are taken to need as long per step.
    """

    def __init__(
        self, cells: Sequence[Cell], measure: Callable[[Cell], Mapping[str, float]] | None
    ) -> None:
        self._cells = cells
        self._measure = measure
        self._known: dict[str, tuple[Cell, Mapping[str, float]]] = {}

    def duration_s(self, position: int, name: str) -> float | None:
        """Of this stage of the cell at ``position``."""
        if self._measure is None:
            return None
        cell = self._cells[position]
        if cell.arm not in self._known:
            self._known[cell.arm] = cell, self._measure(cell)
        measured, durations_s = self._known[cell.arm]
        return durations_s[name] * _steps(cell, name) / _steps(measured, name)


def _steps(cell: Cell, name: str) -> int:
    settings = {"pretrain": cell.pretrain, "finetune": cell.finetune}.get(name)
    return settings.steps if settings is not None else 1


def _plan_stage(
    name: str,
    keys: Sequence[StageKey | None],
    committed: Mapping[str, Mapping[str, Any]],
    calibration: _Calibration,
) -> StagePlan:
    position_of = {key: position for position, key in enumerate(keys) if key is not None}
    missing = [key for key in position_of if key.digest not in committed]
    durations: dict[str, list[float]] = {}
    for commit in committed.values():
        durations.setdefault(commit["alike"], []).append(commit["duration_s"])
    expected = {
        key: statistics.median(durations[key.alike])
        if key.alike in durations
        else calibration.duration_s(position_of[key], name)
        for key in missing
    }
    known = {key: duration_s for key, duration_s in expected.items() if duration_s is not None}
    all_known = len(known) == len(missing)
    sizes = [sum(commit["files"].values()) for commit in committed.values()]
    result_bytes = len(missing) * statistics.median(sizes) if sizes else None
    return StagePlan(
        name=name,
        uses=sum(key is not None for key in keys),
        unique=len(position_of),
        done=len(position_of) - len(missing),
        expected_s=sum(known.values()) if all_known else None,
        of_cells_s=tuple(known.get(key, 0.0) if key else 0.0 for key in keys)
        if all_known
        else None,
        result_bytes=result_bytes if missing else 0.0,
    )


def longest_trial_s(trials: Sequence[Sequence[Cell]], plans: Sequence[StagePlan]) -> float:
    """How long the longest of the trials takes: its missing stages one after the other.

    Args:
        trials: of each its cells, in the order of the plans' ``of_cells_s``.
        plans: of all stages; those whose times are unknown are left out.
    """
    of_stages_s = [plan.of_cells_s for plan in plans if plan.of_cells_s is not None]
    of_cells_s = map(sum, zip(*of_stages_s, strict=True))
    return max(sum(itertools.islice(of_cells_s, len(trial))) for trial in trials)


def print_plan(
    plans: Sequence[StagePlan], placement: Placement, console: Console, *, longest_s: float = 0.0
) -> None:
    """The plan as a table, and the hours it comes to.

    Args:
        longest_s: of a trial: however many lanes there are, nothing is sooner done.
    """
    table = Table(title="plan")
    hours_alone = "hours, one\ntrial at a time"
    for column in ("stage", "trials", "unique", "done", "to do", hours_alone, "disk"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for plan in plans:
        hours = "unknown" if plan.expected_s is None else f"{plan.expected_s / 3600:.2f}"
        disk = "unknown" if plan.result_bytes is None else f"{plan.result_bytes / 1e6:.0f} MB"
        todo = plan.unique - plan.done
        counts = (plan.uses, plan.unique, plan.done, todo)
        table.add_row(plan.name, *map(str, counts), hours, disk)
    console.print(table)
    known = {plan.name: plan.expected_s for plan in plans if plan.expected_s is not None}
    if len(known) < len(plans):
        console.print(
            "Times are unknown until such a stage has run once here; --calibrate measures a few "
            "steps of each now."
        )
        return
    lane_hours = sum(known.values()) / 3600
    shared_out = lane_hours / placement.lanes
    longest = longest_s / 3600
    why = ", as long as one trial needs" if longest > shared_out else ""
    # Fine-tuning and evaluation are a single task each.
    gpu_workers = {"pretrain": placement.train_workers}
    gpu_hours = sum(known[name] * gpu_workers.get(name, 1) for name in known) / 3600
    at_once = counted(placement.lanes, "trial")
    console.print(
        f"about {max(shared_out, longest):.2f} h{why}, {at_once} at a time: "
        f"{gpu_hours * placement.worker_gpus:.2f} GPU hours, "
        f"{lane_hours * placement.cluster_cpus / placement.lanes:.2f} CPU hours",
        highlight=False,
    )

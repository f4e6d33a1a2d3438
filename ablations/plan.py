"""What a run would do and cost, before any of it is done."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from trainables.prepare import PreparedData
from trainables.resources import Placement
from trainables.stages import StageKey, StageStore
from trainables.trial import Cell, stages_of

STAGE_NAMES = ("pretrain", "finetune", "evaluate")


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """One kind of stage over all cells of a study.

    Attributes:
        uses: cells that need such a stage.
        unique: different ones among them.
        done: of those, how many are in the store.
        expected_s: time of one lane for what is missing; None where nothing like it has run.
        result_bytes: size of what will be stored; None where nothing like it has run.
    """

    name: str
    uses: int
    unique: int
    done: int
    expected_s: float | None
    result_bytes: float | None


def plan_stages(
    cells: Sequence[Cell], data: Mapping[str, PreparedData], store: StageStore
) -> list[StagePlan]:
    """Stages of all cells after sharing, with times of earlier runs for what is missing."""
    keys = [stages_of(cell, data[cell.data]) for cell in cells]
    return [_plan_stage(name, [getattr(key, name) for key in keys], store) for name in STAGE_NAMES]


def _plan_stage(name: str, keys: Sequence[StageKey | None], store: StageStore) -> StagePlan:
    committed = store.committed(name)
    needed = [key for key in keys if key is not None]
    unique = set(needed)
    missing = [key for key in unique if key.digest not in committed]
    durations: dict[str, list[float]] = {}
    for commit in committed.values():
        durations.setdefault(commit["alike"], []).append(commit["duration_s"])
    sizes = [sum(commit["files"].values()) for commit in committed.values()]
    everything = [duration for alike in durations.values() for duration in alike]
    expected_s: float | None = 0.0
    for key in missing:
        known = durations.get(key.alike) or everything
        if not known:
            expected_s = None
            break
        expected_s = (expected_s or 0.0) + statistics.median(known)
    return StagePlan(
        name=name,
        uses=len(needed),
        unique=len(unique),
        done=len(unique) - len(missing),
        expected_s=expected_s,
        result_bytes=len(missing) * statistics.median(sizes) if sizes or not missing else None,
    )


def print_plan(plans: Sequence[StagePlan], placement: Placement, console: Console) -> None:
    """The plan as a table, and the hours it comes to."""
    table = Table(title="plan")
    for column in ("stage", "trials", "unique", "done", "to do", "lane hours", "disk"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for plan in plans:
        hours = "unknown" if plan.expected_s is None else f"{plan.expected_s / 3600:.2f}"
        disk = "unknown" if plan.result_bytes is None else f"{plan.result_bytes / 1e6:.0f} MB"
        todo = plan.unique - plan.done
        counts = (plan.uses, plan.unique, plan.done, todo)
        table.add_row(plan.name, *map(str, counts), hours, disk)
    console.print(table)
    known = [plan.expected_s for plan in plans if plan.expected_s is not None]
    if len(known) < len(plans):
        console.print("Times are unknown until a stage of that kind has run once in this store.")
        return
    lane_hours = sum(known) / 3600
    console.print(
        f"about {lane_hours / placement.lanes:.2f} h on {placement.lanes} lanes: "
        f"{lane_hours * placement.worker_gpus * placement.train_workers:.2f} GPU hours, "
        f"{lane_hours * placement.cluster_cpus / placement.lanes:.2f} CPU hours",
        highlight=False,
    )

"""Record how the SELD error answers to a sweep's parameters, for ``benchmarks.sweep``.

    python -m benchmarks.surface --settings 60 [--folder DIR]

Settings are drawn at random from the whole space of a sweep and trained at every rung of it, none
stopped early: what a search of any kind would have been told. So that a laptop trains one in a
minute or two, the embedded benchmark is at its easiest (three classes, one sound at a time,
nothing moves, no echo) and steps are few. Nothing of it goes into any other result.

Stages are kept below ``--folder``; the same command continues, and adds settings to a table that
is there. The table is written after every setting. Several can run at once, each with a
``--first`` and a ``--table`` of its own; ``benchmarks.sweep --recorded`` takes their tables.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import torch
from rich.console import Console

from ablations.cluster import ClusterOptions, connected_machines, ray_cluster
from ablations.console import quiet_output
from ablations.data import DataOptions, prepare_data
from ablations.sweep import Sweep
from benchmarks.plain_stages import run_plainly
from benchmarks.sweep import LOSS_COLUMN, RECORDED, RUNG_COLUMN, Outcome
from search_spaces.scales import ScaleSettings, find_scale
from search_spaces.spaces import OBJECTIVES
from search_spaces.studies import variants
from seld.scenes.settings import PartSettings, SceneSettings
from trainables.cells import DEFAULT_DATA, Cell
from trainables.prepare import PreparedData
from trainables.presets import Recipe
from trainables.pretrain import PretrainSettings
from trainables.resources import plan_placement
from trainables.stages import StageStore

BUDGETS_MINUTES = (3.0,)
CLASSES = ("clapping", "telephone", "music")
PRETRAIN_STEPS, FINETUNE_STEPS = 80, 360
RUNGS = 3


def easy_scale() -> ScaleSettings:
    """The demo with easy scenes, few steps and small batches."""
    scale = find_scale("demo")
    easy = PartSettings(
        minutes=4, rooms=4, acoustics="anechoic", classes=CLASSES, unseen_share=0, silent_share=0
    )
    scenes = SceneSettings(
        recording_s=10.0,
        max_overlap=1,
        moving_share=0.0,
        picture=scale.scenes.picture,
        unannotated=replace(easy, minutes=6),
        train=easy,
        test=replace(easy, minutes=0.5, rooms=1),
    )

    def short(settings: PretrainSettings) -> PretrainSettings:
        return replace(settings, steps=PRETRAIN_STEPS, batch_size=16, warmup_steps=6)

    recipe = Recipe(
        doa_wise=short(scale.doa_wise),
        recording_wise=short(scale.recording_wise),
        avc=short(scale.avc),
        finetune=replace(scale.finetune, steps=FINETUNE_STEPS, batch_size=8, warmup_steps=20),
    )
    return replace(scale, recipe=recipe, scenes=scenes, budgets_minutes=BUDGETS_MINUTES)


def outcome(cell: Cell, data: PreparedData, store: StageStore) -> Outcome:
    """A cell's scores on the validation rooms, over the classes that there are."""
    result = run_plainly(cell, data, store, probed=False).summary
    errors = [row["seld_error"] for row in result["per_class"] if row["references"]]
    return Outcome(sum(errors) / len(errors), result["metrics"]["loss"])


def main() -> None:
    """Train every setting at every rung, into the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--settings", type=int, default=60, help="how many (60)")
    parser.add_argument("--first", type=int, default=0, help="number of the first (0)")
    parser.add_argument("--folder", type=Path, default=Path("results/surface"))
    parser.add_argument("--table", type=Path, default=RECORDED)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    scale = easy_scale()
    options = DataOptions(folder=arguments.folder / "data")
    with quiet_output(arguments.folder / "ray.log") as console, ray_cluster(ClusterOptions()):
        placement = plan_placement(*connected_machines(ClusterOptions()))
        data = prepare_data(options, variants(scale), placement, console)[DEFAULT_DATA]
    console = Console()
    store = StageStore(arguments.folder / "stages")
    known = pd.read_csv(arguments.table) if arguments.table.exists() else pd.DataFrame()
    rows = known.to_dict("records")
    done = {row["setting"] for row in rows}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for number in range(arguments.first, arguments.first + arguments.settings):
        sweep = Sweep(
            name="surface",
            scale=scale,
            objectives=OBJECTIVES,
            budgets_minutes=BUDGETS_MINUTES,
            trials=1,
            rungs=RUNGS,
            seed=number,
        )
        sampler = optuna.samplers.RandomSampler(seed=number)
        parameters = sweep.propose(optuna.create_study(sampler=sampler).ask())
        if number in done:
            continue
        started = time.perf_counter()
        outcomes = [outcome(cell, data, store) for cell in sweep.cells(parameters)]
        row: dict[str, Any] = {"setting": number}
        row |= {f"parameter.{name}": value for name, value in parameters.items()}
        for rung, found in enumerate(outcomes, start=1):
            row |= {f"{RUNG_COLUMN}{rung}": found.seld_error, f"{LOSS_COLUMN}{rung}": found.loss}
        rows.append(row)
        pd.DataFrame(rows).to_csv(arguments.table, index=False)
        shown = ", ".join(f"{100 * found.seld_error:.1f}" for found in outcomes)
        took_s = time.perf_counter() - started
        console.print(f"setting {number}: SELD error {shown} ({took_s:.0f} s)", highlight=False)


if __name__ == "__main__":
    main()

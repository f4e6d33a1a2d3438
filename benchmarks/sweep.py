"""Sweeps beside random search at equal cost.

    python -m benchmarks.sweep                             on a made-up response surface
    python -m benchmarks.sweep --recorded                  on the one of benchmarks/surface.csv
    python -m benchmarks.sweep --recorded results/sweep …  on that of sweeps' own trials

Training is replaced by a surface that answers at once; everything else is what a sweep runs
(space, proposals, early stopping, storage). Cost is counted in full trainings, the short ones of
the lower rungs included. A sweep begins no trial that could exceed it, and spends 9.2 of 10 on
average. A search ends with the setting that *looked* best; what is compared is what that setting is
really worth, without the noise of its seed.

``benchmarks/surface.csv`` was recorded by ``benchmarks.surface``: real trainings on the embedded
benchmark, of 49 settings drawn at random, at every rung. SELD error points there, 20 repeats:

    cost    random   sweep    difference (95 % interval)
      10     45.66   38.11      -7.54 ± 5.02
      20     41.01   34.75      -6.26 ± 4.39
      40     36.55   34.62      -1.93 ± 3.10

The best neighbourhood of the 49 is worth 34; with 40 trainings random search comes near it too.

The made-up surface has the features that make a search hard: a few parameters that matter and
several that do not, an interaction, conditional parameters, noise of a seed as large as most
differences, and short trainings that rank settings imperfectly. Its numbers are invented.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd

from ablations.searcher import REDUCTION, OptunaSearcher, ask
from ablations.sweep import Sweep, open_study
from search_spaces.scales import find_scale
from search_spaces.spaces import OBJECTIVE, OBJECTIVES, Parameters

#: Standard deviation of a SELD error over seeds.
SEED_NOISE = 0.01
NEIGHBOURS = 3
#: Columns of a recorded surface, followed by the rung's number.
RUNG_COLUMN = "seld_error.rung"
LOSS_COLUMN = "loss.rung"
DEFAULT_RUNGS = 3
RECORDED = Path(__file__).with_name("surface.csv")


@dataclass(frozen=True)
class Outcome:
    """What a training is expected to be told of: SELD error, and the loss that decides at rungs."""

    seld_error: float
    loss: float

    def observed(self, noise: np.random.Generator) -> dict[str, float]:
        """With the luck of a seed, of which a network that finds nothing has none to speak of."""
        luck = noise.normal(scale=SEED_NOISE)
        error = self.seld_error
        return {
            "seld_error": error + luck if error < 1.0 else error,
            "loss": self.loss * (1.0 + luck / error),
        }


#: (parameters, share of the steps) → what to expect.
Surface = Callable[[Parameters, float], Outcome]


def made_up(parameters: Parameters, fidelity: float) -> Outcome:
    """SELD error between about 0.55 and 0.75; the loss says the same."""

    def off(name: str, best: float, width: float) -> float:
        """Squared distance from the best value, in decades over ``width``."""
        return (math.log10(parameters[name] / best) / width) ** 2 if name in parameters else 1.0

    objective = parameters[OBJECTIVE]
    error = {"doa_wise": 0.60, "recording_wise": 0.61, "avc": 0.64}[objective]
    error += 0.02 * off("pretrain.temperature", 0.1, 0.5)
    # The longer the steps of pretraining, the shorter those of fine-tuning want to be.
    best_rate = 1e-3 * (1e-3 / parameters["pretrain.learning_rate"]) ** 0.3
    error += 0.02 * off("pretrain.learning_rate", 8e-4, 0.6)
    error += 0.03 * off("finetune.learning_rate", best_rate, 0.6)
    error += 0.01 * off("finetune.encoder_rate", 0.3, 0.7)
    error += 0.01 * ((parameters["pretrain.field_of_view_deg"] - 70.0) / 40.0) ** 2
    if parameters.get("pretrain.directions.sampling", "grid") == "grid" and objective != "avc":
        error += 0.01 * off("pretrain.directions.grid.count", 12, 0.5)
    if objective == "recording_wise":
        error += (0.03, 0.0, -0.01, -0.01, 0.0)[parameters["pretrain.rotated_negatives"]]
    # Short trainings are worse, and flatter small steps less than the full one does.
    missing = 1.0 - fidelity
    steps = math.log10(parameters["pretrain.learning_rate"] / 8e-4)
    error += 0.08 * missing - 0.02 * missing * steps
    return Outcome(error, error)


class Recorded:
    """Mean of the nearest recorded trainings, in ranks of each parameter.

    Args:
        trials: ``parameter.*`` and ``seld_error.rung1`` … ``loss.rung1`` … with the last rung's
            full training, or ``seld_error`` alone. Then lower rungs answer like full trainings.
    """

    def __init__(self, trials: pd.DataFrame) -> None:
        rungs = sorted(column for column in trials.columns if column.startswith(RUNG_COLUMN))
        losses = [column.replace(RUNG_COLUMN, LOSS_COLUMN) for column in rungs]
        self._errors = trials[rungs or ["seld_error"]].to_numpy(float)  # (setting, rung)
        self._losses = trials[losses or ["seld_error"]].to_numpy(float)
        self.rungs = len(rungs) or DEFAULT_RUNGS
        self._columns = {
            column.removeprefix("parameter."): trials[column].to_numpy()
            for column in trials.columns
            if column.startswith("parameter.")
        }

    def __call__(self, parameters: Parameters, fidelity: float) -> Outcome:
        """Of the neighbourhood."""
        distance = np.zeros(len(self._errors))
        for name, value in parameters.items():
            recorded = self._columns[name]
            if isinstance(value, str):
                distance += recorded != value
                continue
            numbers = recorded.astype(float)
            known = np.sort(numbers[np.isfinite(numbers)])
            ranks = np.searchsorted(known, numbers) / max(len(known), 1)
            rank = np.searchsorted(known, value) / max(len(known), 1)
            # A trial without this parameter is as far away as can be.
            distance += np.where(np.isfinite(numbers), np.abs(ranks - rank), 1.0)
        nearest = np.argsort(distance, kind="stable")[:NEIGHBOURS]
        last = self._errors.shape[1] - 1
        rung = max(0, last - round(math.log(1.0 / fidelity, REDUCTION)))
        return Outcome(self._errors[nearest, rung].mean(), self._losses[nearest, rung].mean())


def trainings(path: Path) -> pd.DataFrame:
    """A recorded surface, or the finished trials of a sweep's results folder."""
    if path.is_file():
        return pd.read_csv(path)
    trials = pd.read_parquet(path / "trials.parquet")
    return trials.loc[trials["status"] == "finished"]


def searched(sweep: Sweep, surface: Surface, cost: float, folder: Path) -> float:
    """What the sweep's choice is worth after spending at most ``cost``, one trial at a time."""
    study = open_study(sweep, folder)
    noise = np.random.default_rng(sweep.seed)
    proposals: dict[int, Parameters] = {}

    def config_of(trial: optuna.Trial) -> dict[str, Any]:
        proposals[trial.number] = sweep.propose(trial)
        return {"parameters": proposals[trial.number]}

    searcher = OptunaSearcher(study, lambda: ask(study, sweep.seed), config_of, sweep.goals)
    fidelities = [1.0 / REDUCTION**rung for rung in reversed(range(sweep.rungs))]
    spent, number = 0.0, 0
    # Random search spends the cost and no more.
    while spent + sum(fidelities) <= cost:
        trial_id = str(number)
        parameters = searcher.suggest(trial_id)["parameters"]
        number += 1
        result: dict[str, Any] = {}
        for rung, fidelity in enumerate(fidelities, 1):
            spent += fidelity
            result = {"rung": rung, "rungs": sweep.rungs, "status": "finished"}
            result |= surface(parameters, fidelity).observed(noise)
            if searcher.should_stop(trial_id, result):
                break
        searcher.on_trial_complete(trial_id, result)
    return surface(proposals[study.best_trial.number], 1.0).seld_error


def drawn(sweep: Sweep, surface: Surface, cost: float) -> float:
    """What random search's choice is worth: as many full trainings as the cost allows."""
    noise = np.random.default_rng(sweep.seed)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=sweep.seed))
    outcomes = []
    for _ in range(int(cost)):
        parameters = sweep.propose(study.ask())
        expected = surface(parameters, 1.0)
        outcomes.append((expected.observed(noise)["seld_error"], expected.seld_error))
    return min(outcomes)[1]


def main() -> None:
    """Print both searches' outcome at several costs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--costs", type=int, nargs="+", default=[10, 20, 40])
    parser.add_argument(
        "--recorded",
        type=Path,
        nargs="*",
        help="results folders of sweeps, or tables (surface.csv)",
    )
    arguments = parser.parse_args()
    surface: Surface = made_up
    rungs = DEFAULT_RUNGS
    if arguments.recorded is not None:
        tables = [trainings(path) for path in arguments.recorded or [RECORDED]]
        surface = Recorded(pd.concat(tables, ignore_index=True))
        rungs = surface.rungs
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    print(f"SELD error points of the chosen setting, {arguments.repeats} repeats, lower is better")
    print("cost    random   sweep    difference (95 % interval)   sweep better")
    for cost in arguments.costs:
        pairs = []
        for seed in range(arguments.repeats):
            sweep = Sweep(
                name="benchmark",
                scale=find_scale("demo"),
                objectives=OBJECTIVES,
                budgets_minutes=(6.0,),
                trials=1,
                rungs=rungs,
                seed=seed,
            )
            with tempfile.TemporaryDirectory() as folder:
                ours = searched(sweep, surface, cost, Path(folder))
            pairs.append((drawn(sweep, surface, cost), ours))
        random, ours = 100.0 * np.array(pairs).T
        difference = ours - random
        half = 1.96 * difference.std(ddof=1) / math.sqrt(len(difference))
        print(
            f"{cost:4d}   {random.mean():7.2f} {ours.mean():7.2f}   {difference.mean():+7.2f}"
            f" ± {half:.2f}                {np.mean(ours < random):.0%}",
            flush=True,
        )


if __name__ == "__main__":
    main()

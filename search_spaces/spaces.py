"""What a sweep may vary, with ranges and reasons.

:func:`propose` asks Optuna for one value after the other, so that a parameter is only asked for
where it means something: rotated negatives where the loss has them, the number of directions where
they are a grid, other directions than a fixed grid's where the head can be asked for them.
:func:`cell_of` turns the answers into a trial. Parameters carry the names that ``--set`` takes, so
that a finding can be typed into a grid.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from search_spaces.scales import ScaleSettings
from seld.settings import flat_mapping, override, to_mapping
from trainables.cells import Cell
from trainables.finetune import FinetuneSettings
from trainables.pretrain import PretrainSettings

#: Of pretraining; each has its recipe at every scale.
OBJECTIVES = ("doa_wise", "recording_wise", "avc")
OBJECTIVE = "pretrain.objective"
BUDGET = "annotation_minutes"
TEMPERATURE = "pretrain.temperature"
LEARN_TEMPERATURE = "pretrain.learn_temperature"
Parameters = Mapping[str, Any]
StageSettings = TypeVar("StageSettings", PretrainSettings, FinetuneSettings)


class Suggests(Protocol):
    """The part of ``optuna.Trial`` that a space needs."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...
    def suggest_float(self, name: str, low: float, high: float, *, log: bool = ...) -> float: ...
    def suggest_int(self, name: str, low: int, high: int, *, log: bool = ...) -> int: ...


def propose(
    trial: Suggests,
    *,
    scale: ScaleSettings,
    objectives: Sequence[str],
    budgets_minutes: Sequence[float],
    fixed: Collection[str] = (),
) -> Parameters:
    """One point of the space.

    Args:
        trial: who chooses.
        scale: whose recipes have the heads.
        objectives: of pretraining; varied where there are several.
        budgets_minutes: of annotation; varied where there are several.
        fixed: settings that stay as the recipes have them.
    """
    chosen: dict[str, Any] = {}
    objective = objectives[0]
    if len(objectives) > 1:
        objective = chosen[OBJECTIVE] = trial.suggest_categorical(OBJECTIVE, objectives)
    recipe: PretrainSettings = getattr(scale.recipe, objective)
    stages = {"pretrain": to_mapping(recipe), "finetune": to_mapping(scale.finetune)}
    as_it_is = {name: value for name, value in flat_mapping(stages).items() if name in fixed}

    def choice(name: str, options: Sequence[Any]) -> Any:
        if name in as_it_is:
            return as_it_is[name]
        chosen[name] = trial.suggest_categorical(name, options)
        return chosen[name]

    def real(name: str, low: float, high: float, *, log: bool = False) -> None:
        if name not in as_it_is:
            chosen[name] = trial.suggest_float(name, low, high, log=log)

    def whole(name: str, low: int, high: int, *, log: bool = False) -> int:
        if name in as_it_is:
            return as_it_is[name]
        chosen[name] = trial.suggest_int(name, low, high, log=log)
        return chosen[name]

    if LEARN_TEMPERATURE not in as_it_is:
        # A τ that is learnt would only start where it is set.
        chosen[LEARN_TEMPERATURE] = False
    # Below 0.02 one negative takes all the gradient, above 0.5 none takes any.
    real(TEMPERATURE, 0.02, 0.5, log=True)
    # A crop narrower than 20° misses what is next to its centre, wider than 110° is distorted.
    real("pretrain.field_of_view_deg", 20.0, 110.0)
    real("pretrain.learning_rate", 1e-4, 3e-3, log=True)
    real("finetune.learning_rate", 1e-4, 3e-3, log=True)
    # Near 0 keeps what pretraining learnt, 1 treats the encoder like the new head.
    real("finetune.encoder_rate", 0.03, 1.0, log=True)
    fixed_grid = recipe.head == "grid"
    gridded = (
        objective != "doa_wise"
        or fixed_grid
        or choice("pretrain.directions.sampling", ("grid", "energy_peaks")) == "grid"
    )
    if objective != "avc" and gridded:
        # First-order ambisonics cannot tell directions closer than some 40° apart: 4 to 32.
        whole("pretrain.directions.grid.count", 4, 32, log=True)
        choice("pretrain.directions.grid.kind", ("fibonacci", "azimuth_elevation"))
        if not fixed_grid:
            choice("pretrain.directions.grid_rotation", ("none", "vertical", "any"))
    if objective == "recording_wise" and whole("pretrain.rotated_negatives", 0, 4) > 0:
        choice("pretrain.negative_axes", ("any", "vertical"))
    if len(budgets_minutes) > 1:
        choice(BUDGET, budgets_minutes)
    return chosen


def setting_names(
    *, scale: ScaleSettings, objectives: Sequence[str], fixed: Collection[str] = ()
) -> frozenset[str]:
    """Every setting that a trial may be given a value for, beside its objective and budget.

    Args:
        scale, objectives, fixed: as :func:`propose` has them.
    """
    names: set[str] = set()
    for first in (True, False):
        for objective in objectives:
            names |= propose(
                _Extreme(first),
                scale=scale,
                objectives=(objective,),
                budgets_minutes=(),
                fixed=fixed,
            ).keys()
    return frozenset(names)


class _Extreme:
    """Chooses the first option and least number of everything, or the last and largest."""

    def __init__(self, first: bool) -> None:
        self._place = 0 if first else -1

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return choices[self._place]

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        return (low, high)[self._place]

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        return (low, high)[self._place]


def cell_of(
    parameters: Parameters,
    scale: ScaleSettings,
    *,
    study: str,
    seed: int,
    objective: str,
    budget_minutes: float,
    fidelity: float = 1.0,
) -> Cell:
    """The trial with these parameters, scored on the validation rooms.

    Args:
        parameters: as :func:`propose` gives them; everything else is the scale's, as in grids.
        objective, budget_minutes: where the parameters do not say.
        fidelity: share of the scale's steps to train for, in either stage.
    """
    recipe: PretrainSettings = getattr(scale.recipe, parameters.get(OBJECTIVE, objective))
    minutes = parameters.get(BUDGET, budget_minutes)
    steps = scale.finetune_steps.get(minutes, scale.finetune.steps)
    finetune = with_values(replace(scale.finetune, steps=steps), parameters, "finetune.")
    return Cell(
        study=study,
        arm=recipe.objective,
        seed=seed,
        annotation_minutes=minutes,
        pretrain=_shortened(
            replace(with_values(recipe, parameters, "pretrain."), seed=seed), fidelity
        ),
        finetune=_shortened(replace(finetune, seed=seed), fidelity),
        scored_on="validation",
        parameters=parameters,
    )


def with_values(settings: StageSettings, parameters: Parameters, prefix: str) -> StageSettings:
    """``settings`` with the parameters whose dotted name begins with ``prefix``, as by --set."""
    assignments = [
        f"{name.removeprefix(prefix)}={value}"
        for name, value in parameters.items()
        if name.startswith(prefix)
    ]
    return override(settings, assignments, prefix)


def _shortened(settings: StageSettings, fidelity: float) -> StageSettings:
    if fidelity == 1.0:
        return settings
    return replace(
        settings,
        steps=max(1, round(settings.steps * fidelity)),
        warmup_steps=round(settings.warmup_steps * fidelity),
    )

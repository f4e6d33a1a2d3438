"""Response to swept parameters, and how much each matters."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
import pandas as pd
from numpy.typing import NDArray
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from pandas.api.types import is_numeric_dtype

from analysis.load import Results
from analysis.scores import SELD_ERROR, Score

#: These are drawn first where a study has varied them: temperature, and K directions.
_FIRST = ("temperature", "count")
#: Fewer values than this are no response.
_LEAST_VALUES = 3
#: Importances of fewer trials are luck.
_LEAST_TRIALS = 12
_LOG_RATIO = 10.0
_OBJECTIVE = "pretrain.objective"
#: Columns of a trial that are no settings; the budget is one where it varies.
_FACTS = ["study", "arm", "seed", "status", "annotation_minutes", "compute_s", SELD_ERROR.name]
#: Stages whose durations are computing.
_COMPUTING = ("pretrain", "finetune")
#: Setting, its values at which others have no effect, and these others. A learnt temperature
#: starts at the one that is set, and ends elsewhere.
_UNUSED_WHERE: tuple[tuple[str, tuple[Any, ...], tuple[str, ...]], ...] = (
    (
        "pretrain.directions.sampling",
        ("energy_peaks",),
        (
            "pretrain.directions.grid.count",
            "pretrain.directions.grid.kind",
            "pretrain.directions.grid_rotation",
        ),
    ),
    ("pretrain.learn_temperature", (True,), ("pretrain.temperature",)),
)


#: What a sweep may minimise.
GOALS: dict[str, Score] = {
    goal.name: goal
    for goal in (
        SELD_ERROR,
        Score(name="compute_s", label="computing", unit="s", scale=1.0, decimals=1,
              lower_is_better=True),
        Score(name="annotation_minutes", label="annotation", unit="min", scale=1.0, decimals=1,
              lower_is_better=True),
    )
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Points:
    """What sweeps have tried: with one goal at the largest budget, with several at all.

    Attributes:
        table: a row per trial that was trained in full, a column per setting and goal, and the
            SELD error. Settings that a trial does not use are missing there.
        settings: those with two values or more; ``arm`` where no setting tells the arms apart.
        goals: what was minimised; with several there is a front instead of a best trial.
        tried: trials trained in full or stopped early.
        budget_minutes: of all these trials; None where they have several.
        tried_at_all_budgets: ``tried``, and the trials of the smaller budgets that are left out.
    """

    table: pd.DataFrame
    settings: tuple[str, ...]
    goals: tuple[Score, ...]
    tried: int
    budget_minutes: float | None
    tried_at_all_budgets: int

    @property
    def on_front(self) -> NDArray[np.bool_]:
        """Of each trial, whether no other one is as low in every goal and lower in one."""
        values = self.table.loc[:, [goal.name for goal in self.goals]].to_numpy(np.float64)
        beaten = [
            ((values <= own).all(axis=1) & (values < own).any(axis=1)).any() for own in values
        ]
        return ~np.array(beaten, dtype=bool)

    @property
    def best(self) -> pd.DataFrame:
        """All trials by the only goal; of several goals the front, by the first of them."""
        first, *further = self.goals
        shown = self.table.loc[self.on_front] if further else self.table
        return shown.sort_values(first.name, kind="stable")

    @property
    def complete(self) -> pd.DataFrame:
        """The settings that every trial uses, and the SELD error."""
        used = [name for name in self.settings if not self.table[name].hasnans]
        return self.table.loc[:, [*used, SELD_ERROR.name]]


def points(results: Results) -> Points:
    """The points of all sweeps together."""
    goals = _goals(results)
    table = _trials(results, results.swept_arms)
    # Proposed twice, settings have one result, and are one point.
    table = table.drop_duplicates([name for name in table.columns if name != "compute_s"])
    tried_at_all_budgets = len(table)
    if len(goals) == 1:
        table = _at_largest_budget(table)
    full = _finished(table)
    settings = [name for name in _settings(full) if _count(full, name) > 1]
    if _count(full, "arm") > (_count(full, _OBJECTIVE) if _OBJECTIVE in settings else 1):
        settings.insert(0, "arm")
    names = [goal.name for goal in goals]
    settings = [name for name in settings if name not in names]
    columns = dict.fromkeys([*settings, *names, SELD_ERROR.name])
    return Points(
        table=full.loc[:, list(columns)],
        settings=tuple(settings),
        goals=goals,
        tried=len(table),
        budget_minutes=_only_budget(full),
        tried_at_all_budgets=tried_at_all_budgets,
    )


def responses(results: Results, budget_minutes: float | None = None) -> dict[str, pd.DataFrame]:
    """By setting, the trials whose SELD errors are its response: setting and SELD error.

    Of a sweep all that use the setting. Arms of a grid were chosen for other reasons, so there
    only those that differ from each other in this setting alone, and only of numbers.

    Args:
        budget_minutes: of a grid's trials; the largest that has a finished one where None.
    """
    if results.swept_arms:
        found = points(results)
        of_setting = {name: found.table.dropna(subset=[name]) for name in found.settings}
    else:
        table = _trials(results, results.arms)
        at_budget = table["annotation_minutes"] == budget_minutes
        table = _finished(table.loc[at_budget] if budget_minutes else _at_largest_budget(table))
        of_setting = {
            name: _differing_in(table, name)
            for name in _settings(table)
            if is_numeric_dtype(table[name])
        }
    return {
        name: trials.loc[:, [name, SELD_ERROR.name]]
        for name, trials in of_setting.items()
        if _count(trials, name) >= _LEAST_VALUES
    }


def _goals(results: Results) -> tuple[Score, ...]:
    """What the sweeps minimised; the SELD error where they do not agree."""
    of_sweeps = {
        tuple(study.record.goals)
        for study in results.studies
        if study.record and not study.record.cells
    }
    names = of_sweeps.pop() if len(of_sweeps) == 1 else ()
    return tuple(GOALS[name] for name in names if name in GOALS) or (SELD_ERROR,)


def _trials(results: Results, arms: Collection[str]) -> pd.DataFrame:
    """A row per trial of these arms that did not fail: settings, goals, and whose it is."""
    trials = [t for t in results.trials if t.arm in arms and t.record.status != "failed"]
    facts = [
        {
            "study": str(trial.study_folder),
            "arm": trial.arm,
            "seed": trial.record.seed,
            "status": trial.record.status,
            "annotation_minutes": trial.budget_minutes,
            "compute_s": sum(trial.record.durations_s.get(stage, 0.0) for stage in _COMPUTING),
            SELD_ERROR.name: trial.record.metrics.get(SELD_ERROR.name),
        }
        for trial in trials
    ]
    table = pd.DataFrame(facts, columns=_FACTS)
    settings = pd.DataFrame([_used(trial.record.parameters) for trial in trials])
    return table.join(settings.drop(columns=_FACTS, errors="ignore"))


def _settings(table: pd.DataFrame) -> list[str]:
    """The columns that are settings, in the order of tables and figures."""
    names = [name for name in table.columns if name not in _FACTS]
    if _count(table, "annotation_minutes") > 1:
        names.append("annotation_minutes")
    return sorted(names, key=lambda name: (_rank(name), name))


def _count(table: pd.DataFrame, name: str) -> int:
    """How many values a column has."""
    return len(set(table[name].dropna()))


def _finished(table: pd.DataFrame) -> pd.DataFrame:
    finished = table.loc[table["status"] == "finished"]
    return finished.dropna(subset=[SELD_ERROR.name]).reset_index(drop=True)


def _at_largest_budget(table: pd.DataFrame) -> pd.DataFrame:
    """At the largest budget at which a trial has finished."""
    budget = _finished(table)["annotation_minutes"].max()
    return table.loc[table["annotation_minutes"] == budget]


def _only_budget(table: pd.DataFrame) -> float | None:
    """The annotated minutes of all the trials, where they are the same."""
    budgets = set(table["annotation_minutes"])
    return float(budgets.pop()) if len(budgets) == 1 else None


def _differing_in(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Trials of the arms that differ in this setting alone; of several such groups the largest."""
    others = ["study", *(other for other in _settings(table) if other != name)]
    known = table.dropna(subset=[name])
    groups = [group for _, group in known.groupby(others, dropna=False, sort=False)]
    return max(groups, key=lambda group: _count(group, name), default=known)


def _used(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that have an effect; lists, as of channels, by their text."""
    idle = {
        name
        for switch, values, names in _UNUSED_WHERE
        if parameters.get(switch) in values
        for name in names
    }
    return {
        name: str(value) if isinstance(value, list) else value
        for name, value in parameters.items()
        if name not in idle
    }


def other_code(results: Results) -> list[str]:
    """Of each sweep whose trials were trained with several codes, a sentence that says so."""
    sentences = []
    for folder in dict.fromkeys(trial.study_folder for trial in results.trials):
        records = [
            trial.record
            for trial in results.trials
            if trial.study_folder == folder
            and trial.arm in results.swept_arms
            and trial.record.code_fingerprint
            and trial.record.failure is None
        ]
        last = max(records, key=lambda record: record.finished_at, default=None)
        others = [r for r in records if last and r.code_fingerprint != last.code_fingerprint]
        if others:
            commits = sorted({record.commit for record in others} - {""})
            sentences.append(
                f"{len(others)} of {len(records)} trials of {folder.name} were trained with other "
                f"code than the last (commit {', '.join(commits) or 'unknown'}): their scores "
                "and its may differ by more than their settings."
            )
    return sentences


def importances(trials: pd.DataFrame) -> dict[str, float]:
    """Optuna's importance (PED-ANOVA) of each parameter for a low SELD error, largest first.

    Args:
        trials: as :attr:`Points.complete`.
    """
    parameters = [name for name in trials.columns if name != SELD_ERROR.name]
    found = {name: _distribution(trials.loc[:, name]) for name in parameters}
    distributions = {name: kind for name, kind in found.items() if kind is not None}
    if len(trials) < _LEAST_TRIALS or len(distributions) < 2:
        return {}
    talkative = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it would announce the study
    study = optuna.create_study()
    optuna.logging.set_verbosity(talkative)
    study.add_trials(
        [
            optuna.trial.create_trial(
                params={name: _plain(row[name]) for name in distributions},
                distributions=distributions,
                value=float(row[SELD_ERROR.name]),
            )
            for row in trials.to_dict("records")
        ]
    )
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    return optuna.importance.get_param_importances(study, evaluator=evaluator)


def is_logarithmic(values: pd.Series) -> bool:
    """Whether a parameter spans so much that its axis should be logarithmic."""
    return (
        pd.api.types.is_numeric_dtype(values)
        and values.min() > 0
        and values.max() / values.min() >= _LOG_RATIO
    )


def _rank(name: str) -> int:
    last = name.rpartition(".")[2]
    return _FIRST.index(last) if last in _FIRST else len(_FIRST)


def _distribution(values: pd.Series) -> BaseDistribution | None:
    if values.nunique() < 2:
        return None
    if pd.api.types.is_bool_dtype(values) or not pd.api.types.is_numeric_dtype(values):
        return CategoricalDistribution(sorted({_plain(value) for value in values}, key=str))
    low, high = values.min(), values.max()
    log = is_logarithmic(values)
    if pd.api.types.is_integer_dtype(values):
        return IntDistribution(int(low), int(high), log=log)
    return FloatDistribution(float(low), float(high), log=log)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value

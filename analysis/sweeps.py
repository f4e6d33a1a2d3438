"""Response to swept parameters, and how much each matters."""

from __future__ import annotations

from typing import Any

import numpy as np
import optuna
import pandas as pd
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from pandas.api.types import is_numeric_dtype

from analysis.load import Results
from analysis.scores import SELD_ERROR

_PREFIX = "parameter."
#: These are drawn first where a study has varied them: temperature, and K directions.
_FIRST = ("temperature", "count")
#: Fewer values than this are arms to compare, not a response.
_LEAST_VALUES = 3
#: Importances of fewer trials are luck.
_LEAST_TRIALS = 12
_LOG_RATIO = 10.0
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


def swept_trials(results: Results) -> pd.DataFrame:
    """Finished trials at the largest budget: a column per varied parameter, and ``seld_error``.

    Empty where no parameter takes three values. Of a grid only numbers count: its objectives,
    say, are arms to compare.
    """
    table = results.table
    if not len(table):
        return pd.DataFrame()
    table = table.loc[table["status"] == "finished"]
    if results.swept_arms:
        table = table.loc[table["arm"].isin(list(results.swept_arms))]
    table = table.loc[table["annotation_minutes"] == table["annotation_minutes"].max()]
    table = _with_plain_values(table)
    if results.swept_arms:
        # Proposed twice, settings have one result, and are one point.
        settings = [column for column in table.columns if column.startswith(_PREFIX)]
        table = table.drop_duplicates(["study", "arm", "seed", *settings, SELD_ERROR.name])
    table = _without_unused(table)
    varied = [
        column
        for column in table.columns
        if column.startswith(_PREFIX) and table.loc[:, column].dropna().nunique() >= _LEAST_VALUES
    ]
    if not results.swept_arms:
        varied = [name for name in varied if is_numeric_dtype(table[name].infer_objects())]
    if not varied:
        return pd.DataFrame()
    varied.sort(key=lambda column: (_rank(column), column))
    named = {column: column.removeprefix(_PREFIX) for column in varied}
    chosen = table.loc[:, [*varied, SELD_ERROR.name]].rename(columns=named)
    return chosen.dropna(subset=[SELD_ERROR.name]).reset_index(drop=True)


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


def _with_plain_values(table: pd.DataFrame) -> pd.DataFrame:
    """Lists, as of channels, by their text: pandas counts no lists."""
    table = table.copy()
    for column in table.columns[table.columns.str.startswith(_PREFIX)]:
        is_list = [isinstance(value, list) for value in table[column]]
        if any(is_list):
            table[column] = table[column].astype(str).where(table[column].notna())
    return table


def _without_unused(table: pd.DataFrame) -> pd.DataFrame:
    """Settings that a trial records but does not use are no point of a response."""
    table = table.copy()
    for switch, unused, settings in _UNUSED_WHERE:
        column = _PREFIX + switch
        if column in table:
            idle = table[column].isin(list(unused)).to_numpy()
            for name in {_PREFIX + setting for setting in settings} & set(table.columns):
                table[name] = table[name].mask(idle)
    return table


def importances(trials: pd.DataFrame) -> dict[str, float]:
    """Optuna's importance (PED-ANOVA) of each parameter for a low SELD error, largest first."""
    complete = trials.dropna()
    parameters = [name for name in complete.columns if name != SELD_ERROR.name]
    found = {name: _distribution(complete.loc[:, name]) for name in parameters}
    distributions = {name: kind for name, kind in found.items() if kind is not None}
    if len(complete) < _LEAST_TRIALS or len(distributions) < 2:
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
            for row in complete.to_dict("records")
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


def _rank(column: str) -> int:
    last = column.rpartition(".")[2]
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

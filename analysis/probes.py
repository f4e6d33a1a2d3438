"""What each pretraining had learnt before any label was seen: table and curves."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures import Picture, add_legend, arm_style, draw
from analysis.load import Results, Trial
from analysis.tables import Entry, Table
from seld.records import HISTORY_FILE


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A number of :mod:`trainables.probes` as the report prints it."""

    name: str
    label: str
    unit: str
    scale: float = 1.0
    digits: int = 0


PROBES = (
    Probe(name="retrieval_top1", label="Retrieval", unit="%", scale=100),
    Probe(name="retrieval_direction_shuffled_top1", label="Asked elsewhere", unit="%", scale=100),
    Probe(name="retrieval_direction_top1", label="Own direction", unit="%", scale=100),
    Probe(name="linear_class_accuracy", label="Class probe", unit="%", scale=100),
    Probe(name="linear_doa_error_deg", label="DOA probe", unit="°"),
    Probe(name="participation_ratio", label="Dimensions", unit="", digits=1),
    Probe(name="temporal_variance_share", label="Varies in time", unit="%", scale=100),
)

#: ``{averaged}``: over what the numbers are means.
_NOTE = (
    "Measured on annotated clips that pretraining never saw, though a sound bank's recordings may "
    "recur in them; mean over {averaged}, chance level in brackets. Retrieval: the crop nearest to "
    "the sound at an event's direction, among the event crops of other recordings, shows the same "
    "class. Asked elsewhere: the same with the sound at a random other direction; as high as "
    "retrieval means that the embedding says what, not where. Own direction: the event's own crop "
    "is nearest among up to 16 others of its window. Class and DOA probe: ridge regressions on "
    "frozen latents. Dimensions: the latents' participation ratio. A pretraining has learnt "
    "classes where retrieval beats chance by three standard errors; directions it may have learnt "
    "all the same."
)

#: Drawn over the steps: title of the axis, probe.
_CURVES = (
    ("Retrieval (%)", "retrieval_top1"),
    ("Class probe (%)", "linear_class_accuracy"),
    ("DOA probe (°)", "linear_doa_error_deg"),
)


def probes_table(results: Results) -> Table:
    """One row per pretrained arm; no rows where nothing was probed."""
    rows, values = [], []
    of_arms = pretrainings(results)
    for arm, trials in of_arms.items():
        learnt = sum(trial.record.pretraining_learnt is True for trial in trials)
        asked = sum(trial.record.pretraining_learnt is not None for trial in trials)
        entries = [Entry(text=arm), Entry(text=f"{learnt} of {asked}")]
        numbers: dict[str, object] = {"arm": arm, "learnt": learnt, "pretrainings": len(trials)}
        for probe in PROBES:
            mean, chance = (
                f"{number:.{probe.digits}f}" if number is not None else None
                for number in (
                    _mean(trials, name, probe.scale)
                    for name in (probe.name, f"{probe.name}_chance")
                )
            )
            entries.append(Entry(text=mean or "–", interval=f"({chance})" if chance else ""))
            numbers |= {probe.name: mean, f"{probe.name}_chance": chance}
        rows.append(tuple(entries))
        values.append(numbers)
    labels = [f"{probe.label} [{probe.unit}]" if probe.unit else probe.label for probe in PROBES]
    return Table(
        name="probes",
        title="What pretraining had learnt, before fine-tuning",
        note=_NOTE.format(averaged=_averaged(results, of_arms)),
        columns=("Arm", "Classes learnt", *labels),
        rows=tuple(rows),
        numeric=frozenset(range(2, 2 + len(PROBES))),
        values=tuple(values),
    )


def probe_figures(results: Results) -> list[Picture]:
    """Probes over the steps of pretraining, a line per arm; none where no curve was kept."""
    curves = {
        arm: curve
        for arm, trials in pretrainings(results).items()
        if not (curve := _mean_curve(trials)).empty
    }
    if not curves:
        return []

    def paint(figure: Figure) -> None:
        panels: Sequence[Axes] = figure.subplots(1, len(_CURVES))
        for axes, (title, name) in zip(panels, _CURVES, strict=True):
            scale = 1.0 if name.endswith("_deg") else 100.0
            for arm, curve in curves.items():
                if name not in curve:
                    continue
                colour, line, marker = arm_style(results, arm)
                drawn = scale * curve[name].dropna()
                axes.plot(drawn, color=colour, linestyle=line, marker=marker, label=arm)
            chances = [
                curve[f"{name}_chance"].mean()
                for curve in curves.values()
                if f"{name}_chance" in curve
            ]
            if chances:
                axes.axhline(scale * float(np.mean(chances)), color="#888888", linewidth=0.8)
            axes.set_title(title)
            axes.set_xlabel("step")
            axes.set_ylim(bottom=0)
        add_legend(figure, panels[0], "outside lower center", least=1)

    return [
        draw(
            "pretraining-probes",
            "What is learnt, step by step",
            f"Mean over {_averaged(results, curves)} at every state kept; the grey line is "
            "chance. Left: crops of the right class found by the sound. Middle and right: ridge "
            "regressions on the frozen latents, accuracy of the class and error of the direction.",
            (7.2, 2.4),
            paint,
        )
    ]


def pretrainings(results: Results) -> Mapping[str, list[Trial]]:
    """Per arm, in the order of all tables, one trial of each pretraining: budgets share it."""
    found: dict[str, dict[str, Trial]] = {}
    for trial in results.trials:
        keys = [stage.key for stage in trial.record.stages if stage.name == "pretrain"]
        # Every probing gives it; older records hold the training's own metrics beside the probes.
        if "participation_ratio" in trial.record.probes:
            key = keys[0] if keys else f"seed {trial.record.seed}"
            found.setdefault(trial.arm, {}).setdefault(key, trial)
    arms = dict.fromkeys(results.labels.values())
    return {arm: list(found[arm].values()) for arm in arms if arm in found}


def _averaged(results: Results, arms: Collection[str]) -> str:
    """What an arm's numbers are means over; the settings of a sweep's trials differ."""
    swept = results.swept_arms.intersection(arms)
    if not swept:
        return "seeds"
    trials = "trials of all settings and lengths"
    return trials if len(swept) == len(arms) else f"seeds (of swept arms: over {trials})"


def _mean(trials: Sequence[Trial], name: str, scale: float) -> float | None:
    """Of what was measured; None where any of it is not a number."""
    values = [trial.record.probes[name] for trial in trials if name in trial.record.probes]
    mean = scale * float(np.mean(values)) if values else math.nan
    return mean if math.isfinite(mean) else None


def _mean_curve(trials: Sequence[Trial]) -> pd.DataFrame:
    """Step × probe, mean over the trials whose curves can be read."""
    names = [name for _, probe in _CURVES for name in (probe, f"{probe}_chance")]
    tables = []
    for trial in trials:
        path = trial.folder / HISTORY_FILE
        try:
            table = pd.read_csv(path)
        except (OSError, ValueError):
            continue  # a curve less; the trial's scores are told elsewhere
        if {"stage", "step", "name", "value"} <= set(table.columns):
            tables.append(table[(table["stage"] == "pretrain") & table["name"].isin(names)])
    if not tables:
        return pd.DataFrame()
    joined = pd.concat(tables)
    return joined.pivot_table(index="step", columns="name", values="value", aggfunc="mean")

"""Figures for papers: readable in grey by markers and line styles, as SVG and PNG."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator
from numpy.typing import NDArray

from analysis.compare import (
    CellEstimates,
    Comparison,
    Estimate,
    estimate,
    never_found_classes,
)
from analysis.events import Matches, match_events
from analysis.load import Results, Trial, Unreadable
from analysis.scores import F20, LE_CD, SELD_ERROR, Score
from analysis.sweeps import Points, importances, is_logarithmic, points, responses
from analysis.tables import minutes
from seld.errors import InputError
from seld.metrics import COUNT_COLUMNS, WORST_ERROR_DEG
from seld.records import PREDICTIONS_FOLDER

Floats = NDArray[np.float64]

#: Colour (apart for colour-blind readers, and of different lightness), line style, marker.
_STYLES: tuple[tuple[str, str, str], ...] = (
    ("#222222", "-", "o"),
    ("#0072B2", "--", "s"),
    ("#D55E00", "-.", "^"),
    ("#009E73", ":", "D"),
    ("#9A4F96", (0, (5, 1)), "v"),
    ("#56B4E9", (0, (3, 1, 1, 1)), "P"),
    ("#B8860B", (0, (1, 1)), "X"),
    ("#7F7F7F", (0, (8, 2)), "*"),
)  # pyright: ignore[reportAssignmentType]

_SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.5,
    "lines.markersize": 5,
    "hatch.linewidth": 0.6,
    "svg.hashsalt": "seld",
}
_WIDTH_IN = 5.6
_PNG_DPI = 200
_LEGEND_COLUMNS = 3
#: Left and right of a legend together.
_LEGEND_BORDER_IN = 0.15
#: Labels of more characters than these, side by side, would touch: they are turned upright.
_LABEL_CHARACTERS = 55
#: What an upright label takes; rooms that need more than a figure's width make it wider.
_ROOM_WIDTH_IN = 0.21
#: Of all figures that a report may have.
NAMES = (
    *("budget", "localisation_detection", "classes", "rooms", "confusion", "azimuth_error"),
    *("tracks", "front", "responses", "importances", "pretraining-probes"),
)
#: Settings whose response is drawn; a sweep varies more only by mistake.
_MOST_RESPONSES = 6
#: Numbers with more values than this have medians of parts, not of values.
_MOST_VALUES = 8
#: These parts have as many trials each, and a median where that is two or more.
_PARTS = 6
#: Numbers below it are written with their power of ten.
_SMALL = 1e-3


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A drawn figure: its file name's stem, title, caption and both renderings."""

    name: str
    title: str
    caption: str
    svg: bytes
    png: bytes

    def write(self, folder: Path) -> None:
        """Write ``<name>.svg`` and ``<name>.png``."""
        (folder / f"{self.name}.svg").write_bytes(self.svg)
        (folder / f"{self.name}.png").write_bytes(self.png)


def draw(
    name: str,
    title: str,
    caption: str,
    size_in: tuple[float, float],
    paint: Callable[[Figure], None],
) -> Picture:
    """Make a figure of this size, let ``paint`` fill it, render it."""
    with mpl.rc_context(_SETTINGS):
        figure = Figure(figsize=size_in, layout="constrained")
        paint(figure)
        svg, png = io.BytesIO(), io.BytesIO()
        figure.savefig(svg, format="svg", metadata={"Date": None})
        figure.savefig(png, format="png", dpi=_PNG_DPI)
    return Picture(name=name, title=title, caption=caption, svg=svg.getvalue(), png=png.getvalue())


def score_figures(comparison: Comparison, baseline: str) -> list[Picture]:
    """Everything that is drawn from scores alone."""
    drawn = [budget_curves(comparison), localisation_against_detection(comparison)]
    pair = _class_pair(comparison, baseline)
    if pair is not None:
        drawn.append(class_differences(comparison, pair))
    drawn.append(rooms(comparison))
    return [picture for picture in drawn if picture is not None]


def budget_curves(comparison: Comparison) -> Picture | None:
    """SELD error against annotation budget, a line with its band per arm.

    With a single budget there is no curve: the arms stand below each other by name.
    """
    cells = [cell for cell in comparison.cells.values() if cell.estimates]
    if not cells:
        return None
    arms = [arm for arm in comparison.results.arms if any(cell.arm == arm for cell in cells)]
    budgets = sorted({cell.budget_minutes for cell in cells})
    if len(budgets) == 1:
        return _errors_by_arm(comparison.results, cells, budgets[0])
    # Arms side by side at each budget: their bars would hide each other.
    step = 0.12 / max(len(arms), 1)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for number, arm in enumerate(arms):
            own = [cell for cell in cells if cell.arm == arm]
            shift = 1 + step * (number - (len(arms) - 1) / 2)
            place = np.array([cell.budget_minutes for cell in own]) * shift
            found = [cell.estimates[SELD_ERROR.name] for cell in own]
            mean, low, high = (
                SELD_ERROR.scale * np.array([getattr(item, key) for item in found])
                for key in ("mean", "low", "high")
            )
            colour, line, marker = arm_style(comparison.results, arm)
            axes.fill_between(place, low, high, color=colour, alpha=0.08, linewidth=0)
            axes.errorbar(
                place,
                mean,
                yerr=np.nan_to_num([mean - low, high - mean]),
                color=colour,
                linestyle=line,
                marker=marker,
                capsize=2,
                elinewidth=0.9,
                label=arm,
            )
        axes.set_xscale("log")
        axes.set_xticks(budgets, [f"{budget:g}" for budget in budgets])
        axes.minorticks_off()
        axes.set_xlabel("annotated minutes")
        axes.set_ylabel(SELD_ERROR.heading)
        _limit(SELD_ERROR, axes.get_ylim, axes.set_ylim)
        add_legend(figure, axes)

    return draw(
        "budget",
        "SELD error against annotation budget",
        "Mean over seeds; bars and bands are 95 % intervals over seeds and test recordings, for "
        "each arm by itself: whether two arms differ is in the table of paired differences. "
        "Arms stand side by side at each budget. Lower is better.",
        (_WIDTH_IN, 3.4),
        paint,
    )


def _errors_by_arm(
    results: Results, cells: Sequence[CellEstimates], budget_minutes: float
) -> Picture:
    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for row, cell in enumerate(cells):
            found = cell.estimates[SELD_ERROR.name]
            colour, _, marker = arm_style(results, cell.arm)
            axes.errorbar(
                SELD_ERROR.scale * found.mean,
                row,
                xerr=_bars(found, SELD_ERROR.scale),
                color=colour,
                marker=marker,
                capsize=2,
                elinewidth=0.9,
            )
        axes.set_yticks(range(len(cells)), [cell.arm for cell in cells])
        axes.set_ylim(len(cells) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(SELD_ERROR.heading)
        _limit(SELD_ERROR, axes.get_xlim, axes.set_xlim)

    return draw(
        "budget",
        f"SELD error at {minutes(budget_minutes)}",
        "Mean over seeds; bars are 95 % intervals over seeds and test recordings. They show each "
        "arm by itself: whether two arms differ is in the table of paired differences. Lower is "
        "better.",
        (_WIDTH_IN, 0.9 + 0.3 * len(cells)),
        paint,
    )


def localisation_against_detection(comparison: Comparison) -> Picture | None:
    """LE_CD against F20 per arm at the largest budget."""
    budget = comparison.largest_budget
    if budget is None:
        return None

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for arm in comparison.results.arms:
            cell = comparison.cells.get((arm, budget))
            if cell is None or not cell.estimates:
                continue
            across, along = cell.estimates[F20.name], cell.estimates[LE_CD.name]
            colour, _, marker = arm_style(comparison.results, arm)
            axes.errorbar(
                F20.scale * across.mean,
                LE_CD.scale * along.mean,
                xerr=_bars(across, F20.scale),
                yerr=_bars(along, LE_CD.scale),
                color=colour,
                marker=marker,
                linestyle="none",
                elinewidth=0.8,
                label=arm,
            )
        axes.set_xlabel(f"{F20.symbol_heading}, higher is better →")
        axes.set_ylabel(f"← lower is better, {LE_CD.symbol_heading}")
        _limit(F20, axes.get_xlim, axes.set_xlim)
        _limit(LE_CD, axes.get_ylim, axes.set_ylim)
        add_legend(figure, axes)

    return draw(
        "localisation_detection",
        f"Localisation against detection at {minutes(budget)}",
        "Towards the lower right is better at both. Bars are 95 % intervals.",
        (_WIDTH_IN, 3.4),
        paint,
    )


def class_differences(comparison: Comparison, pair: tuple[str, str]) -> Picture | None:
    """Per class, the paired difference of F20 and LE_CD of two arms at the largest budget."""
    budget = comparison.largest_budget
    first, second = pair
    if budget is None or comparison.difference(first, second, budget).refusals:
        return None
    trials = comparison.pairs(first, second, budget)
    record = trials[0][0].record
    counts = trials[0][0].counts
    assert counts is not None
    recordings = len(counts.recordings)
    references = counts.values[..., COUNT_COLUMNS.index("references")]  # noqa: PD011
    present = np.flatnonzero(references.sum(axis=0) > 0)
    unseen = set(record.class_names) - set(record.unannotated_classes or record.class_names)
    never_found = np.any([never_found_classes(trial) for pair in trials for trial in pair], axis=0)

    def paint(figure: Figure) -> None:
        panels = figure.subplots(1, 2, sharey=True)
        for axes, score in zip(panels, (F20, LE_CD), strict=True):
            difference = np.stack(
                [
                    comparison.class_scores(a)[score.name] - comparison.class_scores(b)[score.name]
                    for a, b in trials
                ],
                axis=1,
            )  # (1 + draw, seed, class)
            for row, class_id in enumerate(present):
                if score is LE_CD and never_found[class_id]:
                    continue
                found = estimate(
                    difference[0, :, class_id], difference[1:, :, class_id], recordings
                )
                axes.errorbar(
                    score.scale * found.mean,
                    row,
                    xerr=_bars(found, score.scale),
                    color="#222222",
                    marker="o",
                    markerfacecolor="#222222" if score.improves(found.mean) else "white",
                    elinewidth=0.9,
                    capsize=2,
                )
            axes.axvline(0, color="#888888", linewidth=0.9)
            axes.set_xlabel(f"Δ {score.symbol_heading}")
        panels[0].set_yticks(
            range(len(present)),
            [
                record.class_names[c].replace("_", " ")
                + (" †" if record.class_names[c] in unseen else "")
                for c in present
            ],
        )
        panels[0].invert_yaxis()

    note = " † not in the pretraining data." if unseen else ""
    undrawn = [record.class_names[c].replace("_", " ") for c in present if never_found[c]]
    if undrawn:
        note += (
            f" {LE_CD.label} is not compared where a trial never finds the class, which is "
            f"{WORST_ERROR_DEG:g}° by definition: {', '.join(undrawn)}."
        )
    return draw(
        "classes",
        f"Per class: {first} minus {second} at {minutes(budget)}",
        f"Paired differences with 95 % intervals, not corrected for the number of classes; "
        f"filled: {first} is better.{note}",
        (_WIDTH_IN, 1.1 + 0.24 * len(present)),
        paint,
    )


def rooms(comparison: Comparison) -> Picture | None:
    """SELD error per test room and arm at the largest budget."""
    budget = comparison.largest_budget
    if budget is None:
        return None
    by_arm: dict[str, dict[str, list[float]]] = {}
    for arm in comparison.results.arms:
        for trial in comparison.results.cells.get((arm, budget), []):
            for row in trial.record.per_room if trial.finished else ():
                rooms_of_arm = by_arm.setdefault(arm, {})
                rooms_of_arm.setdefault(str(row["room"]), []).append(row[SELD_ERROR.name])
    names = sorted({room for rows in by_arm.values() for room in rows}, key=_natural)
    if not names:
        return None

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for number, (arm, rows) in enumerate(by_arm.items()):
            found = [np.asarray(rows.get(room, [np.nan])) * SELD_ERROR.scale for room in names]
            mean = np.array([seeds.mean() for seeds in found])
            shift = 0.6 * ((number + 0.5) / len(by_arm) - 0.5)
            colour, _, marker = arm_style(comparison.results, arm)
            axes.errorbar(
                np.arange(len(names)) + shift,
                mean,
                yerr=np.nan_to_num(
                    [
                        mean - [seeds.min() for seeds in found],
                        [seeds.max() for seeds in found] - mean,
                    ]
                ),
                color=colour,
                marker=marker,
                linestyle="none",
                elinewidth=0.9,
                label=arm,
            )
        crowded = sum(len(name) + 1 for name in names) > _LABEL_CHARACTERS
        axes.set_xticks(range(len(names)), names, rotation=90 if crowded else 0)
        axes.set_xlim(-0.6, len(names) - 0.4)
        axes.grid(visible=False, axis="x")
        axes.set_xlabel("test room")
        axes.set_ylabel(SELD_ERROR.heading)
        add_legend(figure, axes)

    return draw(
        "rooms",
        f"SELD error per test room at {minutes(budget)}",
        "Mean over seeds; bars reach from the best to the worst seed.",
        (max(_WIDTH_IN, 0.8 + _ROOM_WIDTH_IN * len(names)), 3.2),
        paint,
    )


def prediction_figures(
    comparison: Comparison, baseline: str
) -> tuple[list[Picture], list[Unreadable]]:
    """What is drawn from predicted events: of the best arm, and of the baseline beside it.

    Returns:
        The figures, and the prediction files that could not be read.
    """
    budget = comparison.largest_budget
    if budget is None:
        return [], []
    best = _best_first(comparison, budget)[0]
    matched: dict[str, Matches] = {}
    shown: dict[str, Trial] = {}
    unreadable = []
    for arm in dict.fromkeys((best, baseline)):
        trial = _typical_trial(comparison, arm, budget)
        if trial is None or not (trial.folder / PREDICTIONS_FOLDER).is_dir():
            continue
        try:
            matched[arm] = match_events(trial)
            shown[arm] = trial
        except InputError as error:
            unreadable.append(Unreadable(trial.folder / PREDICTIONS_FOLDER, str(error)))
    pictures = []
    if best in matched:
        pictures += [_confusion(shown[best], matched[best])]
    if matched:
        pictures += [_azimuth_errors(comparison, matched, budget)]
    if best in matched:
        pictures += [_tracks(shown[best], matched[best])]
    return pictures, unreadable


def _confusion(trial: Trial, matches: Matches) -> Picture:
    names = [*(name.replace("_", " ") for name in trial.record.class_names), "nothing"]
    totals = matches.confusion.sum(axis=1, keepdims=True)
    share = matches.confusion / np.maximum(totals, 1)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.grid(visible=False)
        axes.imshow(share, cmap="Greys", vmin=0, vmax=1)
        for row, column in zip(*np.nonzero(share >= 0.01), strict=True):
            axes.text(
                column,
                row,
                f"{100 * share[row, column]:.0f}",
                ha="center",
                va="center",
                fontsize=6.5,
                color="white" if share[row, column] > 0.65 else "black",
            )
        axes.set_xticks(range(len(names)), [*names[:-1], "missed"], rotation=60, ha="right")
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("predicted")
        axes.set_ylabel("reference")

    return draw(
        "confusion",
        f"Confusions of {trial.arm} at {minutes(trial.budget_minutes)}",
        "Percent of each class's frames (of all false events in the last row), events matched by "
        f"direction within 20°. Seed {trial.record.seed}, the middle one by SELD error "
        "(of two the better).",
        (_WIDTH_IN, 5.3),
        paint,
    )


def _azimuth_errors(comparison: Comparison, matched: dict[str, Matches], budget: float) -> Picture:
    edges = np.arange(-180, 181, 10)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        # In the order of all figures; the first is filled, so that lines do not hide each other.
        arms = [arm for arm in comparison.results.arms if arm in matched]
        for number, arm in enumerate(arms):
            colour, line, _ = arm_style(comparison.results, arm)
            counted, _ = np.histogram(matched[arm].azimuth_error_deg, edges)
            filled = {"fill": True, "facecolor": "#dddddd"} if number == 0 and len(arms) > 1 else {}
            axes.stairs(
                100 * counted / max(counted.sum(), 1),
                edges,
                edgecolor=colour,
                linestyle="-" if filled else line,
                linewidth=1.4,
                label=arm,
                **filled,
            )
        axes.set_xticks(range(-180, 181, 60))
        axes.set_xlabel("azimuth, prediction minus reference (°)")
        axes.set_ylabel("frames (%)")
        add_legend(figure, axes)

    return draw(
        "azimuth_error",
        f"Azimuth errors at {minutes(budget)}",
        "Events of the same class in the same frame, matched by direction; bins of 10°. A second "
        "peak near ±180° means the opposite azimuth, x and y both of the wrong sign: FOA's dipoles "
        "hear opposite directions alike but for their sign. Front-back confusion, 180° − a for a, "
        "has no peak here: its error depends on a. The middle seed "
        "of each arm by SELD error (of two the better).",
        (_WIDTH_IN, 3.4),
        paint,
    )


def _tracks(trial: Trial, matches: Matches) -> Picture:
    names = trial.record.class_names
    classes = matches.reference["class_id"].value_counts().index[: len(_STYLES) - 1].tolist()

    def paint(figure: Figure) -> None:
        panels = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
        for axes, column, limits in zip(
            panels, ("azimuth_deg", "elevation_deg"), ((-180, 180), (-90, 90)), strict=True
        ):
            for number, class_id in enumerate(classes):
                colour, _, marker = _style(number)
                true = _of_class(matches.reference, class_id)
                guessed = _of_class(matches.prediction, class_id)
                for source in true["source_id"].unique():
                    track = true.loc[true["source_id"] == source, ["frame", column]]
                    axes.plot(
                        *_with_gaps(track.to_numpy(np.float64)),
                        color=colour, alpha=0.3, linewidth=5, solid_capstyle="butt",
                    )  # fmt: skip
                axes.plot(
                    guessed["frame"] / 10, guessed[column], linestyle="none", marker=marker,
                    markersize=3, color=colour, markeredgewidth=0,
                    label=names[class_id].replace("_", " "),
                )  # fmt: skip
            axes.set_ylim(limits)
            axes.set_yticks(range(limits[0], limits[1] + 1, 90))
            axes.set_ylabel(column.removesuffix("_deg") + " (°)")
        panels[1].set_xlabel("time (s)")
        add_legend(figure, panels[0])

    return draw(
        "tracks",
        f"Tracks of {matches.recording}",
        f"Wide pale bands: reference; small marks: {trial.arm} at "
        f"{minutes(trial.budget_minutes)}, seed {trial.record.seed}. The test recording with most "
        f"events, its {len(classes)} most frequent classes.",
        (_WIDTH_IN, 4.2),
        paint,
    )


def _with_gaps(track: Floats) -> tuple[Floats, Floats]:
    """Frames and angles (frame, 2) as a line in seconds and degrees.

    It breaks where the sound pauses, and where its azimuth passes from one side of the rear to
    the other.
    """
    frame, angle_deg = track.T
    breaks = np.flatnonzero((np.diff(frame) > 1) | (np.abs(np.diff(angle_deg)) > 180)) + 1
    return np.insert(frame / 10, breaks, np.nan), np.insert(angle_deg, breaks, np.nan)


def sweep_figures(comparison: Comparison) -> list[Picture]:
    """Responses of the SELD error to single settings; of sweeps front and importances too."""
    found = points(comparison.results)
    of_settings = responses(comparison.results, comparison.largest_budget)
    swept = bool(comparison.results.swept_arms)
    budget = found.budget_minutes if swept else comparison.largest_budget
    place = f" at {minutes(budget)}" if budget else ""
    note, full = "", len(found.table)
    if found.tried > full:
        note = f" Of {found.tried} settings tried, only the {full} trained in full are shown."
    pictures = []
    if len(found.goals) > 1 and full:
        pictures.append(_front(found, place))
    if of_settings:
        shown = dict(list(of_settings.items())[:_MOST_RESPONSES])
        pictures.append(_responses(shown, place, note, swept=swept))
    if weights := importances(found.complete):
        partly = [name for name in found.settings if name not in found.complete]
        if partly:
            note += f" Not weighed, as only some trials use them: {', '.join(partly)}."
        pictures.append(_importances(weights, full, place, note))
    return pictures


def _front(found: Points, place: str) -> Picture:
    """The first goal against the second, the trials that no other one beats filled."""
    along, across = found.goals[:2]

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for trials, face, label in (
            (found.table.loc[~found.on_front], "white", "others"),
            (found.best, "#222222", "on the front"),
        ):
            axes.plot(
                across.scale * trials[across.name], along.scale * trials[along.name],
                linestyle="none", marker="o", color="#222222", markerfacecolor=face, label=label,
            )  # fmt: skip
        axes.set_xlabel(across.heading)
        axes.set_ylabel(along.heading)
        add_legend(figure, axes)

    goals = " and ".join(goal.label for goal in found.goals)
    return draw(
        "front",
        f"{along.label} against {across.label}",
        f"One point per trial{place}; filled: on the front, where no other one is as low in "
        f"{goals}.",
        (_WIDTH_IN, 3.4),
        paint,
    )


def _responses(
    of_settings: dict[str, pd.DataFrame], at_budget: str, note: str, *, swept: bool
) -> Picture:
    parameters = list(of_settings)
    columns = min(2, len(parameters))
    rows = -(-len(parameters) // columns)
    titles = _setting_titles(parameters)

    def paint(figure: Figure) -> None:
        panels = np.atleast_1d(figure.subplots(rows, columns, sharey=True)).ravel()
        for axes, (name, trials) in zip(panels, of_settings.items(), strict=False):
            error = pd.Series(SELD_ERROR.scale * trials[SELD_ERROR.name])
            values = pd.Series(trials[name])
            if not pd.api.types.is_numeric_dtype(values):
                values = values.astype(str)
            numeric = pd.api.types.is_numeric_dtype(values)
            middle = _running_median(values, error)
            place = values if numeric else values.map(list(middle.index).index)
            axes.plot(
                place, error, linestyle="none", marker="o", markersize=3.5, alpha=0.45,
                color="#222222", markeredgewidth=0,
            )  # fmt: skip
            if numeric:
                axes.plot(middle.index, middle, color="#0072B2", linewidth=1.6)
            else:
                # Names have no order that a line could follow.
                axes.plot(
                    range(len(middle)), middle, linestyle="none", marker="_", markersize=22,
                    markeredgewidth=1.8, color="#0072B2",
                )  # fmt: skip
                names = [str(text).replace("_", "\n") for text in middle.index]
                axes.set_xticks(range(len(middle)), names)
                axes.set_xlim(-0.5, len(middle) - 0.5)
            if is_logarithmic(values):
                axes.set_xscale("log")
            if numeric:
                _few_ticks(axes, values)
            axes.set_xlabel(titles[name])
        for axes in panels[len(parameters) :]:
            axes.set_visible(False)
        for axes in panels[::columns]:
            axes.set_ylabel(SELD_ERROR.heading)

    others = "Other settings vary too, so a median is an average over them."
    if not swept:
        others = "Only of arms that differ from each other in this setting alone."
    return draw(
        "responses",
        "Response to the varied settings",
        f"One point per trial{at_budget}; line or bar: median of the values, or of six equal "
        f"parts of them where two trials or more are in each. {others}{note}",
        (_WIDTH_IN, 0.6 + 2.3 * rows),
        paint,
    )


def _running_median(values: pd.Series, error: pd.Series) -> pd.Series:
    """The median error by value, or of parts of the values; none where there is too little."""
    if not pd.api.types.is_numeric_dtype(values) or _repeated(values):
        return error.groupby(values).median()
    if len(values) < 2 * _PARTS:
        return pd.Series(dtype=np.float64)
    part = pd.qcut(values, _PARTS, duplicates="drop")
    middle = error.groupby(part, observed=True).median()
    middle.index = pd.Index(values.groupby(part, observed=True).median())
    return middle


def _repeated(values: pd.Series) -> bool:
    """Whether the numbers were chosen from a few, as against proposed from a range.

    Then there are two trials or more of a value, on the average.
    """
    return values.nunique() <= min(_MOST_VALUES, len(values) / 2)


#: What settings are called where the paper has a word for them.
_SETTING_TITLES = {
    "pretrain.temperature": "temperature τ",
    "pretrain.directions.grid.count": "directions K",
}


def _setting_titles(names: Sequence[str]) -> dict[str, str]:
    """By dotted name, what an axis calls a setting: its last part, the stage where two share it."""
    last = [name.rpartition(".")[2] for name in names]
    titles = {}
    for name, short in zip(names, last, strict=True):
        stage = f" ({name.partition('.')[0]})" if last.count(short) > 1 else ""
        titles[name] = _SETTING_TITLES.get(name, short.replace("_", " ") + stage)
    return titles


def _few_ticks(axes: Axes, values: pd.Series) -> None:
    """Ticks at the values where they are few and repeated; on logarithmic axes at 1, 2, 5, 10."""
    if _repeated(values):
        axes.xaxis.set_major_locator(FixedLocator(sorted(values.unique())))
    elif axes.get_xscale() == "log":
        decades = np.log10(values.max() / values.min())
        steps = (1, 2, 5) if decades < 1.6 else (1, 3) if decades < 3 else (1,)
        axes.xaxis.set_major_locator(LogLocator(subs=steps))
    else:
        return
    axes.xaxis.set_major_formatter(FuncFormatter(_short_number))
    axes.xaxis.set_minor_locator(NullLocator())


def _short_number(value: float, _: object = None) -> str:
    """Three digits, and of whole numbers all: 0.0305, 1.5e-4, 16000."""
    if value and abs(value) < _SMALL:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:g}"


def _importances(weights: dict[str, float], trial_count: int, place: str, note: str) -> Picture:
    shown = dict(list(weights.items())[:10])

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.barh(
            list(_setting_titles(list(shown)).values()),
            list(shown.values()),
            color="#dddddd",
            edgecolor="#222222",
            hatch="//",
        )
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("importance for a low SELD error (sum 1)")

    return draw(
        "importances",
        "Which settings matter",
        f"Optuna's PED-ANOVA importances from {trial_count} trials{place}.{note}",
        (_WIDTH_IN, 1.0 + 0.32 * len(shown)),
        paint,
    )


def _best_first(comparison: Comparison, budget: float) -> list[str]:
    """Arms with scores at the budget, in order of their SELD error."""
    found = [
        (cell.estimates[SELD_ERROR.name].mean, arm)
        for (arm, at), cell in comparison.cells.items()
        if at == budget and cell.estimates
    ]
    return [arm for _, arm in sorted(found)]


def _typical_trial(comparison: Comparison, arm: str, budget: float) -> Trial | None:
    """The finished trial in the middle by SELD error; of two in the middle the better one."""
    trials = [t for t in comparison.results.cells.get((arm, budget), []) if t.finished]
    trials.sort(key=lambda trial: trial.record.metrics[SELD_ERROR.name])
    return trials[(len(trials) - 1) // 2] if trials else None


def _of_class(table: pd.DataFrame, class_id: int) -> pd.DataFrame:
    return table.loc[table["class_id"] == class_id]


def _class_pair(comparison: Comparison, baseline: str) -> tuple[str, str] | None:
    """DOA-wise and recording-wise, else the best arm and the baseline, else the best two.

    Of those that can be compared at the largest budget: not every arm need have run there.
    """
    budget = comparison.largest_budget
    if budget is None:
        return None
    arms = _best_first(comparison, budget)
    pairs = [
        ("doa_wise", "recording_wise"),
        *((arm, baseline) for arm in arms if arm != baseline),
        *itertools.combinations(arms, 2),
    ]
    comparable = (pair for pair in pairs if not comparison.difference(*pair, budget).refusals)
    return next(comparable, None)


def _bars(found: Estimate, scale: float) -> list[list[float]]:
    if not found.has_interval:
        return [[0.0], [0.0]]
    return [[scale * (found.mean - found.low)], [scale * (found.high - found.mean)]]


def _limit(
    score: Score, limits: Callable[[], tuple[float, float]], set_limits: Callable[..., object]
) -> None:
    """Let an axis end where the score does, if something is drawn that far out."""
    low, high = limits()
    # A little is left for what is drawn at the very end.
    margin = 0.01 * (high - low)
    set_limits(
        max(low, score.scale * score.lowest - margin),
        min(high, score.scale * score.highest + margin),
    )


def arm_style(results: Results, arm: str) -> tuple[str, str, str]:
    """Colour, line style and marker of an arm: the same in all figures of a report."""
    return _style(results.drawn_arms.index(arm))


def _style(number: int) -> tuple[str, str, str]:
    colour, line, _ = _STYLES[number % len(_STYLES)]
    # The second round shifts the markers, so that no pair comes twice before 64 arms.
    marker = _STYLES[(number + number // len(_STYLES)) % len(_STYLES)][2]
    return colour, line, marker


def add_legend(
    figure: Figure,
    axes: Axes,
    place: Literal["outside upper left", "outside lower center"] = "outside upper left",
    *,
    least: int = 2,
) -> None:
    """A legend of the panel's labels, where they are at least so many.

    It has as many columns as fit the figure's width, and the figure grows by its height, so that
    many names cost the panels nothing.
    """
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) < least:
        return
    for columns in range(_LEGEND_COLUMNS, 0, -1):
        legend = figure.legend(handles, labels, loc=place, ncols=columns)
        size_px = legend.get_window_extent()
        if size_px.width / figure.dpi <= figure.get_figwidth() - _LEGEND_BORDER_IN or columns == 1:
            figure.set_figheight(figure.get_figheight() + size_px.height / figure.dpi)
            return
        legend.remove()


def _natural(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdigit() else (10**9, name)

"""Figures for papers: readable in grey by markers and line styles, as SVG and PNG."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.compare import Comparison, estimate
from analysis.scores import F20, LE_CD, SELD_ERROR
from analysis.tables import minutes

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

_SETTINGS = {
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
#: More arms than this are drawn without markers of their own in the legend's second column.
_LEGEND_COLUMNS = 3


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
    """SELD error against annotation budget, a line with its band per arm."""
    cells = [cell for cell in comparison.cells.values() if cell.estimates]
    if not cells:
        return None
    arms = [arm for arm in comparison.results.arms if any(cell.arm == arm for cell in cells)]
    budgets = sorted({cell.budget_minutes for cell in cells})
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
            colour, line, marker = _style(number)
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
        if len(budgets) == 1:
            axes.set_xlim(budgets[0] * 0.8, budgets[0] * 1.25)
        _legend(figure, axes)

    return draw(
        "budget",
        "SELD error against annotation budget",
        "Mean over seeds; bars and bands are 95 % intervals over seeds and test recordings. "
        "Arms stand side by side at each budget. Lower is better.",
        (_WIDTH_IN, 3.7),
        paint,
    )


def localisation_against_detection(comparison: Comparison) -> Picture | None:
    """LE_CD against F20 per arm at the largest budget."""
    budget = _largest_budget(comparison)
    if budget is None:
        return None

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for number, arm in enumerate(comparison.results.arms):
            cell = comparison.cells.get((arm, budget))
            if cell is None or not cell.estimates:
                continue
            across, along = cell.estimates[F20.name], cell.estimates[LE_CD.name]
            colour, _, marker = _style(number)
            axes.errorbar(
                F20.scale * across.mean,
                along.mean,
                xerr=_bars(across.mean, across.low, across.high, F20.scale),
                yerr=_bars(along.mean, along.low, along.high, 1.0),
                color=colour,
                marker=marker,
                linestyle="none",
                elinewidth=0.8,
                label=arm,
            )
        axes.set_xlabel(f"{F20.heading}, higher is better →")
        axes.set_ylabel(f"← lower is better, {LE_CD.heading}")
        _legend(figure, axes)

    return draw(
        "localisation_detection",
        f"Localisation against detection at {minutes(budget)}",
        "Towards the lower right is better at both. Bars are 95 % intervals.",
        (_WIDTH_IN, 3.7),
        paint,
    )


def class_differences(comparison: Comparison, pair: tuple[str, str]) -> Picture | None:
    """Per class, the paired difference of F20 and LE_CD of two arms at the largest budget."""
    budget = _largest_budget(comparison)
    first, second = pair
    if budget is None or comparison.difference(first, second, budget).refusals:
        return None
    trials = comparison.pairs(first, second, budget)
    record = trials[0][0].record
    assert trials[0][0].counts is not None
    recordings = len(trials[0][0].counts.recordings)
    present = np.flatnonzero(trials[0][0].counts.values[..., 0].sum(axis=0) > 0)
    unseen = set(record.class_names) - set(record.unannotated_classes or record.class_names)

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
                found = estimate(
                    difference[0, :, class_id], difference[1:, :, class_id], recordings
                )
                better = (found.mean < 0) == score.lower_is_better
                axes.errorbar(
                    score.scale * found.mean,
                    row,
                    xerr=_bars(found.mean, found.low, found.high, score.scale),
                    color="#222222",
                    marker="o",
                    markerfacecolor="#222222" if better else "white",
                    elinewidth=0.9,
                    capsize=2,
                )
            axes.axvline(0, color="#888888", linewidth=0.9)
            axes.set_xlabel(f"Δ {score.heading}")
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
    budget = _largest_budget(comparison)
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
        for number, arm in enumerate(comparison.results.arms):
            rows = by_arm.get(arm, {})
            found = [np.asarray(rows.get(room, [np.nan])) * SELD_ERROR.scale for room in names]
            mean = np.array([values.mean() for values in found])
            shift = 0.6 * ((number + 0.5) / len(comparison.results.arms) - 0.5)
            colour, _, marker = _style(number)
            axes.errorbar(
                np.arange(len(names)) + shift,
                mean,
                yerr=np.nan_to_num(
                    [
                        mean - [values.min() for values in found],
                        [values.max() for values in found] - mean,
                    ]
                ),
                color=colour,
                marker=marker,
                linestyle="none",
                elinewidth=0.9,
                label=arm,
            )
        axes.set_xticks(range(len(names)), [f"room {name}" for name in names])
        axes.grid(visible=False, axis="x")
        axes.set_ylabel(SELD_ERROR.heading)
        _legend(figure, axes)

    return draw(
        "rooms",
        f"SELD error per test room at {minutes(budget)}",
        "Mean over seeds; bars reach from the best to the worst seed.",
        (_WIDTH_IN, 3.5),
        paint,
    )


def _class_pair(comparison: Comparison, baseline: str) -> tuple[str, str] | None:
    """DOA-wise and recording-wise where the study has both, else the best arm and the baseline."""
    arms = comparison.results.arms
    budget = _largest_budget(comparison)
    if "doa_wise" in arms and "recording_wise" in arms:
        return "doa_wise", "recording_wise"
    rivals = [
        (cell.estimates[SELD_ERROR.name].mean, arm)
        for (arm, at), cell in comparison.cells.items()
        if at == budget and arm != baseline and cell.estimates
    ]
    return (min(rivals)[1], baseline) if rivals else None


def _largest_budget(comparison: Comparison) -> float | None:
    budgets = [cell.budget_minutes for cell in comparison.cells.values() if cell.estimates]
    return max(budgets, default=None)


def _bars(mean: float, low: float, high: float, scale: float) -> list[list[float]]:
    return [[scale * (mean - low)], [scale * (high - mean)]] if low == low else [[0.0], [0.0]]


def _style(number: int) -> tuple[str, str, str]:
    colour, line, _ = _STYLES[number % len(_STYLES)]
    # The second round shifts the markers, so that no pair comes twice before 64 arms.
    marker = _STYLES[(number + number // len(_STYLES)) % len(_STYLES)][2]
    return colour, line, marker


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        figure.legend(handles, labels, loc="outside upper left", ncols=_LEGEND_COLUMNS)


def _natural(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdigit() else (10**9, name)

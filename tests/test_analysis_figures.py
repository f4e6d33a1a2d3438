"""What figures show, before it is rendered: styles, captions, and which arms are in them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch
from numpy.typing import NDArray
from simulated_study import VARIANTS, SimulatedStudy, failed, write_simulated_study

from analysis import figures
from analysis.compare import Comparison
from analysis.load import load_studies
from seld.records import TrialRecord

STUDY = SimulatedStudy(
    arms={name: VARIANTS[name] for name in ("scratch", "avc", "doa_wise", "recording_wise")},
    recordings=4,
    predictions=False,
)


@dataclass(frozen=True, kw_only=True)
class Painted:
    """A figure that was painted and not rendered."""

    name: str
    title: str
    caption: str
    figure: Figure

    @property
    def axes(self) -> Axes:
        """The first panel."""
        return self.figure.axes[0]

    @property
    def colours(self) -> dict[str, str]:
        """By arm, of what is labelled, or of the rows by their names."""
        bars = [item for item in self.axes.containers if isinstance(item, ErrorbarContainer)]
        names = [str(bar.get_label()) for bar in bars]
        if any(name.startswith("_") for name in names):
            names = [text.get_text() for text in self.axes.get_yticklabels()]
        found = {
            name: to_hex(bar.lines[0].get_color()) for name, bar in zip(names, bars, strict=True)
        }
        stairs = [item for item in self.axes.patches if isinstance(item, StepPatch)]
        return found | {str(item.get_label()): to_hex(item.get_edgecolor()) for item in stairs}

    @property
    def legend(self) -> list[str]:
        """The texts of the legend."""
        return [text.get_text() for legend in self.figure.legends for text in legend.get_texts()]


@pytest.fixture
def painted(monkeypatch: pytest.MonkeyPatch) -> dict[str, Painted]:
    """By name, what is drawn from now on."""
    found: dict[str, Painted] = {}

    def draw(
        name: str,
        title: str,
        caption: str,
        size_in: tuple[float, float],
        paint: Callable[[Figure], None],
    ) -> Painted:
        figure = Figure(figsize=size_in)
        paint(figure)
        found[name] = Painted(name=name, title=title, caption=caption, figure=figure)
        return found[name]

    monkeypatch.setattr(figures, "draw", draw)
    return found


def without(folder: Path, *patterns: str) -> Comparison:
    """The study's comparison without the trials of these names."""
    for pattern in patterns:
        for trial in folder.glob(f"trials/{pattern}"):
            shutil.rmtree(trial)
    return Comparison(load_studies([folder]))


@pytest.mark.parametrize("budgets", [(15.0, 60.0), (60.0,)])
def test_an_arm_has_one_colour_in_all_figures(
    tmp_path: Path, painted: dict[str, Painted], budgets: tuple[float, ...]
) -> None:
    """Though the first has no scores, and each figure leaves it out in its own way."""

    def change(record: TrialRecord) -> TrialRecord:
        return failed(record) if record.arm == "scratch" else record

    study = replace(STUDY, predictions=True, budgets_minutes=budgets, recordings=2)
    comparison = Comparison(load_studies([write_simulated_study(tmp_path / "s", study, change)]))
    figures.score_figures(comparison, "avc")
    figures.prediction_figures(comparison, "avc")
    arms = ("avc", "doa_wise", "recording_wise")
    wanted = {arm: figures.arm_style(comparison.results, arm)[0].lower() for arm in arms}
    assert len(set(wanted.values())) == len(arms)
    for name in ("budget", "localisation_detection", "rooms"):
        assert painted[name].colours == wanted, name
    of_two = painted["azimuth_error"].colours
    assert of_two.items() <= wanted.items()
    assert len(of_two) == 2
    assert painted["rooms"].legend == list(arms)


def test_azimuth_errors_near_180_are_called_the_opposite_direction(
    tmp_path: Path, painted: dict[str, Painted]
) -> None:
    """Front-back confusion, a → 180° − a, errs by 180° − 2 a: over all azimuths, by anything."""
    azimuth_deg = np.arange(-180, 180, 10)

    def share_near_180(predicted_deg: NDArray[np.int64]) -> float:
        error_deg = (predicted_deg - azimuth_deg + 180) % 360 - 180
        return float((abs(error_deg) >= 170).mean())

    assert share_near_180(180 + azimuth_deg) == 1
    assert share_near_180(180 - azimuth_deg) < 0.1

    study = replace(STUDY, predictions=True, budgets_minutes=(60.0,), recordings=2)
    folder = write_simulated_study(tmp_path / "s", study)
    figures.prediction_figures(Comparison(load_studies([folder])), "scratch")
    caption = painted["azimuth_error"].caption
    assert "near ±180° means the opposite azimuth" in caption
    assert "is front-back" not in caption


@pytest.mark.parametrize(
    ("removed", "first", "second"),
    [
        ([], "doa_wise", "recording_wise"),
        (["recording_wise-60min-*"], "doa_wise", "scratch"),
        # Without the baseline either: the best two.
        (["recording_wise-60min-*", "scratch-60min-*"], "doa_wise", "avc"),
        # Both are there, but there is no pair of them.
        (["recording_wise-60min-seed[12]", "doa_wise-60min-seed0"], "doa_wise", "scratch"),
    ],
)
def test_classes_are_compared_of_arms_that_have_scores_at_the_largest_budget(
    tmp_path: Path, painted: dict[str, Painted], removed: list[str], first: str, second: str
) -> None:
    folder = write_simulated_study(tmp_path / "s", STUDY)
    figures.score_figures(without(folder, *removed), "scratch")
    assert painted["classes"].title == f"Per class: {first} minus {second} at 60 min"


def test_one_arm_has_no_differences_per_class(tmp_path: Path, painted: dict[str, Painted]) -> None:
    study = replace(STUDY, arms={"scratch": VARIANTS["scratch"]})
    figures.score_figures(without(write_simulated_study(tmp_path / "s", study)), "scratch")
    assert "rooms" in painted
    assert "classes" not in painted

"""What figures show, before it is rendered: styles, captions, and which arms are in them."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch
from numpy.typing import NDArray

from analysis import figures
from analysis.compare import Comparison
from analysis.events import match_events
from analysis.load import load_studies
from analysis.scores import F20, LE_CD, SCORES
from analysis.sweeps import points
from analysis.tables import classes_table
from seld.annotations import read_annotations, write_annotations
from seld.classes import STARSS_CLASSES
from seld.records import TrialRecord
from tests.simulated_study import VARIANTS, ArmTruth, SimulatedStudy, failed, write_simulated_study

STUDY = SimulatedStudy(
    arms={name: VARIANTS[name] for name in ("scratch", "avc", "doa_wise", "recording_wise")},
    recordings=4,
    predictions=False,
)
#: As many arms, with names as long, as the study ``ingredients`` has.
INGREDIENTS = (
    *("recipe", "asked_by_third_order", "contrast_across_windows", "half_the_batch"),
    *("half_the_window", "more_pictures", "narrow_crops", "near_directions_are_no_negatives"),
    *("negatives_of_four_earlier_steps", "no_empty_directions", "no_listening", "no_rotations"),
    *("one_window_per_clip", "pictures_alone_first", "plain", "uniform_weights", "wide_crops"),
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
    def points(self) -> dict[str, NDArray[np.float64]]:
        """By label, x and y (2, point) of what has error bars in the first panel."""
        bars = [item for item in self.axes.containers if isinstance(item, ErrorbarContainer)]
        return {str(bar.get_label()): np.array(bar.lines[0].get_data()) for bar in bars}

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


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn and rendered from now on, in their order."""
    found: list[Figure] = []

    def kept(**options: Any) -> Figure:
        found.append(Figure(**options))
        return found[-1]

    monkeypatch.setattr(figures, "Figure", kept)
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
    study = replace(STUDY, predictions=True, budgets_minutes=(60.0,), recordings=2)
    folder = write_simulated_study(tmp_path / "s", study)

    def drawn_near_180(wrong_deg: Callable[[pd.Series], pd.Series]) -> float:
        """Percent of the frames, where all is predicted with such an azimuth."""
        for path in folder.glob("trials/*/predictions/*.csv"):
            table = read_annotations(folder / "reference" / path.name)
            table["azimuth_deg"] = (wrong_deg(table["azimuth_deg"]) + 180) % 360 - 180
            write_annotations(table, path)
        figures.prediction_figures(Comparison(load_studies([folder])), "scratch")
        (stairs, *_) = (
            item for item in painted["azimuth_error"].axes.patches if isinstance(item, StepPatch)
        )
        percent, edges_deg, _ = stairs.get_data()
        assert edges_deg[[0, -1]].tolist() == [-180, 180]
        assert percent.sum() == pytest.approx(100)
        return percent[0] + percent[-1]

    assert drawn_near_180(lambda azimuth_deg: azimuth_deg + 180) > 90
    assert drawn_near_180(lambda azimuth_deg: 180 - azimuth_deg) < 25
    assert "near ±180° means the opposite azimuth" in painted["azimuth_error"].caption


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


@pytest.fixture(scope="module")
def study_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    study = replace(STUDY, predictions=True)
    return write_simulated_study(tmp_path_factory.mktemp("results") / "s", study)


@pytest.fixture
def comparison(study_folder: Path) -> Comparison:
    return Comparison(load_studies([study_folder]))


def test_budget_curves_are_the_means_and_intervals_in_points(
    comparison: Comparison, painted: dict[str, Painted]
) -> None:
    figures.score_figures(comparison, "scratch")
    bars = [b for b in painted["budget"].axes.containers if isinstance(b, ErrorbarContainer)]
    assert [str(bar.get_label()) for bar in bars] == list(STUDY.arms)
    for bar in bars:
        cells = [comparison.cells[str(bar.get_label()), budget] for budget in (15.0, 60.0)]
        found = [cell.estimates["seld_error"] for cell in cells]
        place, error = np.array(bar.lines[0].get_data())
        assert place == pytest.approx([15, 60], rel=0.2)
        assert error == pytest.approx([100 * item.mean for item in found])
        (segments,) = (item for item in bar.lines[2] if isinstance(item, LineCollection))
        for item, segment in zip(found, segments.get_segments(), strict=True):
            assert segment[:, 1] == pytest.approx([100 * item.low, 100 * item.high])


def test_detection_is_across_and_localisation_along(
    comparison: Comparison, painted: dict[str, Painted]
) -> None:
    figures.score_figures(comparison, "scratch")
    drawn = painted["localisation_detection"]
    assert F20.symbol in drawn.axes.get_xlabel()
    assert LE_CD.symbol in drawn.axes.get_ylabel()
    for arm in STUDY.arms:
        found = comparison.cells[arm, 60.0].estimates
        wanted = [100 * found["f20"].mean, found["le_cd_deg"].mean]
        assert drawn.points[arm].ravel() == pytest.approx(wanted)


def test_rooms_show_the_mean_over_seeds(
    comparison: Comparison, painted: dict[str, Painted]
) -> None:
    figures.score_figures(comparison, "scratch")
    drawn = painted["rooms"]
    rooms = [text.get_text() for text in drawn.axes.get_xticklabels()]
    for arm in STUDY.arms:
        rows = [
            row | {"room": str(row["room"])}
            for trial in comparison.results.cells[arm, 60.0]
            for row in trial.record.per_room
        ]
        mean = pd.DataFrame(rows).groupby("room")["seld_error"].mean()
        assert drawn.points[arm][1] == pytest.approx(100 * mean.loc[rooms].to_numpy())
    assert drawn.axes.get_xlabel() == "test room"


@pytest.mark.parametrize("rooms", [range(1, 13), range(2001, 2013), range(100, 130)])
def test_names_of_rooms_do_not_touch(tmp_path: Path, rendered: list[Figure], rooms: range) -> None:
    study = replace(STUDY, rooms=rooms, recordings=len(rooms), budgets_minutes=(60.0,))
    figures.rooms(Comparison(load_studies([write_simulated_study(tmp_path / "s", study)])))
    labels = rendered[0].axes[0].get_xticklabels()
    assert [text.get_text() for text in labels] == [str(room) for room in rooms]
    places = [text.get_window_extent() for text in labels]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(places))


def test_differences_per_class_have_their_sign_and_are_filled_where_better(
    comparison: Comparison, painted: dict[str, Painted]
) -> None:
    figures.class_differences(comparison, ("doa_wise", "scratch"))
    means = {
        arm: pd.DataFrame(
            [row for t in comparison.results.cells[arm, 60.0] for row in t.record.per_class]
        ).groupby("class_name", sort=False)[["f20", "le_cd_deg"]].mean()
        for arm in ("doa_wise", "scratch")
    }  # fmt: skip
    difference = means["doa_wise"] - means["scratch"]
    for axes, score in zip(painted["classes"].figure.axes, (F20, LE_CD), strict=True):
        drawn = [bar.lines[0] for bar in axes.containers if isinstance(bar, ErrorbarContainer)]
        wanted = score.scale * difference[score.name]
        assert [line.get_xdata()[0] for line in drawn] == pytest.approx(wanted.tolist())
        filled = [to_hex(line.get_markerfacecolor()) == "#222222" for line in drawn]
        better = wanted < 0 if score is LE_CD else wanted > 0
        assert filled == better.tolist()
        assert any(filled)


def test_no_difference_is_better_than_none(
    comparison: Comparison, painted: dict[str, Painted]
) -> None:
    assert not any(score.improves(0.0) for score in SCORES)
    figures.class_differences(comparison, ("doa_wise", "doa_wise"))
    for axes in painted["classes"].figure.axes:
        for bar in axes.containers:
            assert isinstance(bar, ErrorbarContainer)
            assert bar.lines[0].get_markerfacecolor() == "white"


def test_predictions_are_drawn_as_they_were_matched(
    comparison: Comparison, painted: dict[str, Painted]
) -> None:
    """Confusions are shares of the reference's frames, by row; azimuth errors percents."""
    figures.prediction_figures(comparison, "scratch")
    shown = {
        arm: sorted(
            comparison.results.cells[arm, 60.0], key=lambda t: t.record.metrics["seld_error"]
        )[1]
        for arm in ("doa_wise", "scratch")
    }
    matches = match_events(shown["doa_wise"])
    assert "Confusions of doa_wise" in painted["confusion"].title
    (image,) = painted["confusion"].axes.images
    shares = np.asarray(image.get_array())
    for drawn, frames in zip(shares, matches.confusion, strict=True):
        assert drawn == pytest.approx(frames / max(frames.sum(), 1))

    stairs = [item for item in painted["azimuth_error"].axes.patches if isinstance(item, StepPatch)]
    assert len(stairs) == 2
    for item in stairs:
        error_deg = match_events(shown[str(item.get_label())]).azimuth_error_deg
        for place, percent in enumerate(item.get_data().values):
            low = -180 + 10 * place
            inside = (error_deg >= low) & (error_deg < low + 10)
            assert percent == pytest.approx(100 * inside.mean())


def test_the_front_is_filled_and_responses_are_in_points(
    tmp_path: Path, painted: dict[str, Painted]
) -> None:
    def tried(record: TrialRecord) -> TrialRecord:
        return replace(record, parameters={"pretrain.temperature": 0.1 + record.seed}, seed=0)

    study = replace(
        STUDY,
        arms={"doa_wise": VARIANTS["doa_wise"]},
        seeds=range(5),
        planned=False,
        goals=("seld_error", "annotation_minutes"),
    )
    comparison = Comparison(load_studies([write_simulated_study(tmp_path / "s", study, tried)]))
    figures.sweep_figures(comparison)
    found = points(comparison.results)
    others, front = painted["front"].axes.lines
    assert (others.get_markerfacecolor(), front.get_markerfacecolor()) == ("white", "#222222")
    assert len(others.get_xdata()) + len(front.get_xdata()) == 10
    lowest = found.table.groupby("annotation_minutes")["seld_error"].min()
    assert front.get_ydata().min() == pytest.approx(100 * lowest.min())
    assert set(front.get_xdata()) <= set(lowest.index)
    assert max(front.get_ydata()) <= 100 * lowest[15.0] + 1e-9
    place, error = painted["responses"].axes.lines[0].get_data()
    assert place.tolist() == found.table["pretrain.temperature"].tolist()
    assert error == pytest.approx(100 * found.table["seld_error"])


@pytest.mark.parametrize(
    "names",
    [
        [*INGREDIENTS],
        [f"arm_number_{number:02d}_with_a_rather_long_name" for number in range(41)],
        ["a", "b"],
    ],
)
@pytest.mark.parametrize("place", ["outside upper left", "outside lower center"])
def test_legends_are_shown_in_full_and_cost_the_panel_nothing(
    names: list[str], place: Any, rendered: list[Figure]
) -> None:
    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for name in names:
            axes.plot([0, 1], [0, 1], marker="o", label=name)
        figures.add_legend(figure, axes, place)

    figures.draw("budget", "", "", (5.6, 3.4), paint)
    figure = rendered[0]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == names
    shown = legend.get_window_extent()
    assert figure.bbox.x0 <= shown.x0
    assert shown.x1 <= figure.bbox.x1
    assert figure.bbox.y0 <= shown.y0
    assert shown.y1 <= figure.bbox.y1
    panel_in = figure.axes[0].get_window_extent().height / figure.dpi
    assert 2.7 < panel_in < 3.4


def drawn_response(tmp_path: Path, painted: dict[str, Painted], values: list[float]) -> Axes:
    def tried(record: TrialRecord) -> TrialRecord:
        rate = values[record.seed]
        return replace(record, parameters={"pretrain.learning_rate": rate}, seed=0)

    study = replace(
        STUDY,
        arms={"doa_wise": VARIANTS["doa_wise"]},
        seeds=range(len(values)),
        budgets_minutes=(15.0,),
        recordings=2,
        planned=False,
    )
    comparison = Comparison(load_studies([write_simulated_study(tmp_path / "s", study, tried)]))
    figures.sweep_figures(comparison)
    return painted["responses"].axes


def test_few_proposals_from_a_range_have_no_median_and_no_ticks_of_their_own(
    tmp_path: Path, painted: dict[str, Painted]
) -> None:
    values = [1.173e-4, 1.21e-4, 2.9e-4, 3.01e-4, 8.7e-4, 1.33e-3, 2.11e-3]
    axes = drawn_response(tmp_path, painted, values)
    trials, median = axes.lines
    assert len(trials.get_xdata()) == len(values)
    assert len(median.get_xdata()) == 0
    assert not set(axes.xaxis.get_majorticklocs()) & set(values)


def test_values_that_are_repeated_have_medians_and_are_written_in_full(
    tmp_path: Path, painted: dict[str, Painted]
) -> None:
    values = [1.5e-4, 3e-4, 1e-3, 0.0305]
    axes = drawn_response(tmp_path, painted, 2 * values)
    _, median = axes.lines
    assert median.get_xdata().tolist() == values
    ticks = axes.xaxis.get_majorticklocs()
    assert [axes.xaxis.get_major_formatter()(tick) for tick in ticks] == [
        "1.5e-4", "3e-4", "0.001", "0.0305",
    ]  # fmt: skip


def test_a_class_that_is_never_found_has_no_localisation_to_compare(
    tmp_path: Path, painted: dict[str, Painted]
) -> None:
    """The 180° that it has by definition would squeeze all other classes together."""
    lost, place = "male_speech", list(STARSS_CLASSES).index("male_speech")
    arms = {"scratch": ArmTruth(class_shift={lost: -1}), "doa_wise": VARIANTS["doa_wise"]}
    study = replace(STUDY, arms=arms, budgets_minutes=(60.0,))
    comparison = Comparison(load_studies([write_simulated_study(tmp_path / "s", study)]))
    figures.class_differences(comparison, ("doa_wise", "scratch"))
    detection, localisation = painted["classes"].figure.axes
    rows = [
        [int(bar.lines[0].get_ydata()[0]) for bar in axes.containers
         if isinstance(bar, ErrorbarContainer)]
        for axes in (detection, localisation)
    ]  # fmt: skip
    assert rows[0] == list(range(len(STARSS_CLASSES)))
    assert rows[1] == [row for row in rows[0] if row != place]
    assert min(localisation.get_xlim()) > -60
    assert max(localisation.get_xlim()) < 60
    assert "never finds the class, which is 180° by definition: male speech." in (
        painted["classes"].caption
    )


def test_what_no_seed_finds_has_no_interval(tmp_path: Path) -> None:
    """Its F20 is zero in all draws, by definition: that is no certainty."""
    lost = "male_speech"
    arms = {"scratch": ArmTruth(class_shift={lost: -1}), "doa_wise": VARIANTS["doa_wise"]}
    folder = write_simulated_study(tmp_path / "s", replace(STUDY, arms=arms))
    table = classes_table(Comparison(load_studies([folder])))
    (row,) = (row for row in table.rows if row[0].text == lost.replace("_", " "))
    assert row[2].plain == "0.0 [–]"
    assert "," in row[3].interval
    named = [row for row in table.values if row["class"] == lost]  # noqa: PD011 - a Table of ours
    (values,) = (row for row in named if row["arm"] == "scratch")
    assert (values["f20"], values["f20_low"], values["f20_high"]) == ("0.0", None, None)


def test_of_two_seeds_the_better_one_is_shown(tmp_path: Path, painted: dict[str, Painted]) -> None:
    study = replace(
        STUDY,
        predictions=True,
        seeds=(0, 1),
        budgets_minutes=(60.0,),
        recordings=2,
        arms={"doa_wise": VARIANTS["doa_wise"]},
        baseline="doa_wise",
        effect=lambda seed: 0.3 * seed,
    )
    folder = write_simulated_study(tmp_path / "s", study)
    figures.prediction_figures(Comparison(load_studies([folder])), "doa_wise")
    assert "Seed 1, the middle one by SELD error (of two the better)" in (
        painted["confusion"].caption
    )

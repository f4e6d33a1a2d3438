"""Events matched by hand: confusions within 20° whatever the class, azimuths within a class."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from analysis.events import match_events
from analysis.load import load_studies
from seld.annotations import POLAR_COLUMNS, write_annotations
from tests.simulated_study import ArmTruth, SimulatedStudy, write_simulated_study


def table(*events: tuple[int, int]) -> pd.DataFrame:
    """Frame 3: (class, azimuth in degrees), at the horizon."""
    return pd.DataFrame(
        [(3, class_id, source, azimuth, 0) for source, (class_id, azimuth) in enumerate(events)],
        columns=list(POLAR_COLUMNS),
    )


def test_one_frame_by_hand(tmp_path: Path) -> None:
    """Class 0 is called 2, class 1 is right but 10° off, and a third 0 is invented at −90°."""
    study = SimulatedStudy(
        arms={"scratch": ArmTruth()}, budgets_minutes=(5.0,), seeds=(0,), recordings=1
    )
    folder = write_simulated_study(tmp_path / "s", study)
    (name,) = study.recording_names
    (trial,) = load_studies([folder]).trials
    write_annotations(table((0, 0), (1, 90)), folder / "reference" / f"{name}.csv")
    write_annotations(
        table((2, 5), (1, 100), (0, -90)), trial.folder / "predictions" / f"{name}.csv"
    )
    found = match_events(trial)
    nothing = len(found.confusion) - 1
    assert found.confusion[0, 2] == 1  # reference by row
    assert found.confusion[1, 1] == 1
    assert found.confusion[nothing, 0] == 1
    assert found.confusion.sum() == 3
    assert sorted(found.azimuth_error_deg) == pytest.approx([-90.0, 10.0])

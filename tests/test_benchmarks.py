"""Surfaces that benchmarks replace training by."""

from __future__ import annotations

import pandas as pd
import pytest

from ablations.sweep import REDUCTION
from benchmarks.sweep import Recorded


def test_a_recorded_surface_answers_by_rung_and_neighbourhood() -> None:
    """Three settings near 0.1, three near 0.5: each rung answers with the mean of its three."""
    surface = Recorded(
        pd.DataFrame(
            {
                "parameter.pretrain.temperature": [0.09, 0.1, 0.11, 0.48, 0.5, 0.52],
                "seld_error.rung1": [0.90, 0.91, 0.92, 1.0, 1.0, 1.0],
                "seld_error.rung2": [0.50, 0.60, 0.70, 0.8, 0.8, 0.8],
            }
        )
    )
    assert surface.rungs == 2
    assert surface({"pretrain.temperature": 0.1}, 1.0) == pytest.approx(0.6)
    assert surface({"pretrain.temperature": 0.1}, 1.0 / REDUCTION) == pytest.approx(0.91)
    assert surface({"pretrain.temperature": 0.5}, 1.0) == pytest.approx(0.8)

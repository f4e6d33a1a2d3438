"""Elevation is heard or not, whatever the distance, the class mix and the azimuth."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from seld.annotations import POLAR_COLUMNS
from seld.elevation import LEAST_FRAMES, elevation_correlation

FRAMES = 2 * LEAST_FRAMES


def events(elevation_deg: np.ndarray, class_id: int = 3) -> pd.DataFrame:
    frame = np.arange(len(elevation_deg))
    columns = (frame, class_id, 0, frame % 360 - 180, elevation_deg)
    return pd.DataFrame(dict(zip(POLAR_COLUMNS, columns, strict=True)))


@pytest.fixture
def true() -> np.ndarray:
    return np.random.default_rng(0).normal(0.0, 20.0, FRAMES)


def test_predictions_off_by_a_known_noise_correlate_as_theory_says(true: np.ndarray) -> None:
    noise = np.random.default_rng(1).normal(0.0, 20.0, FRAMES)
    found = elevation_correlation([events(true)], [events(true + noise)])
    assert found == pytest.approx(np.sqrt(0.5), abs=0.05)


def test_up_for_down_is_minus_one_and_one_answer_is_none_heard(true: np.ndarray) -> None:
    assert elevation_correlation([events(true)], [events(-true)]) == pytest.approx(-1.0)
    assert elevation_correlation([events(true)], [events(0.0 * true + 7.0)]) == 0.0


def test_recordings_are_not_mixed(true: np.ndarray) -> None:
    """Both have the same frames and class; swapped, they tell nothing of each other."""
    first, second = events(true[:LEAST_FRAMES]), events(true[LEAST_FRAMES:])
    assert elevation_correlation([first, second], [first, second]) == pytest.approx(1.0)
    swapped = elevation_correlation([first, second], [second, first])
    assert swapped == pytest.approx(0.0, abs=0.1)


def test_only_rightly_classified_events_that_are_alone_in_their_class_count(
    true: np.ndarray,
) -> None:
    """Two of one class could be told apart in two ways; another class's event is no answer."""
    heard = events(true[:LEAST_FRAMES])
    twice = pd.concat([events(true[LEAST_FRAMES:], 5), events(-true[LEAST_FRAMES:], 5)])
    wrong = events(true[::-1], 7)
    reference = pd.concat([heard, twice, events(true, 8)])
    assert elevation_correlation([reference], [pd.concat([heard, twice, wrong])]) == pytest.approx(
        1.0
    )


def test_too_few_events_and_sounds_at_one_height_tell_nothing(true: np.ndarray) -> None:
    few = events(true[: LEAST_FRAMES - 1])
    assert elevation_correlation([few], [few]) is None
    level = events(0.1 * true)
    assert elevation_correlation([level], [events(true)]) is None
    nothing = few.iloc[:0]
    assert elevation_correlation([events(true)], [nothing]) is None

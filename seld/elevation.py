"""Whether elevation is heard at all, which localisation errors of 20° and more can hide.

Azimuths fill the circle, elevations spread by 13° (standard deviation, STARSS22) to 23° (embedded
benchmark). A network that always answers with the same elevation may thus find most directions to
20°, and its LE_CD is that of a network that has only much to learn.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

#: A minute of events: with fewer, a few events decide.
LEAST_FRAMES = 600
#: Where sounds spread less, there is hardly an elevation to hear.
LEAST_SPREAD_DEG = 5.0

_EVENT = ["recording", "frame", "class_id"]


def elevation_correlation(
    references: Sequence[pd.DataFrame], predictions: Sequence[pd.DataFrame]
) -> float | None:
    """Pearson's correlation of predicted with true elevation over rightly classified events.

    Taken over frames in which a class has one source and one prediction, whatever their distance.
    A network that always says the same elevation has 0.

    Args:
        references: annotations by recording, with ``frame``, ``class_id`` and ``elevation_deg``.
        predictions: of the same recordings, in the same order.

    Returns:
        -1 to 1; None where fewer than :data:`LEAST_FRAMES` such frames are there, or the true
        elevations' standard deviation is less than :data:`LEAST_SPREAD_DEG`.
    """
    true, predicted = (_alone(tables) for tables in (references, predictions))
    both = true.merge(predicted, on=_EVENT, suffixes=("_true", "_predicted"))
    elevation = both[["elevation_deg_true", "elevation_deg_predicted"]].to_numpy(np.float64)
    if len(elevation) < LEAST_FRAMES or elevation[:, 0].std() < LEAST_SPREAD_DEG:
        return None
    if np.ptp(elevation[:, 1]) == 0.0:
        return 0.0
    return float(np.corrcoef(elevation, rowvar=False)[0, 1])


def _alone(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Events without another one of their class in the frame, of all recordings."""
    events = pd.concat([table.assign(recording=number) for number, table in enumerate(tables)])
    return events.loc[~events.duplicated(_EVENT, keep=False), [*_EVENT, "elevation_deg"]]

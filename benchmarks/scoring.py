"""Scoring beside a plain per-frame loop with scipy's assignment, on the same tables, in one run.

    python benchmarks/scoring.py [--recordings 54] [--minutes 4]

The loop is the tests' literal implementation. Both must give the same scores; the times are the
best of several rounds on one core, without reading files.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd

from seld.classes import STARSS_CLASSES
from seld.metrics import SCORE_NAMES, score

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from reference_seld import ReferenceSeld  # pyright: ignore[reportMissingImports]

Result = TypeVar("Result")
FRAMES_PER_MINUTE = 600


def recording(rng: np.random.Generator, frame_count: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A random reference, frequent classes first, and a blurred prediction with misses."""
    events = []
    for _ in range(frame_count // 40):
        start, length = int(rng.integers(1, frame_count)), int(rng.integers(5, 45))
        frames = np.arange(start, min(start + length, frame_count))
        class_id = int(min(rng.geometric(0.25) - 1, len(STARSS_CLASSES) - 1))
        azimuth_deg, elevation_deg = rng.integers(-180, 181), rng.integers(-40, 41)
        events.append(
            pd.DataFrame(
                {
                    "frame": frames,
                    "class_id": class_id,
                    "source_id": 0,
                    "azimuth_deg": float(azimuth_deg),
                    "elevation_deg": float(elevation_deg),
                }
            )
        )
    reference = pd.concat(events).sort_values("frame", kind="stable", ignore_index=True)
    prediction = reference.iloc[np.flatnonzero(rng.random(len(reference)) > 0.2)].copy()
    prediction["azimuth_deg"] += rng.normal(0, 15, len(prediction))
    prediction["frame"] += rng.integers(0, 2, len(prediction))
    return reference, prediction


def best_of(rounds: int, run: Callable[[], Result]) -> tuple[float, Result]:
    """Shortest time in seconds, and what came out."""
    results, times = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        results.append(run())
        times.append(time.perf_counter() - start)
    return min(times), results[-1]


def main() -> None:
    """Print both times, their ratio and the largest difference between the scores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recordings", type=int, default=54)
    parser.add_argument("--minutes", type=float, default=4.0)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    frame_count = round(options.minutes * FRAMES_PER_MINUTE)
    pairs = {
        f"fold4_room{index % 5}_mix{index:03d}": recording(rng, frame_count)
        for index in range(options.recordings)
    }
    references = {name: reference for name, (reference, _) in pairs.items()}
    predictions = {name: prediction for name, (_, prediction) in pairs.items()}
    columns = ["frame", "class_id", "azimuth_deg", "elevation_deg"]
    rows = [
        tuple([*zip(*(table[name].tolist() for name in columns), strict=True)] for table in pair)
        for pair in pairs.values()
    ]

    def literal() -> list[float]:
        oracle = ReferenceSeld(len(STARSS_CLASSES))
        for reference, prediction in rows:
            oracle.add(reference, prediction)
        return oracle.scores("macro")

    ours_s, ours = best_of(7, lambda: score(references, predictions, class_names=STARSS_CLASSES))
    jackknife_s, _ = best_of(
        7, lambda: score(references, predictions, class_names=STARSS_CLASSES, jackknife=True)
    )
    loop_s, expected = best_of(2, literal)
    difference = max(
        abs(getattr(ours, name) - value) for name, value in zip(SCORE_NAMES, expected, strict=True)
    )
    row_count = sum(len(table) for table in references.values())
    print(f"{options.recordings} recordings, {row_count} reference rows")
    print(f"per-frame loop        {loop_s:8.3f} s")
    print(f"seld.metrics          {ours_s:8.3f} s   {loop_s / ours_s:.0f} x faster")
    print(f"  with full jackknife {jackknife_s:8.3f} s")
    print(f"largest difference    {difference:8.1e}")


if __name__ == "__main__":
    main()

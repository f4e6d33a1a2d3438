"""Do the reports' intervals cover, and do null arms stay unresolved? Measured by simulation.

    python -m benchmarks.intervals [--studies 1000] [--workers 2]

Two arms (or eleven, for the family-wise error) are truly alike: each trial's counts are drawn
with an effect of its own seed, an effect of each recording that both arms share, one that they do
not share, and binomial noise. The counts go through the same code as a report. The true
difference is zero, so an interval covers where it holds zero. Beside it, the percentiles of the
plain hierarchical bootstrap over seeds and recordings.

Scores other than the SELD error get their intervals in the same way: the column "lowest" is the
coverage of whichever of the five is covered least.

What was measured is in docs/analysis.md. A permutation of seeds alone, which takes the test
recordings as given, would err in up to 99 % of the families with 10 seeds where recordings
dominate; hence the recordings' part in :func:`analysis.compare.permutation_p_value`.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from analysis.compare import (
    CONFIDENCE,
    SIGNIFICANCE,
    estimate,
    holm,
    permutation_p_value,
    resampled_counts,
)
from analysis.scores import SCORES, SELD_ERROR
from seld.metrics import COUNT_COLUMNS, scores_from_counts

CLASSES = 5
NULL_ARMS = 10


@dataclass(frozen=True, kw_only=True)
class Case:
    """A kind of study: how many recordings, and standard deviations on the chance of detection."""

    name: str
    recordings: int
    seed_spread: float
    recording_spread: float


#: From seeds that hardly matter to seeds that are all that matters.
CASES: tuple[Case, ...] = (
    Case(name="recordings dominate", recordings=20, seed_spread=0.005, recording_spread=0.12),
    Case(name="both alike", recordings=20, seed_spread=0.025, recording_spread=0.12),
    Case(name="both alike, 54 recordings", recordings=54, seed_spread=0.015, recording_spread=0.12),
    Case(name="seeds dominate", recordings=54, seed_spread=0.05, recording_spread=0.03),
)


def simulated_scores(
    case: Case, arms: int, seeds: int, generator: np.random.Generator
) -> dict[str, NDArray[np.float64]]:
    """By name, scores (arm, seed, 1 + draw) of arms that are truly alike."""
    load = generator.integers(5, 25, size=(case.recordings, CLASSES))
    shared = generator.normal(0, 0.1, size=(case.recordings, 1))
    own = generator.normal(0, case.recording_spread, size=(arms, case.recordings, 1))
    scores = []
    for arm in range(arms):
        for _ in range(seeds):
            chance = 0.5 + shared + own[arm] + generator.normal(0, case.seed_spread)
            counts = _counts(generator, load, np.clip(chance, 0.02, 0.98))
            scores.append(scores_from_counts(resampled_counts(counts)))
    return {
        score.name: np.stack([one[score.name] for one in scores]).reshape(arms, seeds, -1)
        for score in SCORES
    }


def coverage_of_one(seeds: int, case: Case, study: int) -> list[bool]:
    """Whether intervals hold the true difference, zero: the bootstrap's, then the report's.

    The plain bootstrap's is of the SELD error; the report's are of all scores.
    """
    generator = np.random.default_rng([study, seeds, case.recordings])
    covered = []
    for name, (first, second) in simulated_scores(case, 2, seeds, generator).items():
        difference = (first - second).T  # (1 + draw, seed)
        if name == SELD_ERROR.name:
            drawn = generator.integers(seeds, size=(len(difference) - 1, seeds))
            means = np.take_along_axis(difference[1:], drawn, axis=1).mean(axis=1)
            low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
            covered.append(bool(low <= 0 <= high))
        found = estimate(difference[0], difference[1:], case.recordings)
        covered.append(found.low <= 0 <= found.high)
    return covered


def family_error_of_one(seeds: int, case: Case, study: int) -> tuple[bool, bool]:
    """Whether any null arm is resolved, by the interval's p-values and by permutation."""
    generator = np.random.default_rng([study, seeds, case.recordings, NULL_ARMS])
    baseline, *arms = simulated_scores(case, 1 + NULL_ARMS, seeds, generator)[SELD_ERROR.name]
    differences = [(arm - baseline).T for arm in arms]
    adjusted = holm([estimate(one[0], one[1:], case.recordings).p_value for one in differences])
    permuted = holm([permutation_p_value(one[0], one[1:], case.recordings) for one in differences])
    return min(adjusted) < SIGNIFICANCE, min(permuted) < SIGNIFICANCE


def _counts(
    generator: np.random.Generator, load: NDArray[np.int64], chance: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(recording, class, column) of ``load`` (recording, class) reference tracks."""
    detected = generator.binomial(load, np.broadcast_to(chance, load.shape))
    placed = generator.binomial(detected, 0.7)
    invented = generator.poisson(0.2 * load)
    errors = np.maximum((load - detected).sum(axis=1), (invented + detected - placed).sum(axis=1))
    columns = {
        "references": load,
        "true_positives": placed,
        "spatial_false_positives": detected - placed,
        "false_positives": invented,
        "false_negatives": load - detected,
        "distance_sum_deg": placed * 9.0 + (detected - placed) * 60.0,
        "recording_errors": np.broadcast_to(errors[:, None], load.shape),
        "recording_references": np.broadcast_to(load.sum(axis=1)[:, None], load.shape),
    }
    return np.stack([columns[name] for name in COUNT_COLUMNS], axis=-1).astype(np.float64)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.intervals")
    parser.add_argument("--studies", type=int, default=1000, help="simulated per line")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args(arguments)
    print(f"{options.studies} studies per line, standard error {_error(0.05, options.studies)}\n")
    head = f"{'coverage of 95 % intervals':<30}{'seeds':>6}{'report':>9}{'lowest':>9}"
    print(f"{head}{'bootstrap':>11}")
    with ProcessPoolExecutor(options.workers) as pool:
        for case in CASES:
            for seeds in (2, 3, 5, 10):
                covered = pool.map(
                    partial(coverage_of_one, seeds, case), range(options.studies), chunksize=20
                )
                plain, ours, *others = 100 * np.mean(list(covered), axis=0)
                line = f"{case.name:<30}{seeds:>6}{ours:>8.1f}%{min(ours, *others):>8.1f}%"
                print(f"{line}{plain:>10.1f}%", flush=True)
        families = max(1, options.studies // 2)
        print(f"\n{families} families per line, standard error {_error(0.05, families)}\n")
        family = f"family-wise error, {NULL_ARMS} null arms"
        print(f"{family:<34}{'seeds':>6}{'report':>9}{'permutation':>13}")
        for case in CASES:
            for seeds in (3, 5, 10):
                wrong = pool.map(
                    partial(family_error_of_one, seeds, case), range(families), chunksize=5
                )
                ours, permuted = 100 * np.mean(list(wrong), axis=0)
                print(f"{case.name:<34}{seeds:>6}{ours:>8.1f}%{permuted:>12.1f}%", flush=True)


def _error(share: float, count: int) -> str:
    return f"{100 * math.sqrt(share * (1 - share) / count):.1f} %"


if __name__ == "__main__":
    main()

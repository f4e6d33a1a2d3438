"""Do the reports' intervals cover, and do null arms stay unresolved? Measured by simulation.

    python -m benchmarks.intervals [--studies 1000] [--workers 2]

Two arms (or eleven, for the family-wise error) are truly alike: each trial's counts are drawn
with an effect of its own seed, an effect of each recording that both arms share, one that they do
not share, and binomial noise. The counts go through the same code as a report. The true
difference is zero, so an interval covers where it holds zero. Beside it, the percentiles of the
plain hierarchical bootstrap over seeds and recordings.

Measured on 2026-11-23, 1000 studies per line, standard error 0.7 %::

    coverage of 95 % intervals     seeds   report  bootstrap
    recordings dominate                2    98.0%      94.4%
    recordings dominate                3    96.1%      94.8%
    recordings dominate                5    94.5%      93.7%
    recordings dominate               10    95.4%      93.6%
    both alike                         2    97.3%      93.0%
    both alike                         3    96.8%      94.0%
    both alike                         5    95.6%      93.1%
    both alike                        10    96.2%      93.8%
    both alike, 54 recordings          2    97.9%      93.1%
    both alike, 54 recordings          3    96.6%      95.1%
    both alike, 54 recordings          5    95.0%      94.5%
    both alike, 54 recordings         10    95.4%      95.4%
    seeds dominate                     2    93.5%      69.6%
    seeds dominate                     3    94.6%      78.8%
    seeds dominate                     5    95.2%      87.4%
    seeds dominate                    10    94.6%      91.3%

Family-wise error of ten null arms after Holm, 200 to 400 studies per line::

    recordings dominate                3     1.8%         0.0%
    both alike                         3     0.8%         0.0%
    both alike, 54 recordings          3     0.8%         0.0%
    seeds dominate                     3     6.8%         0.0%
    recordings dominate                5     3.3%         0.0%
    both alike                         5     2.7%         0.0%
    both alike, 54 recordings          5     3.0%         0.0%
    seeds dominate                     5     6.0%         0.0%

(columns: kind of study, seeds, by the interval's p-values, by permutation). The 6.8 % and 6.0 %
were measured with p-values that belonged exactly to the interval; since then they are those of
MOVER's longer half-width, which never resolves more; with them the line of 6.8 % became 3.0 %
(400 studies), the others have not been measured anew. A permutation of
seeds alone, which takes the test recordings as given, would err in up to 99 % of the families
with 10 seeds where recordings dominate; hence the recordings' part in
:func:`analysis.compare.permutation_p_value`.
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
) -> NDArray[np.float64]:
    """SELD errors (arm, seed, 1 + draw) of arms that are truly alike."""
    load = generator.integers(5, 25, size=(case.recordings, CLASSES))
    shared = generator.normal(0, 0.1, size=(case.recordings, 1))
    own = generator.normal(0, case.recording_spread, size=(arms, case.recordings, 1))
    scores = []
    for arm in range(arms):
        for _ in range(seeds):
            chance = 0.5 + shared + own[arm] + generator.normal(0, case.seed_spread)
            counts = _counts(generator, load, np.clip(chance, 0.02, 0.98))
            scores.append(scores_from_counts(resampled_counts(counts))["seld_error"])
    return np.stack(scores).reshape(arms, seeds, -1)


def coverage_of_one(seeds: int, case: Case, study: int) -> tuple[bool, bool]:
    """Whether the report's interval and the plain bootstrap's hold the true difference, zero."""
    generator = np.random.default_rng([study, seeds, case.recordings])
    first, second = simulated_scores(case, 2, seeds, generator)
    difference = (first - second).T  # (1 + draw, seed)
    found = estimate(difference[0], difference[1:], case.recordings)
    drawn = generator.integers(seeds, size=(len(difference) - 1, seeds))
    means = np.take_along_axis(difference[1:], drawn, axis=1).mean(axis=1)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return found.low <= 0 <= found.high, bool(low <= 0 <= high)


def family_error_of_one(seeds: int, case: Case, study: int) -> tuple[bool, bool]:
    """Whether any null arm is resolved, by the interval's p-values and by permutation."""
    generator = np.random.default_rng([study, seeds, case.recordings, NULL_ARMS])
    baseline, *arms = simulated_scores(case, 1 + NULL_ARMS, seeds, generator)
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
    error = 100 * math.sqrt(CONFIDENCE * (1 - CONFIDENCE) / options.studies)
    print(f"{options.studies} studies per line, standard error {error:.1f} %\n")
    print(f"{'coverage of 95 % intervals':<30}{'seeds':>6}{'report':>9}{'bootstrap':>11}")
    with ProcessPoolExecutor(options.workers) as pool:
        for case in CASES:
            for seeds in (2, 3, 5, 10):
                covered = pool.map(
                    partial(coverage_of_one, seeds, case), range(options.studies), chunksize=20
                )
                ours, plain = 100 * np.mean(list(covered), axis=0)
                print(f"{case.name:<30}{seeds:>6}{ours:>8.1f}%{plain:>10.1f}%", flush=True)
        family = f"family-wise error, {NULL_ARMS} null arms"
        print(f"\n{family:<30}{'seeds':>6}{'report':>9}{'permutation':>13}")
        for case in CASES:
            for seeds in (3, 5, 10):
                wrong = pool.map(
                    partial(family_error_of_one, seeds, case),
                    range(options.studies // 4),
                    chunksize=5,
                )
                ours, permuted = 100 * np.mean(list(wrong), axis=0)
                print(f"{case.name:<30}{seeds:>6}{ours:>8.1f}%{permuted:>12.1f}%", flush=True)


if __name__ == "__main__":
    main()

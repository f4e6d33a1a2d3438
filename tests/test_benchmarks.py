"""Surfaces that benchmarks replace training by, and what a search on them costs."""

from __future__ import annotations

from dataclasses import astuple
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ablations.searcher import REDUCTION
from ablations.sweep import Sweep
from benchmarks.sweep import SEED_NOISE, Outcome, Recorded, made_up, searched
from search_spaces.scales import find_scale
from search_spaces.spaces import OBJECTIVES, Parameters


def test_a_recorded_surface_answers_by_rung_and_neighbourhood() -> None:
    """Three settings near 0.1, three near 0.5: each rung answers with the mean of its three."""
    surface = Recorded(
        pd.DataFrame(
            {
                "parameter.pretrain.temperature": [0.09, 0.1, 0.11, 0.48, 0.5, 0.52],
                "seld_error.rung1": [0.90, 0.91, 0.92, 1.0, 1.0, 1.0],
                "seld_error.rung2": [0.50, 0.60, 0.70, 0.8, 0.8, 0.8],
                "loss.rung1": [0.01, 0.02, 0.03, 0.05, 0.05, 0.08],
                "loss.rung2": [0.01, 0.01, 0.01, 0.04, 0.04, 0.04],
            }
        )
    )
    assert surface.rungs == 2
    low, high = {"pretrain.temperature": 0.1}, {"pretrain.temperature": 0.5}
    assert astuple(surface(low, 1.0)) == pytest.approx((0.6, 0.01))
    assert astuple(surface(low, 1.0 / REDUCTION)) == pytest.approx((0.91, 0.02))
    assert astuple(surface(high, 1.0 / REDUCTION)) == pytest.approx((1.0, 0.06))


def test_what_finds_nothing_finds_nothing_with_any_seed() -> None:
    noise = np.random.default_rng(0)
    nothing = [Outcome(1.0, 0.05).observed(noise) for _ in range(20)]
    assert {seen["seld_error"] for seen in nothing} == {1.0}
    assert len({seen["loss"] for seen in nothing}) == 20
    something = [Outcome(0.6, 0.05).observed(noise)["seld_error"] for _ in range(2000)]
    assert np.mean(something) == pytest.approx(0.6, abs=0.001)
    assert np.std(something) == pytest.approx(SEED_NOISE, rel=0.1)


@pytest.mark.parametrize("seed", range(3))
def test_a_sweep_spends_no_more_than_random_search(seed: int, tmp_path: Path) -> None:
    spent = []

    def surface(parameters: Parameters, fidelity: float) -> Outcome:
        spent.append(fidelity)
        return made_up(parameters, fidelity)

    sweep = Sweep(
        name="benchmark",
        scale=find_scale("demo"),
        objectives=OBJECTIVES,
        budgets_minutes=(6.0,),
        trials=1,
        rungs=3,
        seed=seed,
    )
    searched(sweep, surface, 4.0, tmp_path)
    chosen = spent.pop()  # what the choice is worth, which is asked after the search
    assert chosen == 1.0
    assert 4.0 - sum(1.0 / REDUCTION**rung for rung in range(3)) < sum(spent) <= 4.0

"""The sentence says what is resolved, in the right direction, and nothing stronger."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from analysis.answer import answer
from analysis.compare import Difference, Estimate
from analysis.scores import SELD_ERROR


def difference(
    arm: str,
    mean: float,
    p_holm: float,
    budget_minutes: float = 18.0,
    caveats: tuple[str, ...] = (),
    confounds: tuple[str, ...] = (),
) -> Difference:
    found = Estimate(
        mean=mean,
        low=mean - 0.02,
        high=mean + 0.02,
        standard_error=0.01,
        p_value=p_holm / 3,
        seeds=5,
        recordings=70,
        seed_share=0.5,
    )
    return Difference(
        arm=arm,
        other="scratch",
        budget_minutes=budget_minutes,
        estimates={SELD_ERROR.name: found},
        refusals=(),
        caveats=(*confounds, *caveats),
        confounds=confounds,
        p_holm=p_holm,
    )


@pytest.mark.parametrize(
    ("mean", "expected"),
    [
        (-0.05, "At 18 min of annotation, arm lowers the SELD error: it is 5.0 points below"),
        (0.05, "At 18 min of annotation, arm raises the SELD error: it is 5.0 points above"),
    ],
)
def test_a_resolved_difference_has_its_direction(mean: float, expected: str) -> None:
    assert answer([difference("arm", mean, 0.01)], "scratch").startswith(expected)


def test_what_holm_does_not_resolve_is_not_announced() -> None:
    said = answer([difference("arm", -0.05, 0.12), difference("other", 0.0, 1.0)], "scratch")
    assert "no difference to scratch is resolved" in said
    assert "among all comparisons it may be chance" in said
    assert "lowers" not in said


def test_an_interval_narrower_than_its_p_value_is_called_so() -> None:
    """Of a single comparison nothing can be chance among many."""
    said = answer([difference("arm", -0.05, 0.18)], "scratch")
    assert "the interval barely excludes zero, its p-value does not)" in said
    assert "comparisons" not in said


def test_caveats_of_the_leading_difference_are_told() -> None:
    said = answer([difference("arm", -0.05, 0.01, caveats=("code differs",))], "scratch")
    assert "arm lowers the SELD error" in said
    assert said.endswith(", but mind: code differs.")


def test_nothing_is_claimed_of_an_arm_where_something_else_may_have_made_the_difference() -> None:
    unlike = difference(
        "unlike", -0.09, 0.01, confounds=("fine-tuned differently: finetune.steps",)
    )
    said = answer([unlike], "scratch")
    assert "unlike's SELD error differs: it is 9.0 points below" in said
    assert said.endswith(", but mind: fine-tuned differently: finetune.steps.")
    said = answer([unlike, difference("like", -0.04, 0.01)], "scratch")
    assert "like lowers the SELD error: it is 4.0 points below" in said
    assert "1 is resolved as better" in said
    assert "; the lowest mean is unlike's, difference −9.0, resolved, but not by the arm al" in said


def test_the_largest_budget_speaks_and_all_are_counted() -> None:
    """Two better (one at the smaller budget), one worse, one unresolved.

    The unresolved one, though its mean is the lowest, does not speak, and is named.
    """
    said = answer(
        [
            difference("small", -0.09, 0.01, budget_minutes=2.0),
            difference("good", -0.04, 0.01),
            difference("bad", 0.06, 0.01),
            difference("lucky", -0.07, 0.3),
        ],
        "scratch",
    )
    assert said.startswith("At 18 min of annotation, good lowers the SELD error: it is 4.0 points")
    assert "; the lowest mean is lucky's, difference −7.0, not resolved; of all 4 com" in said
    assert "lowest mean" not in answer([difference("good", -0.04, 0.01)], "scratch")
    assert said.endswith(
        "of all 4 comparisons with scratch, 2 are resolved as better and 1 as worse."
    )


def single_pair(arm: str, mean: float, budget_minutes: float) -> Difference:
    """As where a budget has just been begun: one seed of the arm and the baseline."""
    item = difference(arm, mean, math.nan, budget_minutes)
    assert item.primary is not None
    found = replace(item.primary, low=math.nan, high=math.nan, p_value=math.nan, seeds=1)
    return replace(item, estimates={SELD_ERROR.name: found})


def test_a_budget_that_has_just_been_begun_does_not_speak() -> None:
    not_run = replace(
        difference("other", 0.0, math.nan), estimates={}, refusals=("no finished trial",)
    )
    said = answer(
        [
            difference("arm", -0.05, 0.01, budget_minutes=6.0),
            single_pair("arm", -0.11, 18.0),
            not_run,
            replace(not_run, budget_minutes=60.0),
        ],
        "scratch",
    )
    assert said.startswith("At 6 min of annotation, arm lowers the SELD error: it is 5.0 points")
    assert "; 18 min and 60 min are incomplete: too few pairs of trials have finished" in said


def test_where_no_budget_has_an_interval_the_largest_speaks() -> None:
    said = answer([single_pair("arm", -0.05, 6.0), single_pair("arm", -0.11, 18.0)], "scratch")
    assert said.startswith("At 18 min of annotation, no difference to scratch is resolved")
    assert "incomplete" not in said


def test_a_larger_budget_of_other_recordings_is_not_called_incomplete() -> None:
    other = replace(single_pair("arm", 0.0, 18.0), estimates={}, refusals=("classes differ",))
    said = answer([difference("arm", -0.05, 0.01, budget_minutes=6.0), other], "scratch")
    assert "incomplete" not in said


def test_arms_that_must_not_be_compared_are_named() -> None:
    """As those of a second study, on a test of its own; not those that have only not run."""
    refused = replace(
        difference("b: scratch", 0.0, math.nan), estimates={}, refusals=("test recordings differ",)
    )
    others = [
        refused,
        replace(refused, arm="b: avc"),
        replace(refused, arm="b: avc", budget_minutes=6.0),
        replace(refused, arm="later", refusals=("no finished trial",)),
    ]
    named = " Not compared, as test recordings differ: b: scratch, b: avc."
    said = answer([difference("arm", -0.05, 0.01), *others], "scratch")
    assert "arm lowers the SELD error" in said
    assert said.endswith(named)
    assert answer(others, "scratch").endswith(f"compared with scratch.{named}")

"""The study's answer in one sentence, with its interval, never stronger than the evidence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from analysis.compare import SIGNIFICANCE, Difference, Estimate
from analysis.scores import SELD_ERROR, p_text
from analysis.sweeps import Points
from analysis.tables import minutes, setting


def answer(differences: Sequence[Difference], baseline: str) -> str:
    """What the comparisons with the baseline say at the largest budget, and how many resolve.

    The largest that has an interval, where any has: a budget of single pairs has just been begun.
    Arms that must not be compared with it are named at the end.
    """
    return _found(differences, baseline) + _refused(differences)


def _found(differences: Sequence[Difference], baseline: str) -> str:
    compared = [item for item in differences if item.primary is not None]
    if not compared:
        return f"There is no answer yet: no arm can be compared with {baseline}."
    measured = [item for item in compared if _primary(item).has_interval]
    budget = max(item.budget_minutes for item in measured or compared)
    begun = sorted(
        {i.budget_minutes for i in differences if i.budget_minutes > budget and i.unfinished}
    )
    at_budget = [item for item in compared if item.budget_minutes == budget]
    pool = (
        [item for item in at_budget if item.by_the_arm]
        or [item for item in at_budget if item.resolved]
        or at_budget
    )
    leading = min(pool, key=lambda item: _primary(item).mean)
    found = _primary(leading)
    size = (
        f"{SELD_ERROR.number(abs(found.mean))} points "
        f"{'below' if found.mean < 0 else 'above'} {baseline}'s"
    )
    evidence = _evidence(leading, found)
    where = f"At {minutes(budget)} of annotation"
    if leading.by_the_arm:
        change = "lowers" if found.mean < 0 else "raises"
        sentence = f"{where}, {leading.arm} {change} the SELD error: it is {size} ({evidence})"
    elif leading.resolved:
        sentence = f"{where}, {leading.arm}'s SELD error differs: it is {size} ({evidence})"
    else:
        sentence = (
            f"{where}, no difference to {baseline} is resolved: the lowest mean SELD error of the "
            f"other arms, {leading.arm}'s, is {size} ({evidence})"
        )
    if leading.caveats:
        sentence += f", but mind: {'; '.join(leading.caveats)}"
    lowest = min(at_budget, key=lambda item: _primary(item).mean)
    if _primary(lowest).mean < found.mean:
        sentence += (
            f"; the lowest mean is {lowest.arm}'s, difference "
            f"{SELD_ERROR.number(_primary(lowest).mean, signed=True)}, "
            f"{'resolved, but not by the arm alone' if lowest.resolved else 'not resolved'}"
        )
    if begun:
        sentence += (
            f"; {' and '.join(map(minutes, begun))} {'are' if len(begun) > 1 else 'is'} "
            "incomplete: too few pairs of trials have finished there for an interval"
        )
    if len(compared) == 1:
        return f"{sentence}."
    better = sum(item.by_the_arm and _primary(item).mean < 0 for item in compared)
    worse = sum(item.by_the_arm and _primary(item).mean > 0 for item in compared)
    return (
        f"{sentence}; of all {len(compared)} comparisons with {baseline}, {better} "
        f"{'is' if better == 1 else 'are'} resolved as better and {worse} as worse."
    )


def _refused(differences: Sequence[Difference]) -> str:
    """A sentence for each reason against comparing arms, of those that were not compared at all."""
    compared = {item.arm for item in differences if item.primary is not None}
    by_reason: dict[str, dict[str, None]] = {}
    for item in differences:
        if item.arm not in compared and item.refusals and not item.unfinished:
            by_reason.setdefault(", ".join(item.refusals), {})[item.arm] = None
    return "".join(
        f" Not compared, as {why}: {', '.join(arms)}." for why, arms in by_reason.items()
    )


def sweep_answer(found: Points) -> str:
    """The best point of sweeps, or the ends of their front."""
    full = len(found.table)
    if full < 2:
        return "There is no answer yet: too few trials have finished to compare settings."
    tried = f"{found.tried} settings"
    if found.tried_at_all_budgets > found.tried:
        tried += f" tried there ({found.tried_at_all_budgets} at all budgets)"
    elif found.tried > full:
        tried += " tried"
    tried += f", {full} trained in full; " if found.tried > full else ", "
    start = f"Of {tried}"
    if found.budget_minutes:
        start = f"At {minutes(found.budget_minutes)} of annotation: of {tried}"
    if len(found.goals) > 1:
        goals = " and ".join(goal.label for goal in found.goals)
        count = int(found.on_front.sum())
        ends = dict.fromkeys(found.best[goal.name].idxmin() for goal in found.goals)
        return (
            f"{start}{count} {'is' if count == 1 else 'are'} on the front, where no other is "
            f"as low in {goals}: {'; '.join(_point(found, end) for end in ends)}. These are "
            "single trials, the best of many and flattered by luck."
        )
    return (
        f"{start}the lowest SELD error is {_point(found, found.best.index[0])}; the "
        "best of many single trials is flattered by luck, so no interval can be given before it "
        "is repeated with new seeds."
    )


def _point(found: Points, place: Any) -> str:
    """A trial's goals, and the settings that it uses."""
    trial = found.table.loc[place]
    if len(found.goals) == 1:
        reached = f"{found.goals[0].number(trial[found.goals[0].name])} points"
    else:
        reached = ", ".join(f"{g.label} {g.number(trial[g.name])} {g.unit}" for g in found.goals)
    used = ", ".join(
        f"{name} {setting(trial[name])}" for name in found.settings if not pd.isna(trial[name])
    )
    return f"{reached} at {used}" if used else reached


def _primary(item: Difference) -> Estimate:
    assert item.primary is not None
    return item.primary


def _evidence(item: Difference, found: Estimate) -> str:
    if not found.has_interval:
        return f"{found.seeds} seed{'s' if found.seeds > 1 else ''}: no interval can be given"
    interval = SELD_ERROR.interval(found.low, found.high, signed=True)
    text = f"difference {SELD_ERROR.number(found.mean, signed=True)}, 95 % interval {interval}"
    text += f", {found.seeds} seeds, Holm-adjusted p {_relation(p_text(item.p_holm))}"
    if found.seeds == 2:
        text += "; two seeds say little about how results vary between seeds"
    if found.excludes_zero and not item.resolved:
        # The interval is a little shorter than the one that belongs to the p-value.
        text += (
            "; on its own this interval excludes zero, among all comparisons it may be chance"
            if found.p_value < SIGNIFICANCE
            else "; the interval barely excludes zero, its p-value does not"
        )
    return text


def _relation(p: str) -> str:
    return p if p.startswith("<") else f"= {p}"

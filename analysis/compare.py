"""Means, paired differences, their 95 % intervals and p-values, and what may be compared.

How an interval is made. Scores are not means over recordings: they are ratios of counts summed
over recordings. So each trial's counts are resampled over the test recordings (bootstrap, the
*same* draws for every trial, so that differences stay paired) and scored anew. Together with the
paired differences of the seeds this is a crossed design, seeds × recordings, in which both are
samples of what could have been. Its variance is that of Obuchowski and Rockette's multi-reader
multi-case analysis, seeds being the readers::

    V = V_seed + max(V_recording − V_both, 0)

``V_seed`` is the variance of the seeds' differences over their number, ``V_recording`` the
bootstrap variance of the mean over seeds, ``V_both`` the part that both contain.

With 3 seeds, percentiles of a hierarchical bootstrap cover far too seldom (the seeds' spread is
itself hardly known), so the half-width uses Student's t. Two such half-widths are known for a sum
of two variances: Satterthwaite's (Hillis 2007), which is short by up to 3 % coverage with 3
seeds, and MOVER's (Zou and Donner 2008), ``sqrt(t_s² V_seed + t_r² V_rest)``, which is long by as
much; both are exact where one source dominates. Their mean is used [ours]:
``benchmarks/intervals.py`` measures its coverage beside the plain hierarchical bootstrap's.

The p-value is MOVER's alone, so it is below 0.05 only where the interval excludes zero: in the far
tails, where Holm's correction looks, Satterthwaite's half-width is too short with few seeds.
The permutation p-value exchanges arms within seeds, all 2^seeds ways, and adds what other
recordings would have changed; it assumes less about the seeds, and with few seeds cannot be small.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from analysis.load import Results, Trial, differing_settings
from analysis.scores import SCORES, SELD_ERROR, Score
from seld.metrics import COUNT_COLUMNS, scores_from_counts

RESAMPLES = 1000
CONFIDENCE = 0.95
SIGNIFICANCE = 1 - CONFIDENCE

#: Beyond this many seeds the exchanges are drawn instead of listed.
_LISTED_SEEDS = 10
#: Of settings that differ within an arm.
_LISTED_NAMES = 3
#: Why trials are not compared that have not run; all other reasons are against comparing them.
_NO_TRIAL = "no finished trial"
_NO_PAIR = "no seed in common"


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over seeds with its 95 % interval.

    Attributes:
        low: NaN, as is ``high``, where there are fewer than 2 seeds or 2 recordings.
        standard_error: of the mean; NaN as the interval.
        p_value: of the mean being zero.
        seed_share: part of the variance that is due to the seeds.
    """

    mean: float
    low: float
    high: float
    standard_error: float
    p_value: float
    seeds: int
    recordings: int
    seed_share: float

    @property
    def has_interval(self) -> bool:
        """Whether seeds and recordings are enough for one."""
        return math.isfinite(self.low)

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, kw_only=True)
class Variance:
    """The variance of a mean over seeds × recordings, by source.

    Attributes:
        seed: of the seeds' means, over their number (holds the interaction's part).
        rest: what the choice of recordings adds.
    """

    seed: float
    rest: float
    seeds: int
    recordings: int

    def half_width(self, confidence: float) -> float:
        """Half the width of the interval at this confidence; see the module's text."""
        total = self.seed + self.rest
        if total == 0:
            return 0.0
        freedom = total**2 / (
            self.seed**2 / (self.seeds - 1) + self.rest**2 / (self.recordings - 1)
        )
        satterthwaite = stdtrit(freedom, (1 + confidence) / 2) * math.sqrt(total)
        return float(satterthwaite + self.mover_half_width(confidence)) / 2

    def mover_half_width(self, confidence: float) -> float:
        """The longer of the two half-widths."""
        quantile = (1 + confidence) / 2
        return math.sqrt(
            stdtrit(self.seeds - 1, quantile) ** 2 * self.seed
            + stdtrit(self.recordings - 1, quantile) ** 2 * self.rest
        )

    def p_value(self, mean: float) -> float:
        """One minus the confidence at which MOVER's interval around ``mean`` reaches zero."""
        if self.seed + self.rest == 0:
            return 0.0 if mean else 1.0
        low, high = 0.0, 1.0
        for _ in range(50):
            middle = (low + high) / 2
            if self.mover_half_width(1 - middle) > abs(mean):
                low = middle
            else:
                high = middle
        return high


def variance(
    scores: NDArray[np.float64], resampled: NDArray[np.float64], recordings: int
) -> Variance:
    """Split the variance of the mean over seeds.

    Args:
        scores: (seed,) of all recordings.
        resampled: (draw, seed) of recordings drawn with replacement, the same for all seeds.
        recordings: how many recordings there are.
    """
    seeds = len(scores)
    # A bootstrap draws from the sample, whose variance is short by (n − 1) / n.
    correction = recordings / (recordings - 1)
    by_seed = float(scores.var(ddof=1)) / seeds
    centre = resampled.mean(axis=1)
    by_recording = float(centre.var(ddof=1)) * correction
    residual = resampled - centre[:, None]
    by_both = float(residual.var(axis=0, ddof=1).sum()) / (seeds - 1) / seeds * correction
    return Variance(
        seed=by_seed,
        rest=max(by_recording - by_both, 0.0),
        seeds=seeds,
        recordings=recordings,
    )


def estimate(
    scores: NDArray[np.float64],
    resampled: NDArray[np.float64],
    recordings: int,
    within: tuple[float, float] = (-math.inf, math.inf),
) -> Estimate:
    """The mean over seeds and its interval; arguments as :func:`variance`.

    Args:
        within: the interval is cut to these values, of a score whose mean over other seeds and
            recordings cannot be outside them: it covers as often, and says nothing impossible.
    """
    mean = float(scores.mean()) if len(scores) else math.nan
    if len(scores) < 2 or recordings < 2 or not np.isfinite(scores).all():
        return Estimate(
            mean=mean,
            low=math.nan,
            high=math.nan,
            standard_error=math.nan,
            p_value=math.nan,
            seeds=len(scores),
            recordings=recordings,
            seed_share=math.nan,
        )
    parts = variance(scores, resampled, recordings)
    half_width = parts.half_width(CONFIDENCE)
    total = parts.seed + parts.rest
    lowest, highest = within
    return Estimate(
        mean=mean,
        low=min(mean, max(lowest, mean - half_width)),
        high=max(mean, min(highest, mean + half_width)),
        standard_error=math.sqrt(total),
        p_value=parts.p_value(mean),
        seeds=len(scores),
        recordings=recordings,
        seed_share=parts.seed / total if total else math.nan,
    )


def never_found_classes(trial: Trial) -> NDArray[np.bool_]:
    """(class,): those of which the trial has not placed a single track, rightly or wrongly.

    Their scores follow from the metric's definition, not from the recordings: they are the same
    in all draws.
    """
    assert trial.counts is not None
    located = [COUNT_COLUMNS.index(n) for n in ("true_positives", "spatial_false_positives")]
    tracks = trial.counts.values[..., located]
    return tracks.sum(axis=(0, 2)) == 0


def permutation_p_value(
    scores: NDArray[np.float64], resampled: NDArray[np.float64], recordings: int
) -> float:
    """Two-sided p-value of the mean of paired differences, by exchange of arms within seeds.

    Exchanging arms within seeds alone would ask whether arms differ on these very recordings. So
    every exchange is joined with the bootstrap's draws of what other recordings would add;
    arguments as :func:`variance`, of differences. But the least draws, added to the observed order
    itself, take it below what was observed every other time, and would halve the p-value: it is at
    least that of the exchanges alone.
    """
    count = len(scores)
    if count < 2 or recordings < 2 or not np.isfinite(scores).all():
        return math.nan
    if count <= _LISTED_SEEDS:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=count)))
    else:
        signs = np.random.default_rng(0).choice((1.0, -1.0), size=(2**_LISTED_SEEDS, count))
        signs[0] = 1.0  # what was observed is one of the orders, or none might be as far out
    centre = resampled.mean(axis=1)
    spread = float(centre.std(ddof=1))
    rest = variance(scores, resampled, recordings).rest
    added = (centre - centre.mean()) * (math.sqrt(rest) / spread if spread else 0.0)
    exchanged = signs @ scores / count
    # Rounding must not make the observed order lose against itself.
    observed = abs(scores.mean()) * (1 - 1e-9)
    alone = np.mean(np.abs(exchanged) >= observed)
    joined = np.mean(np.abs(exchanged[:, None] + added) >= observed)
    return float(max(alone, joined))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment; NaN entries are no part of the family."""
    adjusted = [math.nan] * len(p_values)
    family = sorted((p, place) for place, p in enumerate(p_values) if math.isfinite(p))
    largest = 0.0
    for rank, (p, place) in enumerate(family):
        largest = max(largest, min(1.0, p * (len(family) - rank)))
        adjusted[place] = largest
    return adjusted


@lru_cache(maxsize=8)
def recording_draws(recordings: int) -> NDArray[np.float64]:
    """How often each draw holds each recording, (1 + draw, recording); the first is the sample."""
    generator = np.random.default_rng(20221103)
    weights = generator.multinomial(recordings, np.full(recordings, 1 / recordings), size=RESAMPLES)
    return np.vstack([np.ones((1, recordings)), weights.astype(np.float64)])


def resampled_counts(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """(recording, class, column) → (1 + draw, class, column), the first being all recordings."""
    draws = recording_draws(len(counts))
    return (draws @ counts.reshape(len(counts), -1)).reshape(len(draws), *counts.shape[1:])


def refusals(first: Sequence[Trial], second: Sequence[Trial]) -> list[str]:
    """Why the trials' scores must not be compared."""
    trials = [*first, *second]
    reasons = []
    if len({trial.record.metric_version for trial in trials}) > 1:
        reasons.append("metric versions differ")
    tests = {
        (trial.record.test_fingerprint, trial.counts.recordings) for trial in trials if trial.counts
    }
    if len(tests) > 1:
        reasons.append("test recordings differ")
    if len({tuple(trial.record.class_names) for trial in trials}) > 1:
        reasons.append("classes differ")
    return reasons


def caveats(first: Sequence[Trial], second: Sequence[Trial]) -> list[str]:
    """What a reader must know when the trials' scores are compared, beside :func:`confounds`."""
    trials = [*first, *second]
    found = []
    if second and {t.record.seed for t in first} != {t.record.seed for t in second}:
        common = {t.record.seed for t in first} & {t.record.seed for t in second}
        found.append(f"seeds differ, {len(common)} in common")
    if len({trial.record.code_fingerprint for trial in trials}) > 1:
        found.append("code differs")
    if len({trial.record.data_fingerprint for trial in trials}) > 1:
        found.append("data differ")
    smaller = Counter(batch for trial in trials for batch in trial.record.smaller_batches.items())
    for (name, size), count in sorted(smaller.items()):
        found.append(f"for want of GPU memory trained with {name}={size} in {count}")
    if any(trial.record.git_dirty for trial in trials):
        found.append("uncommitted code")
    return found


def confounds(first: Sequence[Trial], second: Sequence[Trial]) -> list[str]:
    """What may have made a difference as well as the arm: then nothing is claimed of the arm.

    Settings may differ between the two; within each they should not.
    """
    found = []
    differing = sorted({*differing_settings(first), *differing_settings(second)})
    if differing:
        found.append(f"settings differ: {_listed(differing)}")
    unequal = _unequal_finetuning([*first, *second]) if second else []
    if unequal:
        found.append(f"fine-tuned differently: {_listed(unequal)}")
    return found


def _unequal_finetuning(trials: Sequence[Trial]) -> list[str]:
    """Settings of fine-tuning in which the trials differ though their studies do not vary them.

    Arms run by different commands, one with ``--set finetune.…``, are no comparison of arms.
    """
    varied = {name for trial in trials for name in trial.record.parameters}
    differing = differing_settings(trials)
    return [name for name in differing if name.startswith("finetune.") and name not in varied]


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_LISTED_NAMES])
    left = len(names) - _LISTED_NAMES
    return f"{shown} and {left} more" if left > 0 else shown


@dataclass(frozen=True, kw_only=True)
class Difference:
    """An arm minus another at one budget, paired by seed and test recordings.

    Attributes:
        estimates: by score name; empty where the comparison is refused or has no pair.
        caveats: what a reader must know; the ``confounds`` are among them.
        p_holm: of the SELD error, adjusted over the family; NaN without an interval.
        p_permutation: of the SELD error, by exchange within seeds.
    """

    arm: str
    other: str
    budget_minutes: float
    estimates: dict[str, Estimate]
    refusals: tuple[str, ...]
    caveats: tuple[str, ...]
    confounds: tuple[str, ...] = ()
    p_holm: float = math.nan
    p_permutation: float = math.nan
    p_permutation_holm: float = math.nan

    @property
    def primary(self) -> Estimate | None:
        """The difference of SELD error."""
        return self.estimates.get(SELD_ERROR.name)

    @property
    def resolved(self) -> bool:
        """Whether the SELD errors differ after correction for the family's size."""
        return self.p_holm < SIGNIFICANCE

    @property
    def by_the_arm(self) -> bool:
        """Whether it is resolved, and no setting beside the arm may have made it."""
        return self.resolved and not self.confounds

    @property
    def unfinished(self) -> bool:
        """Whether more finished trials would give an interval."""
        if self.primary is not None:
            return not self.primary.has_interval
        return set(self.refusals) <= {_NO_TRIAL, _NO_PAIR}


@dataclass(frozen=True, kw_only=True)
class CellEstimates:
    """An arm at one budget: what its finished trials say together.

    ``not_learnt`` counts finished trials whose pretraining learnt no classes: retrieval at chance.
    """

    arm: str
    budget_minutes: float
    estimates: dict[str, Estimate]
    seeds: int
    failed: int
    unfinished: int
    not_learnt: int
    refusals: tuple[str, ...]
    caveats: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ClassEstimates:
    """One class at one cell; ``references`` as the metric counts them, per second and track."""

    references: int
    estimates: dict[str, Estimate]


class Comparison:
    """All estimates over one set of results; every trial is resampled once."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self._scores: dict[Trial, dict[str, NDArray[np.float64]]] = {}
        self._class_scores: dict[Trial, dict[str, NDArray[np.float64]]] = {}
        self._differences: dict[tuple[str, str, float], Difference] = {}

    def scores(self, trial: Trial) -> dict[str, NDArray[np.float64]]:
        """(1 + draw,) by score name; the first is that of all test recordings."""
        if trial not in self._scores:
            assert trial.counts is not None
            self._scores[trial] = _scores(resampled_counts(trial.counts.values))
        return self._scores[trial]

    def class_scores(self, trial: Trial) -> dict[str, NDArray[np.float64]]:
        """(1 + draw, class) by score name."""
        if trial not in self._class_scores:
            assert trial.counts is not None
            counts = resampled_counts(trial.counts.values)
            self._class_scores[trial] = _scores(counts[..., None, :])
        return self._class_scores[trial]

    @cached_property
    def cells(self) -> dict[tuple[str, float], CellEstimates]:
        """Every (arm, budget) that has a trial, in the order of tables."""
        places = [
            (arm, budget)
            for arm in self.results.arms
            for budget in self.results.budgets_minutes
            if (arm, budget) in self.results.cells
        ]
        return {place: self._cell(*place) for place in places}

    @property
    def largest_budget(self) -> float | None:
        """Of those at which two arms have intervals, so that they may be compared.

        Where there are none, of those at which one has; else at which one has scores; else None.
        """
        scored = [cell for cell in self.cells.values() if cell.estimates]
        intervals = Counter(
            cell.budget_minutes for cell in scored if cell.estimates[SELD_ERROR.name].has_interval
        )
        budgets = {cell.budget_minutes for cell in scored}
        return max(budgets, key=lambda at: (min(intervals[at], 2), at), default=None)

    def class_estimates(self, arm: str, budget_minutes: float) -> dict[str, ClassEstimates]:
        """By class, of those in the reference; the cell must have estimates."""
        trials = [trial for trial in self.results.cells[arm, budget_minutes] if trial.finished]
        counts = trials[0].counts
        assert counts is not None
        references = counts.values[..., COUNT_COLUMNS.index("references")].sum(axis=0)
        found = {}
        for class_id, name in enumerate(trials[0].record.class_names):
            if not references[class_id]:
                continue
            estimates = {}
            for score in SCORES:
                values = np.stack(
                    [self.class_scores(trial)[score.name][:, class_id] for trial in trials], axis=1
                )
                item = estimate(
                    values[0], values[1:], len(counts.recordings), (score.lowest, score.highest)
                )
                # Where no seed finds the class, nothing has varied: that is no interval.
                estimates[score.name] = (
                    replace(item, low=math.nan, high=math.nan, standard_error=math.nan)
                    if item.low == item.high
                    else item
                )
            found[name] = ClassEstimates(
                references=round(references[class_id]), estimates=estimates
            )
        return found

    def _cell(self, arm: str, budget_minutes: float) -> CellEstimates:
        trials = self.results.cells[arm, budget_minutes]
        finished = [trial for trial in trials if trial.finished]
        refused = refusals(finished, [])
        estimates = {} if refused or not finished else self._estimates(finished, None)
        return CellEstimates(
            arm=arm,
            budget_minutes=budget_minutes,
            estimates=estimates,
            seeds=len(finished),
            failed=sum(trial.record.status == "failed" for trial in trials),
            unfinished=sum(trial.record.status == "stopped" for trial in trials),
            not_learnt=sum(trial.record.pretraining_learnt is False for trial in finished),
            refusals=tuple(refused),
            caveats=(*confounds(finished, []), *caveats(finished, [])),
        )

    def _estimates(
        self, trials: Sequence[Trial], others: Sequence[Trial] | None
    ) -> dict[str, Estimate]:
        assert trials[0].counts is not None
        recordings = len(trials[0].counts.recordings)
        estimates = {}
        for score in SCORES:
            values = np.stack([self.scores(trial)[score.name] for trial in trials], axis=1)
            within = (score.lowest, score.highest)
            if others is not None:
                values = values - np.stack(
                    [self.scores(trial)[score.name] for trial in others], axis=1
                )
                within = (-math.inf, math.inf)
            estimates[score.name] = estimate(values[0], values[1:], recordings, within)
        return estimates

    def pairs(self, arm: str, other: str, budget_minutes: float) -> list[tuple[Trial, Trial]]:
        """Finished trials of both arms that share a seed."""
        second = {
            trial.record.seed: trial
            for trial in self.results.cells.get((other, budget_minutes), [])
            if trial.finished
        }
        return [
            (trial, second[trial.record.seed])
            for trial in self.results.cells.get((arm, budget_minutes), [])
            if trial.finished and trial.record.seed in second
        ]

    def difference(self, arm: str, other: str, budget_minutes: float) -> Difference:
        """``arm`` minus ``other``; p-values are not yet adjusted."""
        key = (arm, other, budget_minutes)
        if key not in self._differences:
            self._differences[key] = self._difference(*key)
        return self._differences[key]

    def _difference(self, arm: str, other: str, budget_minutes: float) -> Difference:
        first, second = (
            [t for t in self.results.cells.get((name, budget_minutes), []) if t.finished]
            for name in (arm, other)
        )
        refused = refusals(first, second) if first and second else []
        pairs = self.pairs(arm, other, budget_minutes)
        if not pairs and not refused:
            refused = [_NO_PAIR] if first and second else [_NO_TRIAL]
        estimates: dict[str, Estimate] = {}
        permutation = math.nan
        if not refused:
            estimates = self._estimates([a for a, _ in pairs], [b for _, b in pairs])
            scores = np.stack(
                [
                    self.scores(a)[SELD_ERROR.name] - self.scores(b)[SELD_ERROR.name]
                    for a, b in pairs
                ],
                axis=1,
            )
            permutation = permutation_p_value(
                scores[0], scores[1:], estimates[SELD_ERROR.name].recordings
            )
        confounding = confounds(first, second) if first and second else []
        return Difference(
            arm=arm,
            other=other,
            budget_minutes=budget_minutes,
            estimates=estimates,
            refusals=tuple(refused),
            caveats=(*confounding, *caveats(first, second)) if first and second else (),
            confounds=tuple(confounding),
            p_permutation=permutation,
        )

    def differences(self, baseline: str) -> list[Difference]:
        """Every other arm against the baseline at every budget: one family for Holm."""
        return adjusted(
            [
                self.difference(arm, baseline, budget)
                for arm, budget in self.cells
                if arm != baseline
            ]
        )

    @cached_property
    def best_resolved(self) -> dict[tuple[float, str], str]:
        """(budget, score name) → the best arm, where its difference to every other is resolved.

        Nor may a setting beside the arms have made any of these differences.

        Holm corrects over the other arms at the budget.
        """
        found = {}
        for budget in self.results.budgets_minutes:
            for score in SCORES:
                best = self._best(budget, score)
                if best is not None:
                    found[budget, score.name] = best
        return found

    def _best(self, budget: float, score: Score) -> str | None:
        means = {
            arm: cell.estimates[score.name].mean
            for (arm, at), cell in self.cells.items()
            if at == budget and score.name in cell.estimates
        }
        order = sorted(means, key=lambda arm: means[arm] if score.lower_is_better else -means[arm])
        if len(order) < 2:
            return None
        best, *rivals = order
        differences = [self.difference(best, rival, budget) for rival in rivals]
        estimates = [item.estimates.get(score.name) for item in differences]
        # Means are over all seeds, differences over common ones: these may tell another story.
        if any(item is None or not score.improves(item.mean) for item in estimates):
            return None
        if any(item.confounds for item in differences):
            return None
        adjusted_p = holm([item.p_value for item in estimates if item is not None])
        return best if all(p < SIGNIFICANCE for p in adjusted_p) else None


def adjusted(differences: Sequence[Difference]) -> list[Difference]:
    """The differences with both p-values adjusted over all of them."""
    primary = [item.primary.p_value if item.primary else math.nan for item in differences]
    permuted = [item.p_permutation for item in differences]
    return [
        replace(item, p_holm=p_holm, p_permutation_holm=p_permutation)
        for item, p_holm, p_permutation in zip(
            differences, holm(primary), holm(permuted), strict=True
        )
    ]


def _scores(counts: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    scored = scores_from_counts(counts, average="macro")
    return {score.name: np.asarray(scored[score.name]) for score in SCORES}

"""Failure signatures: a number, a threshold with its reason, and the evidence.

Misplaced sounds, encoders without directions and losses in unseen classes and at small budgets are
the paper's own list (2410.22803: failure signatures, background music and small annotation
budgets), elevation and lost classes come from this platform's own runs, the rest is contrastive
practice. Probes of
the pretrained encoder that are read from a trial record (``TrialRecord.probes``), all optional:

- ``participation_ratio``: effective number of dimensions of the latents
- ``retrieval_top1``, ``retrieval_top1_chance``: sound finds the picture of its event
- ``retrieval_direction_shuffled_top1``: the same when asked for another direction
- ``linear_doa_error_deg``, ``linear_class_accuracy``, each with ``…_chance``
- ``loss_share_empty_directions``, ``empty_direction_share``
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.compare import Comparison, Estimate, estimate
from analysis.load import Trial
from analysis.probes import pretrainings
from analysis.scores import F20, LE_CD, LR_CD, SELD_ERROR
from analysis.tables import Entry, Table, minutes
from seld.metrics import COUNT_COLUMNS

_REFERENCES = COUNT_COLUMNS.index("references")
_TRUE = COUNT_COLUMNS.index("true_positives")
_SPATIAL = COUNT_COLUMNS.index("spatial_false_positives")


@dataclass(frozen=True, kw_only=True)
class Signature:
    """What is measured, and from which value on it is a sign of failure.

    Attributes:
        meaning: what has gone wrong where it triggers.
        number: what is measured.
        reason: why the threshold is where it is.
        above: whether values above the threshold trigger, else those below.
    """

    name: str
    title: str
    meaning: str
    number: str
    threshold: float
    above: bool
    unit: str
    decimals: int
    reason: str

    def crossed(self, value: float) -> bool:
        """Whether the value lies on the failing side."""
        return value > self.threshold if self.above else value < self.threshold

    def text(self, value: float) -> str:
        """A value as printed."""
        return f"{value:.{self.decimals}f}{self.unit}".replace("-", "−")

    @property
    def rule(self) -> str:
        """The threshold as printed."""
        return f"{'>' if self.above else '<'} {self.text(self.threshold)}"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A signature's number for one arm, and what supports it."""

    signature: Signature
    arm: str
    budget_minutes: float | None
    value: float
    triggered: bool
    evidence: str


MISPLACED = Signature(
    name="misplaced_sounds",
    title="Finds sounds but misplaces them",
    meaning="The network classifies well and localises poorly: directions were not learnt.",
    number="share of rightly classified tracks placed more than 20° off, where LR_CD ≥ 50 %",
    threshold=0.5,
    above=True,
    unit="",
    decimals=2,
    reason=(
        "above one half, the typical detected sound lies outside of the metric's tolerance; a "
        "random direction would miss it 97 % of the time. Below LR_CD 50 % classification is not "
        "good, and the signature does not apply"
    ),
)
DEAF_TO_ELEVATION = Signature(
    name="deaf_to_elevation",
    title="Does not hear elevation",
    meaning="Fine-tuning of a seed never learnt to tell up from down, which is worth several "
    "points of SELD error: without that seed, the means may say something else.",
    number="correlation of predicted with true elevation, of the seed where it is lowest, where "
    "LR_CD ≥ 50 %",
    threshold=0.3,
    above=False,
    unit="",
    decimals=2,
    reason=(
        "below 0.3 less than a tenth of the elevation's variance is heard; seeds that hear it have "
        "0.55 and more, the others say nearly the same elevation always"
    ),
)
LOST_CLASS = Signature(
    name="lost_class",
    title="Never finds a class",
    meaning="A network that finds the other classes never has one of them right. Its LE_CD is 180° "
    "there by definition and its SELD error near 1, which can be most of a difference of means.",
    number="classes without a single rightly classified track, of the seed with most, where LR_CD "
    "≥ 50 % and the test holds 60 tracks of the class",
    threshold=0.0,
    above=True,
    unit="",
    decimals=0,
    reason=(
        "one of ten classes adds 3 to 5 points to the mean SELD error; with fewer than 60 tracks "
        "(one a second, whatever their direction) a class may be lost by chance"
    ),
)
BLIND_ENCODER = Signature(
    name="encoder_without_directions",
    title="Encoder knows classes, not directions",
    meaning="Pretraining taught the encoder what sounds, but not where.",
    number="linear probe's direction error over its chance level, where its class accuracy beats "
    "chance by 10 points",
    threshold=0.9,
    above=True,
    unit="",
    decimals=2,
    reason="a probe that is within 10 % of guessing the mean direction has found next to nothing",
)
UNSEEN_CLASSES = Signature(
    name="loss_on_unseen_classes",
    title="Losses in classes absent from pretraining",
    meaning="Domain mismatch: pretraining hurts the classes that it has not heard.",
    number="F20 lost to the baseline in unseen classes, minus that in the others",
    threshold=6.0,
    above=True,
    unit=" points",
    decimals=1,
    reason=(
        "6 points of F20 in a class are 1.5 points of its SELD error, the paper's whole gain; the "
        "interval must exclude zero, and the unseen classes must lose"
    ),
)
SMALL_BUDGETS = Signature(
    name="loss_at_small_budgets",
    title="Loss at the smallest annotation budget",
    meaning="The encoder overfits the pretraining domain, which little annotation cannot undo.",
    number="SELD error minus the baseline's, at the smallest budget less at the largest",
    threshold=1.5,
    above=True,
    unit=" points",
    decimals=1,
    reason=(
        "1.5 points are the paper's whole gain; the interval must exclude zero, and so must that "
        "of the loss at the smallest budget itself"
    ),
)
COLLAPSE = Signature(
    name="embedding_collapse",
    title="Embedding collapse",
    meaning="The latents use so few dimensions that they cannot hold what SELD needs.",
    number="participation ratio of the latents' covariance",
    threshold=4.0,
    above=False,
    unit="",
    decimals=1,
    reason=(
        "a direction alone takes three dimensions (a unit vector); with fewer than four there is "
        "no room for a class beside it"
    ),
)
DIRECTION_IGNORED = Signature(
    name="similarity_ignores_direction",
    title="Similarity ignores direction",
    meaning="Audio-visual pairs are matched by content alone: asking for a wrong direction "
    "finds the same picture.",
    number="part of the retrieval's gain over chance that is lost when directions are shuffled, "
    "where that gain is at least 5 points",
    threshold=0.1,
    above=False,
    unit="",
    decimals=2,
    reason="below a tenth, shuffled retrieval equals the true one within what probes can tell; "
    "AVC has no directions and is left out",
)
EMPTY_DIRECTIONS = Signature(
    name="empty_directions_dominate",
    title="Empty directions dominate",
    meaning="Most of the DOA-wise loss asks to tell apart directions where nothing sounds.",
    number="share of the loss from directions without an event",
    threshold=0.5,
    above=True,
    unit="",
    decimals=2,
    reason="above one half, more of the gradient comes from false pairs than from sounds; weight "
    "or mask empty directions",
)

SIGNATURES: tuple[Signature, ...] = (
    MISPLACED,
    DEAF_TO_ELEVATION,
    LOST_CLASS,
    BLIND_ENCODER,
    UNSEEN_CLASSES,
    SMALL_BUDGETS,
    COLLAPSE,
    DIRECTION_IGNORED,
    EMPTY_DIRECTIONS,
)

_GOOD_RECALL = 0.5
_ENOUGH_TRACKS = 60
_CLASS_GAIN = 0.1
_RETRIEVAL_GAIN = 0.05


def find_signatures(comparison: Comparison, baseline: str) -> list[Finding]:
    """Every signature's number for every arm that has what it takes, triggered or not."""
    found: list[Finding] = []
    probed = pretrainings(comparison.results)
    for arm in comparison.results.arms:
        found += _misplaced(comparison, arm)
        found += _deaf_to_elevation(comparison, arm)
        found += _lost_class(comparison, arm)
        for signature, measure in _PROBE_MEASURES:
            found += _from_probes(probed.get(arm, []), arm, signature, measure)
        if arm != baseline:
            found += _unseen_classes(comparison, arm, baseline)
            found += _small_budgets(comparison, arm, baseline)
    return sorted(found, key=lambda finding: SIGNATURES.index(finding.signature))


def signatures_table(findings: Sequence[Finding]) -> Table:
    """One row per signature: its worst number, its threshold, and which arms show it."""
    rows, values = [], []
    for signature in SIGNATURES:
        own = [finding for finding in findings if finding.signature is signature]
        shown = list(dict.fromkeys(finding.arm for finding in own if finding.triggered))
        worst = max(
            own,
            key=lambda item: (item.triggered, item.value if item.signature.above else -item.value),
            default=None,
        )
        seen = ", ".join(shown) if shown else ("none" if own else "not measured")
        rows.append(
            (
                Entry(text=signature.title),
                Entry(text=seen, bold=bool(shown)),
                Entry(text=f"{signature.text(worst.value)} ({worst.arm})" if worst else "–"),
                Entry(text=signature.rule),
                Entry(text=f"{signature.number}; {signature.reason}."),
            )
        )
        values += [
            {
                "signature": signature.name,
                "arm": item.arm,
                "annotation_minutes": item.budget_minutes,
                "value": item.value,
                "threshold": signature.threshold,
                "triggered": item.triggered,
                "evidence": item.evidence,
            }
            for item in own
        ]
    return Table(
        name="signatures",
        title="All signatures",
        note="Shown by: arms whose number is on the failing side of the threshold.",
        columns=("Signature", "Shown by", "Worst value", "Threshold", "Number and reason"),
        rows=tuple(rows),
        values=tuple(values),
    )


def _finished(comparison: Comparison, arm: str, budget: float) -> list[Trial]:
    trials = comparison.results.cells.get((arm, budget), [])
    return [trial for trial in trials if trial.finished]


def _misplaced(comparison: Comparison, arm: str) -> list[Finding]:
    found = []
    for (name, budget), cell in comparison.cells.items():
        if name != arm or not cell.estimates:
            continue
        recall = cell.estimates[LR_CD.name].mean
        if recall < _GOOD_RECALL:
            continue
        counted = np.sum(
            [
                t.counts.values.sum(axis=(0, 1))
                for t in _finished(comparison, arm, budget)
                if t.counts
            ],
            axis=0,
        )
        share = float(counted[_SPATIAL] / (counted[_TRUE] + counted[_SPATIAL]))
        found.append(
            Finding(
                signature=MISPLACED,
                arm=arm,
                budget_minutes=budget,
                value=share,
                triggered=MISPLACED.crossed(share),
                evidence=(
                    f"at {minutes(budget)}: LR_CD {LR_CD.number(recall)} %, but "
                    f"{_percent(share)} of these tracks are more than 20° off "
                    f"(LE_CD {LE_CD.number(cell.estimates[LE_CD.name].mean)}°)"
                ),
            )
        )
    return found


def _deaf_to_elevation(comparison: Comparison, arm: str) -> list[Finding]:
    found = []
    for (name, budget), cell in comparison.cells.items():
        if name != arm or not cell.estimates or cell.estimates[LR_CD.name].mean < _GOOD_RECALL:
            continue
        heard = {
            trial.record.seed: trial.record.metrics["elevation_correlation"]
            for trial in _finished(comparison, arm, budget)
            if "elevation_correlation" in trial.record.metrics
        }
        if not heard:
            continue
        deaf = [seed for seed, value in heard.items() if DEAF_TO_ELEVATION.crossed(value)]
        text = DEAF_TO_ELEVATION.text
        values = ", ".join(f"{text(value)} (seed {seed})" for seed, value in heard.items())
        found.append(
            Finding(
                signature=DEAF_TO_ELEVATION,
                arm=arm,
                budget_minutes=budget,
                value=min(heard.values()),
                triggered=bool(deaf),
                evidence=f"at {minutes(budget)}: {len(deaf)} of {len(heard)} seeds; {values}",
            )
        )
    return found


def _lost_class(comparison: Comparison, arm: str) -> list[Finding]:
    found = []
    for (name, budget), cell in comparison.cells.items():
        if name != arm or not cell.estimates or cell.estimates[LR_CD.name].mean < _GOOD_RECALL:
            continue
        lost: dict[int, list[str]] = {}
        for trial in _finished(comparison, arm, budget):
            assert trial.counts is not None
            counted = trial.counts.values.sum(axis=0)  # (class, column)
            right = counted[:, _TRUE] + counted[:, _SPATIAL]
            never = (right == 0) & (counted[:, _REFERENCES] >= _ENOUGH_TRACKS)
            names = [trial.record.class_names[number] for number in np.flatnonzero(never)]
            lost[trial.record.seed] = names
        seeds = {seed: names for seed, names in lost.items() if names}
        listed = "; ".join(f"{', '.join(names)} (seed {seed})" for seed, names in seeds.items())
        of_all = f"at {minutes(budget)}: {len(seeds)} of {len(lost)} seeds"
        most = float(max(map(len, lost.values())))
        found.append(
            Finding(
                signature=LOST_CLASS,
                arm=arm,
                budget_minutes=budget,
                value=most,
                triggered=LOST_CLASS.crossed(most),
                evidence=f"{of_all}; {listed}" if listed else of_all,
            )
        )
    return found


Probes = dict[str, float]
#: The number and its evidence; None where probes are lacking or the signature does not apply.
Measure = Callable[[Probes, str], tuple[float, str] | None]


def _from_probes(
    trials: Sequence[Trial], arm: str, signature: Signature, measure: Measure
) -> list[Finding]:
    """``trials`` are one for each of the arm's pretrainings."""
    if not trials:
        return []
    common = set.intersection(*(set(trial.record.probes) for trial in trials))
    probes = {
        name: float(np.mean([trial.record.probes[name] for trial in trials])) for name in common
    }
    objective = (trials[0].record.config.get("pretrain") or {}).get("objective", "")
    measured = measure(probes, objective)
    if measured is None or not math.isfinite(measured[0]):
        return []
    value, evidence = measured
    seeds = len({trial.record.seed for trial in trials})
    return [
        Finding(
            signature=signature,
            arm=arm,
            budget_minutes=None,
            value=value,
            triggered=signature.crossed(value),
            evidence=f"{evidence}, mean of {seeds} seed{'s' if seeds > 1 else ''}",
        )
    ]


def _blind_encoder(probes: Probes, objective: str) -> tuple[float, str] | None:
    names = ("linear_class_accuracy", "linear_doa_error_deg")
    if not all(name in probes and f"{name}_chance" in probes for name in names):
        return None
    accuracy, error = (probes[name] for name in names)
    guessed, blind = (probes[f"{name}_chance"] for name in names)
    if accuracy - guessed < _CLASS_GAIN or blind <= 0:
        return None
    return error / blind, (
        f"linear probes: class {_percent(accuracy)} (chance {_percent(guessed)}), "
        f"direction error {error:.0f}° (chance {blind:.0f}°)"
    )


def _collapse(probes: Probes, objective: str) -> tuple[float, str] | None:
    if "participation_ratio" not in probes:
        return None
    ratio = probes["participation_ratio"]
    return ratio, f"the latents use {ratio:.1f} dimensions"


def _direction_ignored(probes: Probes, objective: str) -> tuple[float, str] | None:
    names = ("retrieval_top1", "retrieval_direction_shuffled_top1", "retrieval_top1_chance")
    if objective == "avc" or not all(name in probes for name in names):
        return None
    true, shuffled, chance = (probes[name] for name in names)
    if true - chance < _RETRIEVAL_GAIN:
        return None
    return (true - shuffled) / (true - chance), (
        f"retrieval top-1 {_percent(true)}, with directions shuffled {_percent(shuffled)}, "
        f"chance {_percent(chance)}"
    )


def _empty_directions(probes: Probes, objective: str) -> tuple[float, str] | None:
    if "loss_share_empty_directions" not in probes:
        return None
    share = probes["loss_share_empty_directions"]
    empty = probes.get("empty_direction_share")
    of_all = f", which are {_percent(empty)} of all" if empty is not None else ""
    return share, f"{_percent(share)} of the loss comes from empty directions{of_all}"


_PROBE_MEASURES: tuple[tuple[Signature, Measure], ...] = (
    (BLIND_ENCODER, _blind_encoder),
    (COLLAPSE, _collapse),
    (DIRECTION_IGNORED, _direction_ignored),
    (EMPTY_DIRECTIONS, _empty_directions),
)


def _unseen_classes(comparison: Comparison, arm: str, baseline: str) -> list[Finding]:
    found = []
    for budget in comparison.results.budgets_minutes:
        pairs = _comparable_pairs(comparison, arm, baseline, budget)
        if not pairs:
            continue
        record, counts = pairs[0][0].record, pairs[0][0].counts
        assert counts is not None
        if record.unannotated_classes is None:
            continue
        present = counts.values[..., COUNT_COLUMNS.index("references")].sum(axis=0) > 0
        heard = np.array([name in record.unannotated_classes for name in record.class_names])
        unseen, seen = present & ~heard, present & heard
        if not unseen.any() or not seen.any():
            continue
        lost = np.stack(
            [
                comparison.class_scores(b)[F20.name] - comparison.class_scores(a)[F20.name]
                for a, b in pairs
            ],
            axis=1,
        )  # (1 + draw, seed, class)
        in_unseen = lost[..., unseen].mean(axis=-1)
        excess = in_unseen - lost[..., seen].mean(axis=-1)
        item = estimate(excess[0], excess[1:], len(counts.recordings))
        loss = float(in_unseen[0].mean())
        names = [n for n, flag in zip(record.class_names, unseen, strict=True) if flag]
        found.append(
            Finding(
                signature=UNSEEN_CLASSES,
                arm=arm,
                budget_minutes=budget,
                value=F20.scale * item.mean,
                triggered=UNSEEN_CLASSES.crossed(F20.scale * item.mean)
                and item.low > 0
                and loss > 0,
                evidence=(
                    f"at {minutes(budget)}: unseen classes ({', '.join(names)}) lose "
                    f"{F20.number(loss)} points of F20 to {baseline}, the others "
                    f"{F20.number(loss - item.mean)}; excess {_with_interval(item)}"
                ),
            )
        )
    return found


def _small_budgets(comparison: Comparison, arm: str, baseline: str) -> list[Finding]:
    by_budget = {
        budget: {a.record.seed: (a, b) for a, b in pairs}
        for budget in comparison.results.budgets_minutes
        if (pairs := _comparable_pairs(comparison, arm, baseline, budget))
    }
    if len(by_budget) < 2:
        return []
    smallest, largest = min(by_budget), max(by_budget)
    seeds = sorted(by_budget[smallest].keys() & by_budget[largest].keys())
    if not seeds:
        return []
    small, large = (
        np.stack(
            [
                comparison.scores(a)[SELD_ERROR.name] - comparison.scores(b)[SELD_ERROR.name]
                for a, b in (by_budget[budget][seed] for seed in seeds)
            ],
            axis=1,
        )
        for budget in (smallest, largest)
    )
    counts = by_budget[smallest][seeds[0]][0].counts
    assert counts is not None
    recordings = len(counts.recordings)
    excess = small - large
    item = estimate(excess[0], excess[1:], recordings)
    loss = estimate(small[0], small[1:], recordings)
    value = SELD_ERROR.scale * item.mean
    return [
        Finding(
            signature=SMALL_BUDGETS,
            arm=arm,
            budget_minutes=smallest,
            value=value,
            triggered=SMALL_BUDGETS.crossed(value) and item.low > 0 and loss.low > 0,
            evidence=(
                f"SELD error minus {baseline}'s: {_with_interval(loss)} points at "
                f"{minutes(smallest)}, {SELD_ERROR.number(float(large[0].mean()), signed=True)} "
                f"at {minutes(largest)}; difference {_with_interval(item)}"
            ),
        )
    ]


def _comparable_pairs(
    comparison: Comparison, arm: str, other: str, budget: float
) -> list[tuple[Trial, Trial]]:
    if comparison.difference(arm, other, budget).refusals:
        return []
    return comparison.pairs(arm, other, budget)


def _with_interval(item: Estimate) -> str:
    text = SELD_ERROR.number(item.mean, signed=True)
    if not item.has_interval:
        return text
    return f"{text} {SELD_ERROR.interval(item.low, item.high, signed=True)}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"

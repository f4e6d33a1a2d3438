"""Studies: a question, the arms that answer it, and how many budgets and seeds they get.

Each study is a function of the scale that returns a :class:`Study`; arms derive from one another
by ``dataclasses.replace``. Its docstring gives the command, the expected cost and what the result
should show. :data:`STUDIES` is what ``run_grid.py`` accepts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from search_spaces.scales import ScaleSettings, find_scale
from seld.errors import InputError
from trainables.finetune import FinetuneSettings
from trainables.pretrain import PretrainSettings
from trainables.trial import Cell


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One setting of what is compared; ``pretrain`` is None where the encoder starts untrained."""

    name: str
    pretrain: PretrainSettings | None
    finetune: FinetuneSettings


@dataclass(frozen=True, kw_only=True)
class Study:
    """A question and the trials that answer it: every arm × budget × seed.

    Attributes:
        baseline: the arm that the others are compared with.
        budgets_minutes: annotated minutes to fine-tune on; each is a subset of the next.
    """

    name: str
    question: str
    scale: ScaleSettings
    arms: tuple[Arm, ...]
    baseline: str
    budgets_minutes: tuple[float, ...]
    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        where = f"study {self.name}"
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names):
            raise InputError(where, "arms", names, "different names")
        if self.baseline not in names:
            raise InputError(where, "baseline", self.baseline, f"one of {', '.join(names)}")
        if not self.seeds:
            raise InputError(where, "seeds", "none", "at least one")
        if not self.budgets_minutes or min(self.budgets_minutes) <= 0:
            raise InputError(where, "budgets", self.budgets_minutes, "minutes above 0")

    def cells(self) -> list[Cell]:
        """Every trial, in an order that lets neighbours compute different stages.

        Budgets vary slowest: trials that share a pretraining are far apart, so that none waits
        for a pretraining that its neighbour has only just begun.
        """
        return [
            Cell(
                study=self.name,
                arm=arm.name,
                seed=seed,
                annotation_minutes=minutes,
                pretrain=replace(arm.pretrain, seed=seed) if arm.pretrain else None,
                finetune=replace(arm.finetune, seed=seed),
            )
            for minutes in self.budgets_minutes
            for seed in self.seeds
            for arm in self.arms
        ]


def variants(scale: ScaleSettings) -> Study:
    """Does pretraining help, and which kind?

    Command: ``python ablations/run_grid.py variants``
    Cost: at ``demo`` about ten minutes on 2 cores, rendering included.
    Reading: scratch is the bar. AVC shows what pictures give without directions; DOA-wise and
    recording-wise what directions add; recording-wise without rotated negatives can be solved
    without knowing where anything is, so it should fall back towards AVC. At ``demo`` size
    training is far too short for any of this to be significant; it shows that the path works.
    """
    return Study(
        name="variants",
        question="Does DOA-aware audio-visual pretraining lower the SELD error, and which variant?",
        scale=scale,
        arms=(
            Arm(name="scratch", pretrain=None, finetune=scale.finetune),
            Arm(name="avc", pretrain=scale.avc, finetune=scale.finetune),
            Arm(name="doa_wise", pretrain=scale.doa_wise, finetune=scale.finetune),
            Arm(name="recording_wise", pretrain=scale.recording_wise, finetune=scale.finetune),
            Arm(
                name="recording_wise_unrotated",
                pretrain=replace(scale.recording_wise, rotated_negatives=0),
                finetune=scale.finetune,
            ),
        ),
        baseline="scratch",
        budgets_minutes=scale.budgets_minutes,
        seeds=scale.seeds,
    )


STUDIES: dict[str, Callable[[ScaleSettings], Study]] = {
    "variants": variants,
}


def find_study(name: str, scale: str) -> Study:
    """The study called ``name`` at a scale."""
    if name not in STUDIES:
        raise InputError("command line", "study", name, f"one of {', '.join(STUDIES)}")
    return STUDIES[name](find_scale(scale))

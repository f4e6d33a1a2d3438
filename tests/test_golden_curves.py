"""The losses of short trainings stay what they were: a refactoring that changes them shows here.

Where a change is meant to, ``python -m tests.test_golden_curves`` writes ``golden_curves.json``
anew; the difference in it belongs to the commit, and its reason into the message.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.tiny_training import (
    CLASSES,
    OBJECTIVES,
    TINY_FINETUNE,
    Reports,
    finetune_batches,
    pretrain_batches,
)
from trainables.finetune import FinetuneSettings, finetune
from trainables.pretrain import PretrainSettings, pretrain

GOLDEN = Path(__file__).with_name("golden_curves.json")
STEPS = 8
#: CPUs add in different orders: with AVX2 or SSE4.1 for AVX-512, losses differ by at most 5e-4.
RELATIVE_TOLERANCE = 2e-3

TRAININGS: dict[str, PretrainSettings | FinetuneSettings] = {
    **OBJECTIVES,
    "doa_wise_turned": replace(
        OBJECTIVES["doa_wise"], augmentation="swaps_and_rotations", windows_per_clip=2
    ),
    "finetune": TINY_FINETUNE,
    "finetune_turned": replace(TINY_FINETUNE, rotations="vertical"),
    "finetune_multi_accdoa": replace(TINY_FINETUNE, output_format="multi_accdoa"),
}


def losses(training: PretrainSettings | FinetuneSettings) -> list[float]:
    """Of each of :data:`STEPS` steps on noise."""
    settings = replace(training, steps=STEPS, warmup_steps=2)
    reports = Reports()
    if isinstance(settings, PretrainSettings):
        pretrain(settings, pretrain_batches(settings), report=reports)
    else:
        batches = finetune_batches(settings)
        finetune(settings, batches, class_count=CLASSES, encoder_state=None, report=reports)
    return [reports.metrics[step]["loss"] for step in range(1, STEPS + 1)]


@pytest.mark.parametrize("name", TRAININGS)
def test_losses_are_those_of_the_golden_curve(name: str) -> None:
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert losses(TRAININGS[name]) == pytest.approx(golden[name], rel=RELATIVE_TOLERANCE)


if __name__ == "__main__":
    curves = {name: [round(loss, 6) for loss in losses(TRAININGS[name])] for name in TRAININGS}
    lines = (f"  {json.dumps(name)}: {json.dumps(curve)}" for name, curve in curves.items())
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")

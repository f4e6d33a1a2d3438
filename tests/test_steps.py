"""What both loops do around a step: the learning rate of its schedule, gradients clipped."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from seld.models.seld_network import SeldNetwork, SeldNetworkSettings
from tests.tiny_training import (
    CLASSES,
    TINY,
    TINY_FINETUNE,
    Reports,
    finetune_batches,
    pretrain_batches,
)
from trainables.contrast import PretrainNetworks
from trainables.finetune import finetune
from trainables.pretrain import pretrain
from trainables.steps import TrainState, schedule

#: One step in ten of a warm-up. Where AdamW does not decay weights, its first step moves every
#: weight that has a gradient by the learning rate, and its first moment is a tenth of the gradient.
FIRST_STEP = {
    "steps": 1,
    "warmup_steps": 10,
    "learning_rate": 0.02,
    "weight_decay": 0.0,
    "gradient_norm": 1e-3,
}
FIRST_RATE = 0.002


def test_learning_rate_warms_up_to_its_whole_and_falls_to_zero() -> None:
    factors = [schedule(step, steps=10, warmup_steps=4) for step in range(10)]
    assert [factors[step] for step in (0, 1, 3, 4, 7)] == pytest.approx([0.25, 0.5, 1.0, 1.0, 0.5])
    assert factors[4:] == sorted(factors[4:], reverse=True)
    assert schedule(10, steps=10, warmup_steps=4) == pytest.approx(0.0)
    assert schedule(0, steps=10, warmup_steps=0) == 1.0


def largest_move(before: nn.Module, state: TrainState, part: str) -> float:
    """Of the parameters whose name begins so."""
    return max(
        (state["networks"][name] - parameter).abs().max().item()
        for name, parameter in before.named_parameters()
        if name.startswith(part)
    )


def gradient_norm(state: TrainState) -> float:
    """Of the gradient that the first step was taken with."""
    moments: list[Tensor] = [each["exp_avg"] for each in state["optimizer"]["state"].values()]
    return 10.0 * torch.cat([moment.flatten() for moment in moments]).norm().item()


def test_pretraining_steps_by_the_schedule_along_clipped_gradients() -> None:
    settings = dataclasses.replace(TINY, **FIRST_STEP)
    torch.manual_seed(settings.seed)
    before = PretrainNetworks(settings)
    reports = Reports()
    state = pretrain(settings, pretrain_batches(settings), report=reports).state
    assert reports.metrics[1]["gradient_norm"] > 0.01
    assert gradient_norm(state) == pytest.approx(1e-3, rel=1e-3)
    for part in ("audio_encoder", "audio_head", "visual_encoder"):
        assert largest_move(before, state, part) == pytest.approx(FIRST_RATE, rel=0.01), part


def test_finetuning_steps_by_the_schedule_along_clipped_gradients() -> None:
    settings = dataclasses.replace(TINY_FINETUNE, encoder_rate=0.25, **FIRST_STEP)
    classes = CLASSES
    torch.manual_seed(settings.seed)
    before = SeldNetwork(SeldNetworkSettings(encoder=settings.audio, class_count=classes))
    state = finetune(
        settings,
        finetune_batches(settings),
        class_count=classes,
        encoder_state=None,
        report=Reports(),
    ).state
    assert gradient_norm(state) == pytest.approx(1e-3, rel=1e-3)
    assert largest_move(before, state, "head") == pytest.approx(FIRST_RATE, rel=0.01)
    assert largest_move(before, state, "encoder") == pytest.approx(0.25 * FIRST_RATE, rel=0.01)

"""Fine-tuning the audio encoder for SELD: the loop, in plain code.

Every arm of a study runs this same recipe for the same number of annotated steps; ``scratch`` is
the encoder without a pretrained state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from seld.clips import LABEL_FRAME_S
from seld.errors import InputError
from seld.geometry import random_transforms
from seld.losses import accdoa_loss, adpit_loss
from seld.models.heads import OutputFormat
from seld.models.resnet_conformer import AudioEncoderSettings
from seld.models.seld_network import SeldNetwork, SeldNetworkSettings
from seld.spatial_spectra import turned_features
from trainables.clips import Batch, batch_spectra, batches_on
from trainables.optimizer import AdamW
from trainables.steps import (
    BestState,
    Metrics,
    Precision,
    Report,
    RunningMeans,
    TrainState,
    detached,
    network_precision,
    require_finite,
    schedule,
    seed_step,
    train_state,
)


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """Everything fine-tuning depends on, but the data and where the encoder starts.

    Attributes:
        output_format: ``accdoa`` is the paper's; ``multi_accdoa`` keeps several sources of a class.
        steps, batch_size: optimiser steps, windows per step.
        window_s: length of a window, a whole number of label frames.
        learning_rate: of the new head.
        encoder_rate: the encoder's learning rate as a multiple of the head's, for every arm.
        weight_decay, warmup_steps, gradient_norm: AdamW, linear warm-up, cosine to zero, clipping.
        swaps: the eight channel swaps, sound and targets together.
        rotations: turns sound and targets together, by any angle about the vertical or any axis.
        mask_bands, mask_frames: widest mel bands and longest frames blanked per window (0: none).
        validate_every: steps between validations (0: none), where a validation is given.
        select_best: return the state of the lowest validated SELD error instead of the last.
        patience: validations without a better one after which to stop (0: never).
        audio: the encoder; must be the pretrained one's.
        precision, report_every, state_every: as in pretraining.
    """

    output_format: OutputFormat = "accdoa"
    seed: int = 0
    steps: int = 600
    batch_size: int = 16
    window_s: float = 4.0
    learning_rate: float = 1e-3
    encoder_rate: float = 1.0
    weight_decay: float = 1e-2
    warmup_steps: int = 30
    gradient_norm: float = 5.0
    swaps: bool = True
    rotations: Literal["none", "vertical", "any"] = "none"
    mask_bands: int = 0
    mask_frames: int = 0
    validate_every: int = 0
    select_best: bool = False
    patience: int = 0
    audio: AudioEncoderSettings = field(default_factory=AudioEncoderSettings)
    precision: Precision = "auto"
    report_every: int = 50
    state_every: int = 500

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "report_every", "state_every"):
            if getattr(self, name) < 1:
                raise InputError("fine-tuning", name, getattr(self, name), "at least 1")
        for name in ("learning_rate", "gradient_norm"):
            if not getattr(self, name) > 0.0:
                raise InputError("fine-tuning", name, getattr(self, name), "more than 0")
        label_frames = self.window_s / LABEL_FRAME_S
        if not 0.5 < label_frames < math.inf or abs(label_frames - round(label_frames)) > 1e-6:
            expected = f"a positive multiple of {LABEL_FRAME_S:g} s"
            raise InputError("fine-tuning", "window_s", self.window_s, expected)
        for name in (
            "encoder_rate",
            "weight_decay",
            "warmup_steps",
            "mask_bands",
            "mask_frames",
            "validate_every",
            "patience",
        ):
            if getattr(self, name) < 0:
                raise InputError("fine-tuning", name, getattr(self, name), "0 or more")
        if (self.select_best or self.patience) and not self.validate_every:
            raise InputError(
                "fine-tuning", "validate_every", 0, "more than 0 to select or stop by validation"
            )


@dataclass(frozen=True, kw_only=True)
class FinetuneResult:
    """The fine-tuned network in evaluation mode, the run's last state, metrics and best step."""

    network: SeldNetwork
    state: TrainState
    metrics: Metrics
    best_step: int


class Validations:
    """A run's validations: when one is due, the best so far, and when to wait no longer.

    ``best`` is part of a state, from which ``start`` takes it. ``over`` is set by the validation
    that uses up the patience.
    """

    def __init__(
        self,
        settings: FinetuneSettings,
        validate: Callable[[SeldNetwork], Metrics] | None,
        start: TrainState | None,
    ) -> None:
        self.best: BestState = {"step": 0, "seld_error": math.inf, "network": {}}
        if start is not None:
            self.best = start.get("best", self.best)
        self.over = False
        self._settings = settings
        self._validate = validate

    def after(self, done: int, network: SeldNetwork) -> Metrics:
        """What is measured after so many steps; nothing where no validation is due."""
        settings = self._settings
        if self._validate is None or not settings.validate_every:
            return {}
        if done < settings.steps and done % settings.validate_every:
            return {}
        metrics = self._validate(network.eval())
        if metrics["seld_error"] < self.best["seld_error"]:
            self.best = {
                "step": done,
                "seld_error": metrics["seld_error"],
                "network": detached(network.state_dict()),
            }
        waited = (done - self.best["step"]) // settings.validate_every
        self.over = 0 < settings.patience <= waited
        return metrics


def finetune(
    settings: FinetuneSettings,
    batches: Iterable[Batch],
    *,
    class_count: int,
    encoder_state: dict[str, Tensor] | None,
    device: torch.device | str = "cpu",
    report: Report,
    start: TrainState | None = None,
    validate: Callable[[SeldNetwork], Metrics] | None = None,
) -> FinetuneResult:
    """Train encoder and SELD head on annotated windows.

    Args:
        settings: all choices.
        batches: those of the steps after ``start``: ``spectra`` (or ``foa``) and ``target``.
        class_count: classes of the annotation.
        encoder_state: the pretrained audio encoder, or None for scratch.
        device: where the network lives.
        report: as in :func:`trainables.pretrain.pretrain`.
        start: continue from here; bit for bit on the CPU.
        validate: metrics on validation rooms, with ``seld_error`` among them.

    Raises:
        NonFiniteLossError: before any step is taken with a loss or gradient that is not finite.
    """
    torch.manual_seed(settings.seed)
    network = SeldNetwork(
        SeldNetworkSettings(
            encoder=settings.audio,
            class_count=class_count,
            output_format=settings.output_format,
        )
    )
    if encoder_state is not None:
        network.encoder.load_state_dict(encoder_state)
    network = network.to(device)
    encoder, head = network.encoder.parameters(), network.head.parameters()
    optimizer = AdamW(
        [
            {"params": list(encoder), "rate": settings.encoder_rate},
            {"params": list(head), "rate": 1.0},
        ],
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
    )
    first_step = 0
    if start is not None:
        first_step = start["step"]
        network.load_state_dict(start["networks"])
        optimizer.load_state_dict(start["optimizer"])
    validations = Validations(settings, validate, start)

    metrics: Metrics = {}
    means = RunningMeans()
    state = start
    on_device = batches_on(device, batches)
    for step, batch in zip(range(first_step, settings.steps), on_device, strict=False):
        network.train()
        generator = seed_step(settings.seed, step)
        factor = schedule(step, settings.steps, settings.warmup_steps)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * group["rate"] * factor

        loss = seld_loss(network, batch, settings, generator, device)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), settings.gradient_norm)
        require_finite(step, loss, norm)
        optimizer.step()

        means.add(loss=loss)
        done = step + 1
        validation = validations.after(done, network)
        last = done == settings.steps or validations.over
        state_due = last or done % settings.state_every == 0
        if state_due or validation or done % settings.report_every == 0:
            metrics = means.take() | validation
            state = train_state(done, network, optimizer, validations.best) if state_due else None
            # The last state is not for going on from: what would follow it is the end.
            report(done, metrics, None if last else state)
        if last:
            break

    assert state is not None, "batches ended early"
    best = validations.best
    if settings.select_best and best["network"]:
        network.load_state_dict(best["network"])
    return FinetuneResult(
        network=network.eval(), state=state, metrics=metrics, best_step=best["step"]
    )


def seld_loss(
    network: SeldNetwork,
    batch: Batch,
    settings: FinetuneSettings,
    generator: torch.Generator,
    device: torch.device | str,
) -> Tensor:
    """The loss of one batch, its sound and targets transformed together at random."""
    spectra = batch_spectra(batch, network.encoder, device)
    target = batch["target"].to(device)
    transform = random_transforms(
        len(spectra), rotations=settings.rotations, swaps=settings.swaps, generator=generator
    ).to(device)
    features = network.encoder.normalisation(turned_features(spectra, transform))
    features = masked(features, settings, generator)
    with network_precision(settings.precision, device):
        prediction = network.head(network.encoder.network(features))
    if settings.output_format == "accdoa":
        return accdoa_loss(prediction, turned_vectors(target, transform))
    vectors = turned_vectors(target[:, :, :, 1:].transpose(3, 4), transform).transpose(3, 4)
    return adpit_loss(prediction, torch.cat([target[:, :, :, :1], vectors], dim=3))


def turned_vectors(vectors: Tensor, matrices: Tensor) -> Tensor:
    """(batch, ..., 3) vectors by (batch, 3, 3) matrices."""
    return torch.einsum("bij,b...j->b...i", matrices, vectors)


def masked(features: Tensor, settings: FinetuneSettings, generator: torch.Generator) -> Tensor:
    """Blank one random stretch of bands and one of frames per window (SpecAugment)."""
    for axis, widest in ((3, settings.mask_bands), (2, settings.mask_frames)):
        if widest == 0:
            continue
        count, size = features.shape[0], features.shape[axis]
        width = torch.randint(widest + 1, (count, 1), generator=generator)
        first = (torch.rand((count, 1), generator=generator) * (size - width + 1)).long()
        position = torch.arange(size)
        blank = (position >= first) & (position < first + width)  # (batch, size)
        blank = blank[:, None, None, :] if axis == 3 else blank[:, None, :, None]
        features = features.masked_fill(blank.to(features.device), 0.0)
    return features

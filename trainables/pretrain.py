"""Audio-visual pretraining: the loop, in plain code.

What a step minimises is :mod:`trainables.contrast`. No Ray here: an iterable of batches comes in,
a report callback goes out, so the same loop runs in Ray Train, in a test and on a bare machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Literal, NoReturn

import torch
from torch import Tensor, nn

from seld.clips import LABEL_FRAME_S
from seld.errors import InputError
from seld.losses import distributed
from seld.models.heads import ProjectionSettings
from seld.models.r2plus1d import VisualEncoderSettings
from seld.models.resnet_conformer import AudioEncoderSettings
from trainables.clips import Batch, batches_on
from trainables.contrast import EarlierPairs, PretrainNetworks, contrastive_loss, picture_loss
from trainables.directions import DirectionSettings
from trainables.joined_norm import join_batch_norms
from trainables.optimizer import AdamW
from trainables.steps import (
    Metrics,
    Precision,
    Report,
    RunningMeans,
    TrainState,
    average_gradients,
    require_finite,
    schedule,
    seed_step,
    train_state,
    uses_bf16,
)

#: A learnt τ goes no lower: logits of more than ± 100 leave nothing to learn from.
LOWEST_TEMPERATURE = 0.01


@dataclass(frozen=True, kw_only=True)
class PretrainSettings:
    """Everything pretraining depends on, but the data.

    Attributes:
        objective: ``doa_wise`` and ``recording_wise`` are the paper's, ``avc`` its baseline.
        steps, batch_size: optimiser steps, and windows per step, those of all ranks together.
        windows_per_clip: how many of a batch's windows come from one clip, at different times.
            They share the room's sound and looks, so that only what happens tells them apart.
        window_s: length of the sound of a pair.
        frame_count: pictures per window, spread evenly over it.
        field_of_view_deg, crop_px: of the square perspective crop at each direction.
        directions: which directions are compared.
        own_window_share: of the DOA-wise loss, the part in which each direction competes with its
            own window's directions only (:func:`seld.losses.own_window_loss`). [ours]
        listening_directions: further random directions per window at which that part asks the
            sound, but takes no crop: to say "not there" costs next to nothing. None with the
            ``grid`` head, which knows its own directions only.
        head: ``grid`` gives the K embeddings of the paper's fixed directions jointly;
            ``direction_conditioned`` [ours] is asked for any direction and so allows sampled ones.
        projection: the head's shape; its embedding_dim must be the visual encoder's.
        temperature, learn_temperature: τ, or where it starts.
        memory_steps: the embeddings of so many steps before are further negatives
            (:class:`trainables.contrast.EarlierPairs`), of ``doa_wise`` and ``avc``.
        visual_warmup_share: of the steps, the first part, in which pictures are compared with
            pictures alone (:func:`trainables.contrast.picture_loss`); no label says what they show.
        rotated_negatives: per window, how many randomly rotated copies of its own picture
            ``recording_wise`` gets as further negatives; 0 is "without rotation".
        negative_axes, minimum_rotation_deg: about which those rotations turn, and how far at least.
        segment_s: pieces of this length are compared instead of whole windows (None); each is a
            recording of its own in the loss.
        augmentation: joint transformation of sound and picture: the eight channel ``swaps`` of
            SELD, ``rotations``, both or none.
        augmentation_axes: about which those rotations turn.
        learning_rate, weight_decay, warmup_steps, gradient_norm: AdamW, linear warm-up, cosine to
            zero, gradients clipped to this norm.
        precision: ``bf16`` runs the networks under autocast, ``auto`` only on machines that have
            instructions for it; the losses stay float32.
        report_every, state_every: steps between reports, and between reports with a state.
    """

    objective: Literal["doa_wise", "recording_wise", "avc"] = "doa_wise"
    seed: int = 0
    steps: int = 2000
    batch_size: int = 32
    windows_per_clip: int = 1
    window_s: float = 2.0
    frame_count: int = 3
    field_of_view_deg: float = 50.0
    crop_px: int = 16
    directions: DirectionSettings = field(default_factory=DirectionSettings)
    own_window_share: float = 0.0
    listening_directions: int = 0
    head: Literal["grid", "direction_conditioned"] = "direction_conditioned"
    projection: ProjectionSettings = field(default_factory=ProjectionSettings)
    temperature: float = 0.1
    learn_temperature: bool = True
    memory_steps: int = 0
    visual_warmup_share: float = 0.0
    rotated_negatives: int = 1
    negative_axes: Literal["any", "vertical"] = "any"
    minimum_rotation_deg: float = 45.0
    segment_s: float | None = None
    augmentation: Literal["none", "swaps", "rotations", "swaps_and_rotations"] = "swaps"
    augmentation_axes: Literal["any", "vertical"] = "any"
    audio: AudioEncoderSettings = field(default_factory=AudioEncoderSettings)
    visual: VisualEncoderSettings = field(default_factory=VisualEncoderSettings)
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    warmup_steps: int = 50
    gradient_norm: float = 5.0
    precision: Precision = "auto"
    report_every: int = 50
    state_every: int = 500

    def __post_init__(self) -> None:
        self._check_ranges()
        self._check_directions()
        self._check_pieces()

    def _check_ranges(self) -> None:
        for name in (
            "steps",
            "batch_size",
            "frame_count",
            "crop_px",
            "report_every",
            "state_every",
        ):
            if getattr(self, name) < 1:
                self._refuse(name, "at least 1")
        for name in ("window_s", "learning_rate", "gradient_norm"):
            if not getattr(self, name) > 0.0:
                self._refuse(name, "more than 0")
        for name in (
            "rotated_negatives",
            "listening_directions",
            "memory_steps",
            "weight_decay",
            "warmup_steps",
        ):
            if getattr(self, name) < 0:
                self._refuse(name, "0 or more")
        if not self.temperature >= LOWEST_TEMPERATURE:
            self._refuse("temperature", f"at least {LOWEST_TEMPERATURE:g}")
        if not 0.0 < self.field_of_view_deg < 180.0:
            self._refuse("field_of_view_deg", "0 to 180")
        if not 0.0 <= self.own_window_share <= 1.0:
            self._refuse("own_window_share", "0 to 1")
        if not 0.0 <= self.visual_warmup_share < 1.0:
            self._refuse("visual_warmup_share", "0 to below 1")
        if not 0.0 <= self.minimum_rotation_deg < 180.0:
            self._refuse("minimum_rotation_deg", "0 to below 180")

    def _check_directions(self) -> None:
        """Objectives and heads that cannot have every way of drawing directions."""
        fixed_grid = self.directions.sampling == "grid" and self.directions.grid_rotation == "none"
        if self.objective != "avc" and self.head == "grid" and not fixed_grid:
            self._refuse(
                "head", "'direction_conditioned' where directions are sampled or turned at random"
            )
        if self.objective == "recording_wise" and self.directions.sampling != "grid":
            self._refuse(
                "directions.sampling", "'grid': recordings are compared at the same directions"
            )
        if self.objective == "recording_wise" and self.memory_steps:
            # Its grid is turned at every step, and recordings are compared at the same directions.
            self._refuse(
                "memory_steps", "0: recordings of earlier steps were heard at other directions"
            )
        if self.objective == "doa_wise" and self.head == "grid" and self.listening_directions:
            # It would answer with the nearest direction's embedding: that of a crop there is.
            self._refuse(
                "listening_directions",
                "0 with the 'grid' head, which answers for its own directions only",
            )

    def _check_pieces(self) -> None:
        """What has to go into something else a whole number of times, or to be as large."""
        if self.projection.embedding_dim != self.visual.embedding_dim:
            self._refuse(
                "projection.embedding_dim", f"the visual encoder's, {self.visual.embedding_dim}"
            )
        if self.windows_per_clip < 1 or self.batch_size % self.windows_per_clip:
            self._refuse("windows_per_clip", f"a divisor of {self.batch_size}")
        if self.segment_s is None:
            return
        label_frames = round(self.window_s / LABEL_FRAME_S)
        pieces = [n for n in range(1, label_frames + 1) if label_frames % n == 0]
        lengths_s = [self.window_s / n for n in pieces if self.frame_count % n == 0]
        if not any(math.isclose(self.segment_s, length_s) for length_s in lengths_s):
            expected = " or ".join(f"{length_s:g}" for length_s in lengths_s)
            self._refuse(
                "segment_s",
                f"{expected}: a whole part of {label_frames} label frames and of"
                f" frame_count = {self.frame_count}",
            )

    def _refuse(self, name: str, expected: str) -> NoReturn:
        where = f"pretraining ({self.objective})"
        raise InputError(where, name, attrgetter(name)(self), expected)

    def rank_batch_size(self, world_size: int) -> int:
        """Windows per step of one of ``world_size`` ranks.

        What is learnt must not depend on how many machines there are: the batch is shared out.
        """
        share, rest = divmod(self.batch_size, world_size)
        if rest or share % self.windows_per_clip:
            self._refuse(
                "batch_size",
                f"a multiple of {world_size * self.windows_per_clip} ({world_size} workers"
                f" × {self.windows_per_clip} windows per clip)",
            )
        return share

    @property
    def segments(self) -> int:
        """Pieces a window is compared in."""
        return round(self.window_s / self.segment_s) if self.segment_s is not None else 1


@dataclass(frozen=True, kw_only=True)
class PretrainResult:
    """The finished run: its state, the audio encoder alone, and the last metrics reported.

    ``probes`` are what the probe alone said of the last state; empty where there was none.
    """

    state: TrainState
    audio_encoder: dict[str, Tensor]
    metrics: Metrics
    probes: Metrics


def pretrain(
    settings: PretrainSettings,
    batches: Iterable[Batch],
    *,
    device: torch.device | str = "cpu",
    report: Report,
    start: TrainState | None = None,
    probe: Callable[[PretrainNetworks], Metrics] | None = None,
) -> PretrainResult:
    """Train both encoders.

    Args:
        settings: all choices.
        batches: the batches of the steps after ``start``, as :mod:`trainables.clips` makes them.
        device: where the networks live; batches arrive on the CPU.
        report: called every ``report_every`` steps, with every state and after the last step. The
            metrics at a state hold its probes as well, which the state has apart from them.
        start: continue from here; on the CPU the result equals an uninterrupted run bit for bit.
        probe: further metrics of the networks (in evaluation mode), taken at every state.

    Raises:
        NonFiniteLossError: before any step is taken with a loss or gradient that is not finite.
    """
    refuse_broken_convolution(settings, device)
    if torch.device(device).type == "cuda":
        # For all of the process, which pretrains and no more. All batches have one shape; clips
        # that a fine-tuning validates have many, and each would be measured anew.
        torch.backends.cudnn.benchmark = True
    torch.manual_seed(settings.seed)
    networks = PretrainNetworks(settings).to(device)
    if distributed():
        join_batch_norms(networks)
    optimizer = AdamW(
        networks.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    first_step = 0
    if start is not None:
        first_step = start["step"]
        networks.load_state_dict(start["networks"])
        optimizer.load_state_dict(start["optimizer"])

    earlier = EarlierPairs(settings.memory_steps, start.get("earlier") if start else None, device)
    visual_warmup_steps = round(settings.visual_warmup_share * settings.steps)
    metrics: Metrics = {}
    means = RunningMeans()
    state = start
    on_device = batches_on(device, batches)
    for step, batch in zip(range(first_step, settings.steps), on_device, strict=False):
        networks.train()
        generator = seed_step(settings.seed, step)
        learning_rate = settings.learning_rate * schedule(
            step, settings.steps, settings.warmup_steps
        )
        for group in optimizer.param_groups:
            group["lr"] = learning_rate

        if step < visual_warmup_steps:
            loss = picture_loss(networks, batch, settings, generator, device)
        else:
            loss = contrastive_loss(networks, batch, settings, generator, device, earlier)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(networks)
        norm = nn.utils.clip_grad_norm_(networks.parameters(), settings.gradient_norm)
        require_finite(step, loss, norm)
        optimizer.step()
        # Here and not in the loss, where a temperature at the bound would have no gradient to rise.
        with torch.no_grad():
            networks.log_temperature.clamp_(min=math.log(LOWEST_TEMPERATURE))

        means.add(loss=loss, gradient_norm=norm)
        done = step + 1
        last = done == settings.steps
        state_due = last or done % settings.state_every == 0
        if state_due or done % settings.report_every == 0:
            metrics = means.take()
            metrics["learning_rate"] = learning_rate
            metrics["temperature"] = networks.log_temperature.exp().item()
            state = None
            if state_due:
                state = train_state(done, networks, optimizer)
                state["earlier"] = earlier.state()
                if probe is not None:
                    state["probes"] = probe(networks.eval())
                    metrics |= state["probes"]
            report(done, metrics, state)
    assert state is not None, "batches ended early"
    assert state["step"] == settings.steps, "batches ended early"
    return PretrainResult(
        state=state,
        audio_encoder=audio_encoder_of(state),
        metrics=metrics,
        probes=state.get("probes", {}),
    )


def audio_encoder_of(state: TrainState) -> dict[str, Tensor]:
    """The audio encoder's part of a state: what fine-tuning starts from."""
    prefix = "audio_encoder."
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in state["networks"].items()
        if name.startswith(prefix)
    }


def refuse_broken_convolution(settings: PretrainSettings, device: torch.device | str) -> None:
    """Stop where PyTorch would train on garbage without a word.

    In bfloat16 on a CPU (PyTorch 2.14, oneDNN), the weight gradient of a (3, 1, 1) convolution
    over exactly two frames is wrong by orders of magnitude; one, three and more are right.
    """
    if torch.device(device).type != "cpu" or not uses_bf16(settings.precision, "cpu"):
        return
    frames = settings.frame_count // settings.segments
    reached = {frames}
    for stride in settings.visual.stage_strides if settings.visual.time_stride else ():
        frames = -(-frames // stride)
        reached.add(frames)
    if 2 in reached:
        raise InputError(
            f"pretraining ({settings.objective})",
            "frame_count",
            settings.frame_count,
            "a number that leaves no visual layer two frames, or precision float32: bfloat16 on"
            " a CPU gets those gradients wrong",
        )

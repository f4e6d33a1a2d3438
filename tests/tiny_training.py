"""Settings, batches and reports of trainings small enough for tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch

from seld.geometry import DoaGrid
from seld.models.heads import ProjectionSettings
from seld.models.r2plus1d import VisualEncoderSettings
from seld.models.resnet_conformer import AudioEncoderSettings, ResNetConformerSettings
from trainables.clips import Batch
from trainables.directions import DirectionSettings
from trainables.finetune import FinetuneSettings
from trainables.pretrain import PretrainSettings
from trainables.steps import TrainState

torch.set_num_threads(1)  # several threads are slower than one on networks of this size

GRID = DirectionSettings(sampling="grid", grid=DoaGrid(kind="fibonacci", count=6))
TINY = PretrainSettings(
    steps=4,
    batch_size=4,
    window_s=0.4,
    frame_count=2,
    crop_px=8,
    projection=ProjectionSettings(embedding_dim=16, hidden_dim=16),
    audio=AudioEncoderSettings(
        network=ResNetConformerSettings(
            stage_channels=(8,),
            stage_blocks=(1,),
            time_pooling=(5,),
            frequency_pooling=(16,),
            dim=16,
            conformer_blocks=1,
            attention_heads=2,
        )
    ),
    visual=VisualEncoderSettings(
        stem_channels=8,
        stage_channels=(8,),
        stage_blocks=(1,),
        stem_stride=1,
        stage_strides=(1,),
        time_stride=False,
        embedding_dim=16,
    ),
    precision="float32",
    report_every=1,
    state_every=2,
)
OBJECTIVES = {
    "doa_wise": TINY,
    "doa_wise_grid": dataclasses.replace(TINY, directions=GRID, head="grid"),
    "recording_wise": dataclasses.replace(TINY, objective="recording_wise", directions=GRID),
    "recording_wise_without_rotation": dataclasses.replace(
        TINY, objective="recording_wise", directions=GRID, rotated_negatives=0, segment_s=0.2
    ),
    "doa_wise_own_window": dataclasses.replace(TINY, own_window_share=0.5, listening_directions=3),
    "doa_wise_with_memory": dataclasses.replace(TINY, memory_steps=3),
    "doa_wise_after_pictures": dataclasses.replace(TINY, visual_warmup_share=0.75),
    "avc": dataclasses.replace(TINY, objective="avc"),
    "avc_with_memory": dataclasses.replace(TINY, objective="avc", memory_steps=1),
}
TINY_FINETUNE = FinetuneSettings(
    steps=4,
    batch_size=3,
    window_s=0.4,
    audio=TINY.audio,
    mask_bands=8,
    mask_frames=4,
    precision="float32",
    report_every=1,
    state_every=2,
)
#: Of the targets of :func:`finetune_batches`.
CLASSES = 5


def pretrain_batches(settings: PretrainSettings, start_step: int = 0) -> Iterator[Batch]:
    """Noise for each step, always the same: sound and pictures."""
    samples = round(settings.window_s * 24_000)
    for step in range(start_step, settings.steps):
        generator = torch.Generator().manual_seed(1000 + step)
        shape = (settings.batch_size, 4, samples)
        pictures = (settings.batch_size, settings.frame_count, 3, 16, 32)
        yield {
            "foa": torch.randint(-3000, 3000, shape, generator=generator, dtype=torch.int16),
            "frames": torch.randint(0, 256, pictures, generator=generator, dtype=torch.uint8),
        }


def finetune_batches(settings: FinetuneSettings, start_step: int = 0) -> Iterator[Batch]:
    """Noise for each step, always the same: sound and targets of :data:`CLASSES` classes."""
    for step in range(start_step, settings.steps):
        generator = torch.Generator().manual_seed(step)
        foa = torch.randint(-3000, 3000, (3, 4, 9600), generator=generator, dtype=torch.int16)
        shape = (3, 4, CLASSES, 3) if settings.output_format == "accdoa" else (3, 4, 6, 4, CLASSES)
        yield {"foa": foa, "target": torch.rand(shape, generator=generator)}


class Reports:
    """Keeps what a loop reports, by step."""

    def __init__(self) -> None:
        self.metrics: dict[int, dict[str, float]] = {}
        self.states: dict[int, TrainState] = {}

    def __call__(self, step: int, metrics: dict[str, float], state: TrainState | None) -> None:
        self.metrics[step] = metrics
        if state is not None:
            self.states[step] = state

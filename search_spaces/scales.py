"""The sizes a study can be run at: the same code with other settings.

Nothing here is the paper's but what its authors published (the networks at ``paper`` size as
commonly rebuilt, 100 hours); every other value is a choice of this project.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from seld.decoding import ShardSettings
from seld.errors import InputError
from seld.models.heads import ProjectionSettings
from seld.models.r2plus1d import VISUAL_ENCODER_PRESETS
from seld.models.resnet_conformer import RESNET_CONFORMER_PRESETS, AudioEncoderSettings
from seld.scenes.settings import PartSettings, PictureSettings, SceneSettings
from trainables.directions import DirectionSettings
from trainables.finetune import FinetuneSettings
from trainables.pretrain import PretrainSettings

ScaleName = Literal["demo", "evidence", "small", "paper"]


@dataclass(frozen=True, kw_only=True)
class ScaleSettings:
    """Everything that grows with the machine.

    Attributes:
        doa_wise, recording_wise, avc: the recipe of each objective.
        finetune: the recipe with which every arm is fine-tuned.
        scenes: the embedded benchmark, for who has no corpus.
        shards: form of the clips.
    """

    name: ScaleName
    doa_wise: PretrainSettings
    recording_wise: PretrainSettings
    avc: PretrainSettings
    finetune: FinetuneSettings
    scenes: SceneSettings
    shards: ShardSettings
    budgets_minutes: tuple[float, ...]
    seeds: tuple[int, ...]


def demo() -> ScaleSettings:
    """Two cores, minutes: shows that every part works, too short for a conclusion."""
    audio = AudioEncoderSettings(network=RESNET_CONFORMER_PRESETS["demo"])
    visual = VISUAL_ENCODER_PRESETS["demo"]
    doa_wise = PretrainSettings(
        objective="doa_wise",
        steps=200,
        batch_size=32,
        window_s=2.0,
        frame_count=3,
        crop_px=16,
        audio=audio,
        visual=visual,
        projection=ProjectionSettings(embedding_dim=visual.embedding_dim, hidden_dim=128),
        report_every=20,
        state_every=100,
    )
    grid = DirectionSettings(sampling="grid")
    return ScaleSettings(
        name="demo",
        doa_wise=doa_wise,
        recording_wise=replace(doa_wise, objective="recording_wise", directions=grid),
        avc=replace(doa_wise, objective="avc"),
        finetune=FinetuneSettings(steps=150, audio=audio, report_every=20),
        scenes=SceneSettings(
            unannotated=PartSettings(minutes=12, rooms=8),
            train=PartSettings(minutes=8, rooms=5),
            test=PartSettings(minutes=4, rooms=4),
            picture=PictureSettings(height_px=64, width_px=128, frame_rate_hz=5),
        ),
        shards=ShardSettings(clip_s=5.0, frame_rate_hz=5.0),
        budgets_minutes=(1.5, 6.0),
        seeds=(0, 1),
    )


SCALES = {"demo": demo}


def find_scale(name: str) -> ScaleSettings:
    """The settings of a scale."""
    if name not in SCALES:
        raise InputError("command line", "--scale", name, f"one of {', '.join(SCALES)}")
    return SCALES[name]()

"""The sizes a study can be run at: the same code with other settings.

Nothing here is the paper's but what its authors published (the networks at ``paper`` size as
commonly rebuilt, 100 hours); every other value is a choice of this project.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from seld.decoding import ShardSettings
from seld.errors import InputError
from seld.geometry import DoaGrid
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
        steps=300,
        batch_size=32,
        window_s=2.0,
        frame_count=3,
        crop_px=16,
        audio=audio,
        visual=visual,
        projection=ProjectionSettings(embedding_dim=visual.embedding_dim, hidden_dim=128),
        report_every=20,
        state_every=150,
    )
    return ScaleSettings(
        name="demo",
        doa_wise=doa_wise,
        recording_wise=on_grid(doa_wise, "recording_wise", count=8),
        avc=on_grid(doa_wise, "avc", count=8),
        finetune=FinetuneSettings(steps=200, audio=audio, report_every=20, state_every=100),
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


def evidence() -> ScaleSettings:
    """Two cores, hours: long enough to learn, small enough for five seeds."""
    base = demo()
    doa_wise = replace(
        base.doa_wise,
        steps=5000,
        batch_size=64,
        warmup_steps=200,
        report_every=100,
        state_every=500,
    )
    finetune = replace(base.finetune, steps=1500, report_every=100, state_every=500)
    return replace(
        base,
        name="evidence",
        doa_wise=doa_wise,
        recording_wise=on_grid(doa_wise, "recording_wise", count=8),
        avc=on_grid(doa_wise, "avc", count=8),
        finetune=finetune,
        scenes=SceneSettings(
            unannotated=PartSettings(minutes=120, rooms=40),
            train=PartSettings(minutes=24, rooms=15),
            test=PartSettings(minutes=12, rooms=12),
            picture=base.scenes.picture,
        ),
        budgets_minutes=(2.0, 5.0, 18.0),
        seeds=(0, 1, 2, 3, 4),
    )


def small() -> ScaleSettings:
    """One GPU, about an hour per pretraining: ten hours of pictures at twice the resolution."""
    base = evidence()
    audio = AudioEncoderSettings(network=RESNET_CONFORMER_PRESETS["small"])
    visual = VISUAL_ENCODER_PRESETS["small"]
    doa_wise = replace(
        base.doa_wise,
        steps=20_000,
        batch_size=128,
        frame_count=5,
        crop_px=32,
        audio=audio,
        visual=visual,
        projection=ProjectionSettings(embedding_dim=visual.embedding_dim),
        warmup_steps=500,
        report_every=200,
        state_every=1000,
    )
    return replace(
        base,
        name="small",
        doa_wise=doa_wise,
        recording_wise=on_grid(doa_wise, "recording_wise", count=16),
        avc=on_grid(doa_wise, "avc", count=16),
        finetune=replace(base.finetune, steps=8000, batch_size=32, audio=audio),
        scenes=SceneSettings(
            unannotated=PartSettings(minutes=600, rooms=120),
            train=PartSettings(minutes=120, rooms=40),
            test=PartSettings(minutes=60, rooms=30),
            picture=PictureSettings(height_px=128, width_px=256, frame_rate_hz=5),
        ),
        shards=ShardSettings(
            clip_s=10.0, frame_rate_hz=5.0, frame_height_px=128, frame_width_px=256
        ),
        budgets_minutes=(5.0, 20.0, 90.0),
    )


def paper() -> ScaleSettings:
    """Many GPUs, 100 hours: R(2+1)D-18 on 112×112 crops and the full ResNet-Conformer.

    Optimiser and temperature follow AVSpatialAlignment, the nearest public recipe (Adam 1e-4,
    weight decay 1e-5, τ 0.07, 128 dimensions); what the paper used is not public. Pictures of
    256×512 px give a 90° crop its 112 px; windows and steps are choices of this project.
    """
    base = small()
    audio = AudioEncoderSettings(network=RESNET_CONFORMER_PRESETS["paper"])
    doa_wise = replace(
        base.doa_wise,
        steps=100_000,
        batch_size=32,
        frame_count=8,
        crop_px=112,
        field_of_view_deg=90.0,
        audio=audio,
        visual=VISUAL_ENCODER_PRESETS["paper"],
        projection=ProjectionSettings(embedding_dim=128),
        temperature=0.07,
        learning_rate=1e-4,
        weight_decay=1e-5,
        warmup_steps=1000,
    )
    return replace(
        base,
        name="paper",
        doa_wise=doa_wise,
        recording_wise=on_grid(doa_wise, "recording_wise", count=16),
        avc=on_grid(doa_wise, "avc", count=16),
        finetune=replace(
            base.finetune, steps=40_000, audio=audio, learning_rate=1e-4, encoder_rate=1.0
        ),
        scenes=SceneSettings(
            unannotated=PartSettings(minutes=6000, rooms=600),
            train=PartSettings(minutes=1200, rooms=60),
            test=PartSettings(minutes=240, rooms=40),
            picture=PictureSettings(height_px=256, width_px=512, frame_rate_hz=8),
        ),
        shards=ShardSettings(
            clip_s=10.0,
            frame_rate_hz=8.0,
            frame_height_px=256,
            frame_width_px=512,
            frame_encoding="jpeg",
        ),
        budgets_minutes=(60.0, 240.0, 900.0),
    )


def on_grid(
    recipe: PretrainSettings, objective: Literal["recording_wise", "avc"], *, count: int
) -> PretrainSettings:
    """The recipe for an objective that looks at the whole sphere: a fixed grid of wide crops."""
    grid = DoaGrid(kind="fibonacci", count=count)
    return replace(
        recipe,
        objective=objective,
        directions=DirectionSettings(sampling="grid", grid=grid, weighting="uniform"),
        field_of_view_deg=90.0,
    )


SCALES = {"demo": demo, "evidence": evidence, "small": small, "paper": paper}


def find_scale(name: str) -> ScaleSettings:
    """The settings of a scale."""
    if name not in SCALES:
        raise InputError("command line", "--scale", name, f"one of {', '.join(SCALES)}")
    return SCALES[name]()

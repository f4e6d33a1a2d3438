"""The sizes a study can be run at: the same code with other settings.

Recipes of training are in :mod:`trainables.presets`; here is what they are run on and how often.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from seld.decoding import ShardSettings
from seld.errors import InputError
from seld.scenes.settings import PartSettings, PictureSettings, SceneSettings
from trainables.finetune import FinetuneSettings
from trainables.presets import RECIPES, Recipe
from trainables.pretrain import PretrainSettings

ScaleName = Literal["demo", "evidence", "small", "paper"]


@dataclass(frozen=True, kw_only=True)
class ScaleSettings:
    """Everything that grows with the machine.

    Attributes:
        recipe: how each objective is pretrained, and how every arm is fine-tuned.
        scenes: the embedded benchmark, for who has no corpus.
        shards: form of the clips.
        budgets_minutes, seeds: of a study that says nothing else.
        finetune_steps: by budget, where the recipe's are more than scratch needs to level off.
    """

    name: ScaleName
    recipe: Recipe
    scenes: SceneSettings
    shards: ShardSettings
    budgets_minutes: tuple[float, ...]
    seeds: tuple[int, ...]
    finetune_steps: Mapping[float, int] = field(default_factory=dict)

    @property
    def doa_wise(self) -> PretrainSettings:
        """The recipe's."""
        return self.recipe.doa_wise

    @property
    def recording_wise(self) -> PretrainSettings:
        """The recipe's, with rotated negatives."""
        return self.recipe.recording_wise

    @property
    def avc(self) -> PretrainSettings:
        """The recipe's."""
        return self.recipe.avc

    @property
    def finetune(self) -> FinetuneSettings:
        """The recipe's, the same for every arm."""
        return self.recipe.finetune


def demo() -> ScaleSettings:
    """Two cores, minutes: shows that every part works, too short for a conclusion."""
    return ScaleSettings(
        name="demo",
        recipe=RECIPES["demo"](),
        scenes=SceneSettings(
            unannotated=PartSettings(minutes=15, rooms=8),
            train=PartSettings(minutes=8, rooms=5),
            test=PartSettings(minutes=4, rooms=4),
            picture=PictureSettings(height_px=64, width_px=128, frame_rate_hz=5),
        ),
        shards=ShardSettings(clip_s=10.0, frame_rate_hz=5.0),
        budgets_minutes=(1.5, 6.0),
        seeds=(0, 1),
    )


def evidence() -> ScaleSettings:
    """Two cores, hours: long enough to learn, small enough for five seeds."""
    return ScaleSettings(
        name="evidence",
        recipe=RECIPES["evidence"](),
        scenes=SceneSettings(
            # 3500 steps hear two hours sixty times, and learn them by heart.
            unannotated=PartSettings(minutes=360, rooms=120),
            # Scratch must train the longer the more it is given: 4500 steps with 18 minutes.
            train=PartSettings(minutes=8, rooms=15),
            test=PartSettings(minutes=12, rooms=12),
            picture=PictureSettings(height_px=64, width_px=128, frame_rate_hz=5),
        ),
        shards=ShardSettings(clip_s=10.0, frame_rate_hz=5.0),
        # A few and all that validation rooms leave.
        budgets_minutes=(2.0, 6.0),
        seeds=(0, 1, 2, 3, 4),
        # On validation rooms, scratch is level from 1500 steps.
        finetune_steps={2.0: 1500},
    )


def small() -> ScaleSettings:
    """One GPU: thirty hours of pictures at twice the resolution."""
    return ScaleSettings(
        name="small",
        recipe=RECIPES["small"](),
        scenes=SceneSettings(
            unannotated=PartSettings(minutes=1800, rooms=360),
            train=PartSettings(minutes=120, rooms=40),
            test=PartSettings(minutes=60, rooms=30),
            picture=PictureSettings(height_px=128, width_px=256, frame_rate_hz=5),
        ),
        shards=ShardSettings(
            clip_s=10.0,
            frame_rate_hz=5.0,
            frame_height_px=128,
            frame_width_px=256,
            # Raw, all of YT-360 (246 hours) would take 606 GB instead of 230.
            frame_encoding="jpeg",
        ),
        budgets_minutes=(5.0, 20.0, 90.0),
        seeds=(0, 1, 2, 3, 4),
    )


def paper() -> ScaleSettings:
    """Many GPUs, 100 hours. Pictures of 256×512 px have 92 px across a crop of 65°."""
    return ScaleSettings(
        name="paper",
        recipe=RECIPES["paper"](),
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
        seeds=(0, 1, 2),
    )


SCALES = {"demo": demo, "evidence": evidence, "small": small, "paper": paper}


def find_scale(name: str) -> ScaleSettings:
    """The settings of a scale."""
    if name not in SCALES:
        raise InputError("command line", "--scale", name, f"one of {', '.join(SCALES)}")
    return SCALES[name]()

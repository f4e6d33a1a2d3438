"""The visual encoder: one embedding per perspective clip, by R(2+1)D (Tran et al., CVPR 2018).

Torchvision has the paper's size and its weights, and takes longer to import than a small network to
build; it is imported only for that size.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from seld.errors import InputError, first_line

#: Mean and deviation of RGB in [0, 1] that torchvision's Kinetics-400 weights were trained with.
RGB_MEAN = (0.43216, 0.394666, 0.37645)
RGB_DEVIATION = (0.22803, 0.22145, 0.216989)


@dataclass(frozen=True, kw_only=True)
class VisualEncoderSettings:
    """Widths of the stages; the defaults are torchvision's ``r2plus1d_18``, the ``paper`` size.

    ``weights`` is ``none``, ``kinetics400`` (downloaded by torchvision) or the path of a local
    ``r2plus1d_18`` state dict; the latter two need the default widths and blocks.
    """

    stem_channels: int = 64
    stage_channels: tuple[int, ...] = (64, 128, 256, 512)
    stage_blocks: tuple[int, ...] = (2, 2, 2, 2)
    #: Downsampling of the picture in the stem and at the start of each stage.
    stem_stride: int = 2
    stage_strides: tuple[int, ...] = (1, 2, 2, 2)
    #: Downsample time with the picture in the stages; clips of 3 frames have none to spare.
    time_stride: bool = True
    embedding_dim: int = 128
    weights: str = "none"

    def __post_init__(self) -> None:
        stages = max(len(self.stage_channels), 1)
        for name in ("stage_channels", "stage_blocks", "stage_strides"):
            values = getattr(self, name)
            if len(values) != stages or min(values) < 1:
                raise InputError(
                    "visual encoder", name, values, f"{stages} positive whole numbers, one a stage"
                )
        for name in ("stem_channels", "stem_stride", "embedding_dim"):
            if getattr(self, name) < 1:
                raise InputError("visual encoder", name, getattr(self, name), "at least 1")
        if self.weights != "none" and not self.is_torchvision_size:
            raise InputError(
                "visual encoder",
                "weights",
                self.weights,
                "none, since only the paper size (r2plus1d_18) has pretrained weights",
            )

    @property
    def is_torchvision_size(self) -> bool:
        """Whether this is torchvision's own ``r2plus1d_18``."""
        return (
            self.stem_channels == 64
            and self.stage_channels == (64, 128, 256, 512)
            and self.stage_blocks == (2, 2, 2, 2)
            and self.stem_stride == 2
            and self.stage_strides == (1, 2, 2, 2)
            and self.time_stride
        )


VISUAL_ENCODER_PRESETS: dict[str, VisualEncoderSettings] = {
    # For crops from 16×16: full resolution in the stem only, where most of the time would go.
    "demo": VisualEncoderSettings(
        stem_channels=16,
        stage_channels=(32, 64),
        stage_blocks=(1, 1),
        stem_stride=1,
        stage_strides=(2, 2),
        time_stride=False,
        embedding_dim=64,
    ),
    # For crops from 32×32.
    "small": VisualEncoderSettings(
        stem_channels=24,
        stage_channels=(48, 96, 192),
        stage_blocks=(1, 1, 1),
        stem_stride=2,
        stage_strides=(1, 2, 2),
        time_stride=False,
        embedding_dim=128,
    ),
    "paper": VisualEncoderSettings(),
}


class VisualEncoder(nn.Module):
    """Clips (batch, 3, time, height, width), float in [0, 1] → (batch, embedding)."""

    rgb_mean: Tensor
    rgb_deviation: Tensor

    def __init__(self, settings: VisualEncoderSettings) -> None:
        super().__init__()
        self.settings = settings
        self.register_buffer("rgb_mean", torch.tensor(RGB_MEAN).view(3, 1, 1, 1), persistent=False)
        self.register_buffer(
            "rgb_deviation", torch.tensor(RGB_DEVIATION).view(3, 1, 1, 1), persistent=False
        )
        if settings.is_torchvision_size:
            self.trunk: nn.Module = _torchvision_trunk(settings.weights)
        else:
            self.trunk = NarrowR2Plus1D(settings)
        self.embed = nn.Linear(settings.stage_channels[-1], settings.embedding_dim)

    def forward(self, clips: Tensor) -> Tensor:
        """Embed each clip by itself."""
        clips = (clips - self.rgb_mean) / self.rgb_deviation
        return self.embed(self.trunk(clips.contiguous(memory_format=torch.channels_last_3d)))


class NarrowR2Plus1D(nn.Module):
    """R(2+1)D of any width: clips → (batch, last channels)."""

    def __init__(self, settings: VisualEncoderSettings) -> None:
        super().__init__()
        channels = settings.stem_channels
        stride = settings.stem_stride
        self.stem = nn.Sequential(
            nn.Conv3d(3, channels, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False),
            nn.BatchNorm3d(channels),
            nn.ReLU(inplace=True),
            nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0), bias=False),
            nn.BatchNorm3d(channels),
            nn.ReLU(inplace=True),
        )
        blocks: list[nn.Module] = []
        stages = zip(
            settings.stage_channels, settings.stage_blocks, settings.stage_strides, strict=True
        )
        for width, depth, stage_stride in stages:
            for index in range(depth):
                stride = stage_stride if index == 0 else 1
                time_stride = stride if settings.time_stride else 1
                blocks.append(ResidualBlock(channels, width, stride, time_stride))
                channels = width
        self.blocks = nn.Sequential(*blocks)

    def forward(self, clips: Tensor) -> Tensor:
        """(batch, 3, time, height, width) → (batch, channels)."""
        return self.blocks(self.stem(clips)).mean((2, 3, 4))


class ResidualBlock(nn.Module):
    """Two convolutions over the picture and then over time, and a shortcut past them.

    Its weights have the names and shapes of torchvision's ``BasicBlock`` of ``Conv2Plus1D``, which
    always downsamples time with the picture.
    """

    def __init__(self, channels: int, width: int, stride: int, time_stride: int) -> None:
        super().__init__()
        # As many weights as one 3×3×3 convolution would have.
        between = channels * width * 27 // (channels * 9 + width * 3)
        self.conv1 = nn.Sequential(
            _space_then_time(channels, between, width, stride, time_stride),
            nn.BatchNorm3d(width),
            nn.ReLU(inplace=True),
        )
        self.conv2 = nn.Sequential(
            _space_then_time(width, between, width, 1, 1), nn.BatchNorm3d(width)
        )
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            strides = (time_stride, stride, stride)
            self.downsample = nn.Sequential(
                nn.Conv3d(channels, width, 1, strides, bias=False), nn.BatchNorm3d(width)
            )

    def forward(self, clips: Tensor) -> Tensor:
        """(batch, channels, time, height, width) → (batch, width, fewer of all three)."""
        return self.relu(self.conv2(self.conv1(clips)) + self.downsample(clips))


def _space_then_time(
    channels: int, between: int, width: int, stride: int, time_stride: int
) -> nn.Sequential:
    """A 3×3×3 convolution in two: R(2+1)D's idea."""
    return nn.Sequential(
        nn.Conv3d(channels, between, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False),
        nn.BatchNorm3d(between),
        nn.ReLU(inplace=True),
        nn.Conv3d(between, width, (3, 1, 1), (time_stride, 1, 1), (1, 0, 0), bias=False),
    )


def _torchvision_trunk(weights: str) -> nn.Module:
    from torchvision.models.video import R2Plus1D_18_Weights, r2plus1d_18

    wanted = R2Plus1D_18_Weights.KINETICS400_V1 if weights == "kinetics400" else None
    try:
        trunk = r2plus1d_18(weights=wanted)
    except OSError as error:  # URLError among them
        raise InputError(
            "visual encoder",
            "weights",
            weights,
            f"a local file of them, as they cannot be downloaded here ({error})",
        ) from error
    if weights not in ("none", "kinetics400"):
        _load_local(trunk, Path(weights))
    trunk.fc = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    return trunk


def _load_local(trunk: nn.Module, path: Path) -> None:
    if not path.is_file():
        raise InputError("visual encoder", "weights", str(path), "none, kinetics400 or a file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        found = first_line(error)
        raise InputError(path, "content", found, "r2plus1d_18's state dict") from error
    try:
        trunk.load_state_dict(state)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise InputError(path, "state dict", first_line(error), "r2plus1d_18's") from error

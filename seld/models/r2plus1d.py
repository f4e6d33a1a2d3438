"""The visual encoder: one embedding per perspective clip, by R(2+1)D (Tran et al., CVPR 2018)."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models.video import R2Plus1D_18_Weights, r2plus1d_18
from torchvision.models.video.resnet import BasicBlock, Conv2Plus1D

from seld.errors import InputError
from seld.models.visual_settings import VisualEncoderSettings

#: Mean and deviation of RGB in [0, 1] that torchvision's Kinetics-400 weights were trained with.
RGB_MEAN = (0.43216, 0.394666, 0.37645)
RGB_DEVIATION = (0.22803, 0.22145, 0.216989)


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
    """R(2+1)D of any width from torchvision's own blocks: clips → (batch, last channels)."""

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
        make_convolution = Conv2Plus1D if settings.time_stride else _SpatialStrideConv2Plus1D
        blocks: list[nn.Module] = []
        stages = zip(
            settings.stage_channels, settings.stage_blocks, settings.stage_strides, strict=True
        )
        for width, depth, stage_stride in stages:
            for index in range(depth):
                stride = stage_stride if index == 0 else 1
                blocks.append(_block(channels, width, stride, make_convolution))
                channels = width
        self.blocks = nn.Sequential(*blocks)

    def forward(self, clips: Tensor) -> Tensor:
        """(batch, 3, time, height, width) → (batch, channels)."""
        return self.blocks(self.stem(clips)).mean((2, 3, 4))


class _SpatialStrideConv2Plus1D(Conv2Plus1D):
    """Torchvision's factorised convolution, striding over the picture but not over time."""

    def __init__(self, in_planes: int, out_planes: int, midplanes: int, stride: int = 1) -> None:
        super().__init__(in_planes, out_planes, midplanes, stride)
        self[3] = nn.Conv3d(midplanes, out_planes, (3, 1, 1), padding=(1, 0, 0), bias=False)

    @staticmethod
    def get_downsample_stride(stride: int) -> tuple[int, int, int]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return 1, stride, stride


def _block(
    channels: int, width: int, stride: int, make_convolution: type[Conv2Plus1D]
) -> BasicBlock:
    shortcut = None
    if stride != 1 or channels != width:
        shortcut = nn.Sequential(
            nn.Conv3d(
                channels, width, 1, make_convolution.get_downsample_stride(stride), bias=False
            ),
            nn.BatchNorm3d(width),
        )
    return BasicBlock(channels, width, make_convolution, stride, shortcut)


def _torchvision_trunk(weights: str) -> nn.Module:
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
        found = str(error).splitlines()[0]
        raise InputError(path, "content", found, "r2plus1d_18's state dict") from error
    try:
        trunk.load_state_dict(state)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise InputError(path, "state dict", str(error).splitlines()[0], "r2plus1d_18's") from error

"""The audio encoder: FOA features → ResNet → Conformer → one latent vector per 100 ms label.

The ``paper`` size is the ResNet-Conformer as commonly rebuilt from DCASE 2022 systems; its exact
figures in the paper are not public. ``demo`` and ``small`` are [ours]: the same blocks, narrower,
and pooled before the first residual block instead of after (``small`` in frequency alone, in time
before the second stage), because on a CPU the full-resolution maps cost more than everything
behind them.

Nothing depends on the length of the input: attention positions are rotary (relative), and all
else is convolution or pooling.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seld.ambisonics import (
    FEATURE_CHANNELS,
    INTENSITY_CHANNELS,
    LOG_MEL_CHANNELS,
    FeatureSettings,
    FoaFeatures,
)
from seld.clips import LABEL_FRAME_S, SAMPLE_RATE_HZ
from seld.errors import InputError

#: Feature frames (20 ms) in one label frame (100 ms).
FRAMES_PER_LABEL = 5


@dataclass(frozen=True, kw_only=True)
class ResNetConformerSettings:
    """Widths and depths; the defaults are the ``paper`` size.

    ``time_pooling`` and ``frequency_pooling`` are the max-pooling factors before each ResNet
    stage. What ``time_pooling`` leaves of the five frames per label is pooled after the Conformer.
    """

    stage_channels: tuple[int, ...] = (24, 48, 96, 192)
    stage_blocks: tuple[int, ...] = (2, 2, 2, 2)
    time_pooling: tuple[int, ...] = (1, 1, 1, 1)
    frequency_pooling: tuple[int, ...] = (1, 4, 4, 2)
    dim: int = 256
    conformer_blocks: int = 8
    attention_heads: int = 8
    feedforward_factor: int = 2
    convolution_kernel: int = 7
    dropout: float = 0.1
    positions: Literal["rotary", "none"] = "rotary"
    #: The first stage also gets the intensity vector averaged over what is pooled before it. The
    #: few filters of a narrow stem, drawn at random and max-pooled, may all but miss one axis, and
    #: elevations, which spread least, are then not learnt. [ours], LOG.md, 2026-11-26.
    mean_intensity: bool = False
    #: ``batch`` is the literature's. ``weight`` standardises weights instead of activations
    #: (Brock et al., ICLR 2021): no batch statistics, hence the same gradients for any split of
    #: a batch over workers. [ours]
    normalisation: Literal["batch", "weight"] = "batch"

    def __post_init__(self) -> None:
        stages = len(self.stage_channels)
        for name in ("stage_channels", "stage_blocks", "time_pooling", "frequency_pooling"):
            values = getattr(self, name)
            if len(values) != stages or min(values, default=0) < 1:
                raise InputError(
                    "ResNet-Conformer", name, values, f"{max(stages, 1)} positive whole numbers"
                )
        if FRAMES_PER_LABEL % math.prod(self.time_pooling):
            raise InputError(
                "ResNet-Conformer",
                "time_pooling",
                self.time_pooling,
                f"factors whose product divides {FRAMES_PER_LABEL} frames per label",
            )
        for name in ("dim", "attention_heads", "feedforward_factor", "conformer_blocks"):
            if getattr(self, name) < 1:
                raise InputError("ResNet-Conformer", name, getattr(self, name), "at least 1")
        if self.dim % self.attention_heads or (self.dim // self.attention_heads) % 2:
            raise InputError(
                "ResNet-Conformer",
                "dim",
                self.dim,
                f"an even multiple of {self.attention_heads} heads",
            )
        if self.convolution_kernel < 1 or self.convolution_kernel % 2 == 0:
            raise InputError(
                "ResNet-Conformer", "convolution_kernel", self.convolution_kernel, "an odd number"
            )
        if not 0 <= self.dropout < 1:
            raise InputError("ResNet-Conformer", "dropout", self.dropout, "in [0, 1)")


RESNET_CONFORMER_PRESETS: dict[str, ResNetConformerSettings] = {
    "demo": ResNetConformerSettings(
        stage_channels=(16, 32, 64),
        stage_blocks=(1, 1, 1),
        time_pooling=(5, 1, 1),
        frequency_pooling=(4, 2, 2),
        dim=96,
        conformer_blocks=2,
        attention_heads=4,
        mean_intensity=True,
    ),
    "small": ResNetConformerSettings(
        stage_channels=(24, 48, 96),
        stage_blocks=(1, 1, 1),
        time_pooling=(1, 5, 1),
        frequency_pooling=(4, 2, 2),
        dim=160,
        conformer_blocks=3,
        attention_heads=5,
        mean_intensity=True,
    ),
    "paper": ResNetConformerSettings(),
}


@dataclass(frozen=True, kw_only=True)
class AudioEncoderSettings:
    """Features and network of the audio encoder."""

    features: FeatureSettings = field(default_factory=FeatureSettings)
    network: ResNetConformerSettings = field(default_factory=ResNetConformerSettings)

    def __post_init__(self) -> None:
        # Shards hold sound of one rate, and a label frame is this many feature frames: others
        # would be taken for sound of another speed.
        rates = {
            "sample_rate_hz": SAMPLE_RATE_HZ,
            "hop_size": round(SAMPLE_RATE_HZ * LABEL_FRAME_S / FRAMES_PER_LABEL),
        }
        for name, expected in rates.items():
            if getattr(self.features, name) != expected:
                raise InputError(
                    "audio encoder", f"features.{name}", getattr(self.features, name), str(expected)
                )


class AudioEncoder(nn.Module):
    """Waveform → latents at label frames.

    Features are normalised with fixed statistics rather than with a BatchNorm: they do not
    depend on the batch, so pretraining, fine-tuning and prediction see the same input, and so do
    one worker and several. The statistics are those of ordinary recordings, and travel in the state
    dict.
    """

    def __init__(self, settings: AudioEncoderSettings) -> None:
        super().__init__()
        self.settings = settings
        self.features = FoaFeatures(settings.features)
        self.normalisation = FeatureNormalisation(settings.features.mel_bands)
        self.network = ResNetConformer(settings.network, mel_bands=settings.features.mel_bands)

    @property
    def dim(self) -> int:
        """Width of the latents."""
        return self.settings.network.dim

    def forward(self, waveform: Tensor) -> Tensor:
        """(batch, 4, time) FOA, float of full scale 1 → (batch, label frame, dim)."""
        return self.network(self.normalised_features(waveform))

    def normalised_features(self, waveform: Tensor) -> Tensor:
        """(batch, 4, time) → (batch, 7, frame, mel), in float32 also under autocast."""
        with torch.autocast(waveform.device.type, enabled=False):
            return self.normalisation(self.features(waveform))


class FeatureNormalisation(nn.Module):
    """(features - mean) / deviation, per channel and mel band.

    The intensity vector is only scaled, by one factor per band for its three axes: its zero means
    "from nowhere", and its direction must survive.
    """

    #: Of single sounds with faint noise at ordinary recording levels.
    log_mel_mean = -4.0
    log_mel_deviation = 4.0
    intensity_deviation = 0.3

    mean: Tensor
    deviation: Tensor

    def __init__(self, mel_bands: int) -> None:
        super().__init__()
        mean = torch.zeros(FEATURE_CHANNELS, 1, mel_bands)
        mean[:LOG_MEL_CHANNELS] = self.log_mel_mean
        deviation = torch.full_like(mean, self.intensity_deviation)
        deviation[:LOG_MEL_CHANNELS] = self.log_mel_deviation
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)

    def forward(self, features: Tensor) -> Tensor:
        """(batch, 7, frame, mel) → the same shape."""
        return torch.addcmul(-self.mean / self.deviation, features, 1.0 / self.deviation)


class ResNetConformer(nn.Module):
    """Features (batch, 7, frame, mel) → latents (batch, frame // 5, dim)."""

    def __init__(self, settings: ResNetConformerSettings, *, mel_bands: int = 64) -> None:
        super().__init__()
        self.settings = settings
        frequency_reduction = math.prod(settings.frequency_pooling)
        if mel_bands // frequency_reduction < 1:
            raise InputError(
                "ResNet-Conformer",
                "frequency_pooling",
                settings.frequency_pooling,
                f"a product of at most {mel_bands} mel bands",
            )
        first = settings.stage_channels[0]
        self.stem = _convolution(settings, FEATURE_CHANNELS, first, kernel_size=3)
        self.stem_normalisation = _activation_norm(settings, first)
        self.stages = nn.ModuleList()
        channels = first + (INTENSITY_CHANNELS if settings.mean_intensity else 0)
        for width, depth in zip(settings.stage_channels, settings.stage_blocks, strict=True):
            stage = nn.Sequential()
            for _ in range(depth):
                stage.append(ResidualBlock(settings, channels, width))
                channels = width
            self.stages.append(stage)
        self.to_dim = nn.Sequential(
            _convolution(settings, channels, settings.dim, kernel_size=1),
            _activation_norm(settings, settings.dim),
        )
        self.flatten = nn.Linear(settings.dim * (mel_bands // frequency_reduction), settings.dim)
        self.conformer = nn.ModuleList(
            ConformerBlock(settings) for _ in range(settings.conformer_blocks)
        )

    def forward(self, features: Tensor) -> Tensor:
        """(batch, 7, frame, mel) → (batch, frame // 5, dim)."""
        settings = self.settings
        hidden = self.stem(features.contiguous(memory_format=torch.channels_last))
        # Max-pooling first: the same result where the normalisation's scale is positive, and the
        # full-resolution map is then touched twice less.
        pooling = zip(settings.time_pooling, settings.frequency_pooling, strict=True)
        for index, (stage, factors) in enumerate(zip(self.stages, pooling, strict=True)):
            if math.prod(factors) > 1:
                hidden = F.max_pool2d(hidden, factors)
            if index == 0:
                hidden = F.relu(self.stem_normalisation(hidden))
                if settings.mean_intensity:
                    intensity = F.avg_pool2d(features[:, LOG_MEL_CHANNELS:], factors)
                    hidden = torch.cat([hidden, intensity.to(hidden.dtype)], dim=1)
            hidden = stage(hidden)
        hidden = F.relu(self.to_dim(hidden))
        # The residual stream stays in float32 under autocast.
        latents = self.flatten(hidden.permute(0, 2, 1, 3).flatten(2)).float()
        for block in self.conformer:
            latents = block(latents)
        remaining = FRAMES_PER_LABEL // math.prod(settings.time_pooling)
        if remaining > 1:
            latents = F.max_pool1d(latents.transpose(1, 2), remaining).transpose(1, 2)
        return latents


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut (He et al., CVPR 2016)."""

    def __init__(self, settings: ResNetConformerSettings, channels: int, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            _convolution(settings, channels, width, kernel_size=3),
            _activation_norm(settings, width),
            nn.ReLU(),
            _convolution(settings, width, width, kernel_size=3),
            _activation_norm(settings, width),
        )
        self.shortcut: nn.Module = nn.Identity()
        if channels != width:
            self.shortcut = nn.Sequential(
                _convolution(settings, channels, width, kernel_size=1),
                _activation_norm(settings, width),
            )
        # Without activation statistics, a branch that starts at zero keeps the variance of deep
        # networks in bounds (SkipInit; De & Smith, NeurIPS 2020).
        self.branch_gain = (
            nn.Parameter(torch.zeros(())) if settings.normalisation == "weight" else None
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """(batch, channels, frame, band) → (batch, width, frame, band)."""
        branch = self.branch(hidden)
        if self.branch_gain is not None:
            branch = branch * self.branch_gain.to(branch.dtype)
        return F.relu(self.shortcut(hidden) + branch)


class ConformerBlock(nn.Module):
    """½ feed-forward, self-attention, convolution, ½ feed-forward (Gulati et al., 2020)."""

    def __init__(self, settings: ResNetConformerSettings) -> None:
        super().__init__()
        self.feedforward_in = _feedforward(settings)
        self.attention = SelfAttention(settings)
        self.convolution = ConvolutionModule(settings)
        self.feedforward_out = _feedforward(settings)
        self.norm = nn.LayerNorm(settings.dim)

    def forward(self, latents: Tensor) -> Tensor:
        """(batch, frame, dim) → the same shape."""
        latents = latents + self.feedforward_in(latents) / 2
        latents = latents + self.attention(latents)
        latents = latents + self.convolution(latents)
        latents = latents + self.feedforward_out(latents) / 2
        return self.norm(latents)


class SelfAttention(nn.Module):
    """Multi-head self-attention over frames with rotary positions (Su et al., 2021)."""

    def __init__(self, settings: ResNetConformerSettings) -> None:
        super().__init__()
        self.heads = settings.attention_heads
        self.rotary = settings.positions == "rotary"
        self.dropout = settings.dropout
        self.norm = nn.LayerNorm(settings.dim)
        self.query_key_value = nn.Linear(settings.dim, 3 * settings.dim)
        self.output = nn.Linear(settings.dim, settings.dim)

    def forward(self, latents: Tensor) -> Tensor:
        """(batch, frame, dim) → the same shape, without the residual."""
        batch, frames, dim = latents.shape
        projected = self.query_key_value(self.norm(latents))
        projected = projected.view(batch, frames, 3, self.heads, dim // self.heads)
        query, key, value = projected.permute(2, 0, 3, 1, 4)
        if self.rotary:
            query, key = _rotate_by_position(query), _rotate_by_position(key)
        attended = _attend(query, key, value)
        output = self.output(attended.transpose(1, 2).flatten(2))
        return F.dropout(output, self.dropout, self.training)


class ConvolutionModule(nn.Module):
    """Pointwise → GLU → depthwise over time → norm → SiLU → pointwise."""

    def __init__(self, settings: ResNetConformerSettings) -> None:
        super().__init__()
        dim, kernel = settings.dim, settings.convolution_kernel
        self.dropout = settings.dropout
        self.norm = nn.LayerNorm(dim)
        self.expand = nn.Linear(dim, 2 * dim)
        self.depthwise = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.depthwise_norm = (
            nn.BatchNorm1d(dim) if settings.normalisation == "batch" else nn.GroupNorm(1, dim)
        )
        self.project = nn.Linear(dim, dim)

    def forward(self, latents: Tensor) -> Tensor:
        """(batch, frame, dim) → the same shape, without the residual."""
        hidden = F.glu(self.expand(self.norm(latents)), dim=-1).transpose(1, 2)
        hidden = F.silu(self.depthwise_norm(self.depthwise(hidden))).transpose(1, 2)
        return F.dropout(self.project(hidden), self.dropout, self.training)


class WeightStandardisedConv2d(nn.Conv2d):
    """Convolution whose filters have zero mean and the variance that a ReLU network preserves.

    Brock et al., "Characterizing signal propagation to close the performance gap in unnormalized
    ResNets", ICLR 2021, equation 4, with a learnt gain per channel.
    """

    #: 1 / standard deviation of relu(standard normal).
    relu_gain = math.sqrt(2 / (1 - 1 / math.pi))

    def __init__(self, channels: int, width: int, kernel_size: int) -> None:
        super().__init__(channels, width, kernel_size, padding=kernel_size // 2)
        self.gain = nn.Parameter(torch.full((width, 1, 1, 1), self.relu_gain))

    def forward(self, input: Tensor) -> Tensor:
        """As :class:`torch.nn.Conv2d`."""
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), correction=0, keepdim=True)
        scale = torch.rsqrt(variance * self.weight[0].numel() + 1e-4) * self.gain
        weight = ((self.weight - mean) * scale).contiguous(memory_format=torch.channels_last)
        return F.conv2d(input, weight, self.bias, padding=self.padding)


def _convolution(
    settings: ResNetConformerSettings, channels: int, width: int, *, kernel_size: int
) -> nn.Conv2d:
    if settings.normalisation == "weight":
        return WeightStandardisedConv2d(channels, width, kernel_size)
    convolution = nn.Conv2d(channels, width, kernel_size, padding=kernel_size // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution.to(memory_format=torch.channels_last)


def _activation_norm(settings: ResNetConformerSettings, channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels) if settings.normalisation == "batch" else nn.Identity()


def _feedforward(settings: ResNetConformerSettings) -> nn.Sequential:
    hidden = settings.dim * settings.feedforward_factor
    return nn.Sequential(
        nn.LayerNorm(settings.dim),
        nn.Linear(settings.dim, hidden),
        nn.SiLU(),
        nn.Linear(hidden, settings.dim),
        nn.Dropout(settings.dropout),
    )


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Scaled dot-product attention over (batch, head, frame, head dim)."""
    if query.is_cuda:
        return F.scaled_dot_product_attention(query, key, value)
    # The fused kernel for CPUs takes up to six times as long in bfloat16 at these lengths.
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    return scores.softmax(-1).to(value.dtype) @ value


def _rotate_by_position(heads: Tensor) -> Tensor:
    """Turn pairs of dimensions of (batch, head, frame, head dim) by angles linear in the frame."""
    half = heads.shape[-1] // 2
    frame = torch.arange(heads.shape[-2], device=heads.device, dtype=torch.float32)
    rate = 10_000 ** (-torch.arange(half, device=heads.device, dtype=torch.float32) / half)
    angle = frame[:, None] * rate
    cosine, sine = angle.cos().to(heads.dtype), angle.sin().to(heads.dtype)
    first, second = heads[..., :half], heads[..., half:]
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], dim=-1)

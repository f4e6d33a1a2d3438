"""How large the visual encoder is; apart from it, as torchvision takes a second to import.

What plans, schedules or reports pretrainings names these settings and never builds the network.
"""

from __future__ import annotations

from dataclasses import dataclass

from seld.errors import InputError


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

"""The network that is fine-tuned, stored and used for prediction: audio encoder and SELD head."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from seld.errors import InputError
from seld.models.heads import OutputFormat, SeldHead
from seld.models.resnet_conformer import AudioEncoder, AudioEncoderSettings


@dataclass(frozen=True, kw_only=True)
class SeldNetworkSettings:
    """Everything needed to build the network again."""

    encoder: AudioEncoderSettings = field(default_factory=AudioEncoderSettings)
    class_count: int
    output_format: OutputFormat = "accdoa"

    def __post_init__(self) -> None:
        if self.class_count < 1:
            raise InputError("SELD network", "class_count", self.class_count, "at least 1")


class SeldNetwork(nn.Module):
    """Waveform (batch, 4, time) → ACCDOA (batch, label frame, [track,] class, 3)."""

    def __init__(self, settings: SeldNetworkSettings) -> None:
        super().__init__()
        self.settings = settings
        self.encoder = AudioEncoder(settings.encoder)
        self.head = SeldHead(self.encoder.dim, settings.class_count, settings.output_format)

    def forward(self, waveform: Tensor) -> Tensor:
        """FOA (batch, 4, time) → (batch, label frame, [track,] class, 3), see :class:`SeldHead`."""
        return self.head(self.encoder(waveform))

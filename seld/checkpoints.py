"""Networks as safetensors files: a pretrained audio encoder, or a fine-tuned SELD network.

Weights and settings are in one file, of a SELD network the class names as well.

Reading executes no code: the weights are plain arrays and everything else is JSON in the file's
metadata, read into checked settings.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from seld.errors import InputError
from seld.models.resnet_conformer import AudioEncoder, AudioEncoderSettings
from seld.models.seld_network import SeldNetwork, SeldNetworkSettings
from seld.settings import from_mapping, to_mapping
from seld.storage import written_whole

NETWORK_FORMAT = "seld-network"
ENCODER_FORMAT = "seld-audio-encoder"
FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A network in evaluation mode on the CPU, and the names of its classes in label order."""

    network: SeldNetwork
    class_names: tuple[str, ...]


def save_checkpoint(path: str | Path, network: SeldNetwork, *, class_names: Sequence[str]) -> None:
    """Write ``network`` so that a reader sees the old file or the whole new one.

    Raises:
        InputError: if the number of names is not the network's number of classes.
    """
    path = Path(path)
    _check_names(path, class_names, network.settings)
    metadata = {
        "format": NETWORK_FORMAT,
        "settings": json.dumps(to_mapping(network.settings)),
        "class_names": json.dumps(list(class_names)),
    }
    _write(path, network.state_dict(), metadata)


def load_checkpoint(path: str | Path, *, class_names: Sequence[str] | None = None) -> Checkpoint:
    """Build the stored network.

    Args:
        path: a file of :func:`save_checkpoint`.
        class_names: names the caller relies on; other names in the file are an error.

    Raises:
        InputError: says what is missing, unknown or does not fit.
    """
    path = Path(path)
    weights, metadata = _read(path, NETWORK_FORMAT)
    mapping = _from_json(path, metadata, "settings", dict)
    if "class_count" not in mapping:
        raise InputError(path, "metadata.settings", "no class_count", "a SELD network's settings")
    settings = from_mapping(SeldNetworkSettings, mapping, str(path))
    names = _from_json(path, metadata, "class_names", list)
    _check_names(path, names, settings)
    if class_names is not None and list(class_names) != names:
        raise InputError(path, "class names", ", ".join(names), ", ".join(class_names))
    network = SeldNetwork(settings)
    _check_weights(path, weights, network.state_dict())
    network.load_state_dict(weights)
    return Checkpoint(network=network.eval(), class_names=tuple(names))


def save_audio_encoder(
    path: str | Path, weights: Mapping[str, Tensor], settings: AudioEncoderSettings
) -> None:
    """Write an encoder's state dict with the settings that it belongs to."""
    metadata = {"format": ENCODER_FORMAT, "settings": json.dumps(to_mapping(settings))}
    _write(Path(path), weights, metadata)


def load_audio_encoder(path: str | Path) -> AudioEncoder:
    """The stored encoder, in evaluation mode on the CPU.

    Args:
        path: a file of :func:`save_audio_encoder`, such as a pretraining leaves.

    Raises:
        InputError: says what is missing, unknown or does not fit.
    """
    path = Path(path)
    weights, metadata = _read(path, ENCODER_FORMAT)
    mapping = _from_json(path, metadata, "settings", dict)
    encoder = AudioEncoder(from_mapping(AudioEncoderSettings, mapping, str(path)))
    _check_weights(path, weights, encoder.state_dict())
    encoder.load_state_dict(weights)
    return encoder.eval()


def _write(path: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    content = save(plain, {**metadata, "format_version": str(FORMAT_VERSION)})
    with written_whole(str(path)) as temporary, temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _read(path: Path, file_format: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Weights and metadata of a file of this format."""
    if not path.is_file():
        raise InputError(path, "file", "missing", "a checkpoint (.safetensors)")
    try:
        with safe_open(path, framework="pt") as stored:
            metadata = stored.metadata() or {}
            weights = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise InputError(path, "content", str(error), "a whole safetensors file") from error
    if metadata.get("format") != file_format:
        raise InputError(path, "metadata.format", metadata.get("format"), repr(file_format))
    if metadata.get("format_version") != str(FORMAT_VERSION):
        found = metadata.get("format_version")
        raise InputError(path, "metadata.format_version", found, repr(str(FORMAT_VERSION)))
    return weights, metadata


def _from_json(path: Path, metadata: dict[str, str], key: str, kind: type) -> Any:
    try:
        value = json.loads(metadata.get(key, "null"))
    except json.JSONDecodeError as error:
        raise InputError(path, f"metadata.{key}", str(error), "JSON") from error
    if not isinstance(value, kind):
        raise InputError(path, f"metadata.{key}", value, f"a JSON {kind.__name__}")
    return value


def _check_names(path: Path, names: Sequence[str], settings: SeldNetworkSettings) -> None:
    if len(names) != settings.class_count or not all(isinstance(name, str) for name in names):
        raise InputError(path, "class names", list(names), f"{settings.class_count} names")


def _check_weights(path: Path, weights: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    missing, unknown = sorted(set(expected) - set(weights)), sorted(set(weights) - set(expected))
    if missing or unknown:
        problem = f"{len(missing)} missing, {len(unknown)} unknown ({(missing + unknown)[0]})"
        raise InputError(path, "weights", problem, "those that its settings ask for")
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape:
            shape, wanted = tuple(tensor.shape), tuple(expected[name].shape)
            raise InputError(path, f"shape of {name}", shape, f"{wanted} by its settings")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise InputError(path, name, "not finite", "finite weights")

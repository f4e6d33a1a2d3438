"""Checkpoints come back whole, execute nothing, and explain what does not fit."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from seld.checkpoints import (
    load_audio_encoder,
    load_checkpoint,
    save_audio_encoder,
    save_checkpoint,
)
from seld.errors import InputError
from seld.models.resnet_conformer import RESNET_CONFORMER_PRESETS, AudioEncoderSettings
from seld.models.seld_network import SeldNetwork, SeldNetworkSettings

NAMES = ("bell", "knock", "music")


@pytest.fixture(scope="module")
def network() -> SeldNetwork:
    torch.manual_seed(0)
    encoder = AudioEncoderSettings(network=RESNET_CONFORMER_PRESETS["demo"])
    settings = SeldNetworkSettings(encoder=encoder, class_count=3, output_format="multi_accdoa")
    return SeldNetwork(settings).eval()


@pytest.fixture
def stored(network: SeldNetwork, tmp_path: Path) -> Path:
    path = tmp_path / "network.safetensors"
    save_checkpoint(path, network, class_names=NAMES)
    return path


def rewrite(path: Path, *, metadata: dict[str, str], without: str | None = None, **changed) -> None:
    """The file again, with other metadata entries and tensors."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys() if name != without}  # noqa: SIM118
        save_file(tensors | changed, path, (file.metadata() or {}) | metadata)


def test_the_same_network_comes_back(network: SeldNetwork, stored: Path) -> None:
    network.encoder.normalisation.mean += 0.5  # buffers travel too
    save_checkpoint(stored, network, class_names=NAMES)
    checkpoint = load_checkpoint(stored, class_names=NAMES)
    assert checkpoint.class_names == NAMES
    assert checkpoint.network.settings == network.settings
    assert not checkpoint.network.training
    sound = torch.randn(2, 4, 24_000)
    with torch.no_grad():
        assert torch.equal(checkpoint.network(sound), network(sound))
    assert [path.name for path in stored.parent.iterdir()] == [stored.name]


def test_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    class Planted:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    path = tmp_path / "evil.safetensors"
    path.write_bytes(pickle.dumps(Planted()))
    with pytest.raises(InputError, match="safetensors"):
        load_checkpoint(path)
    assert not (tmp_path / "executed").exists()


def test_names_must_be_as_many_as_classes(network: SeldNetwork, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="3 names"):
        save_checkpoint(tmp_path / "x", network, class_names=NAMES[:2])


def test_other_class_names_are_named(stored: Path) -> None:
    with pytest.raises(InputError, match="bell, knock, music"):
        load_checkpoint(stored, class_names=("bell", "knock", "door"))


def test_missing_and_cut_files(stored: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="missing"):
        load_checkpoint(tmp_path / "nowhere")
    stored.write_bytes(stored.read_bytes()[:-100])
    with pytest.raises(InputError, match="whole safetensors"):
        load_checkpoint(stored)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"format": "other"}, "metadata.format"),
        ({"format_version": "99"}, "format_version"),
        ({"settings": "{"}, "JSON"),
        ({"settings": "{}"}, "class_count"),
        ({"settings": json.dumps({"class_count": 3, "clas": 1})}, "clas"),
        ({"class_names": json.dumps(["one"])}, "3 names"),
        ({"settings": json.dumps({"class_count": 3})}, "weights"),
    ],
)
def test_metadata_that_does_not_fit(stored: Path, metadata: dict[str, str], message: str) -> None:
    rewrite(stored, metadata=metadata)
    with pytest.raises(InputError, match=message):
        load_checkpoint(stored)


def test_weights_that_do_not_fit_are_named(stored: Path, network: SeldNetwork) -> None:
    bias = network.head.output.bias.detach()
    rewrite(stored, metadata={}, **{"head.output.bias": bias[:-1].clone()})
    with pytest.raises(InputError, match=r"head\.output\.bias"):
        load_checkpoint(stored)
    rewrite(stored, metadata={}, **{"head.output.bias": bias * torch.nan})
    with pytest.raises(InputError, match="finite"):
        load_checkpoint(stored)
    rewrite(stored, metadata={}, without="head.output.bias")
    with pytest.raises(InputError, match="1 missing"):
        load_checkpoint(stored)


def test_the_same_encoder_comes_back(network: SeldNetwork, tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    save_audio_encoder(path, network.encoder.state_dict(), network.settings.encoder)
    encoder = load_audio_encoder(path)
    assert encoder.settings == network.settings.encoder
    sound = torch.randn(2, 4, 24_000)
    with torch.no_grad():
        assert torch.equal(encoder(sound), network.encoder(sound))


def test_encoders_and_networks_are_told_apart(
    network: SeldNetwork, stored: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="expected 'seld-audio-encoder'"):
        load_audio_encoder(stored)
    path = tmp_path / "encoder.safetensors"
    save_audio_encoder(path, network.encoder.state_dict(), network.settings.encoder)
    with pytest.raises(InputError, match="expected 'seld-network'"):
        load_checkpoint(path)
    rewrite(path, metadata={"settings": json.dumps({"network": {"blocks": 99}})})
    with pytest.raises(InputError, match="blocks"):
        load_audio_encoder(path)

"""The fine-tuning loop: resumes bit for bit, turns targets with the sound, keeps the best state."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from seld.errors import InputError
from seld.geometry import channel_swaps
from seld.losses import adpit_loss
from seld.models.resnet_conformer import AudioEncoder
from seld.models.seld_network import SeldNetwork, SeldNetworkSettings
from seld.spatial_spectra import turned_features
from tests.sound_fields import encode, rotate
from tests.tiny_training import CLASSES, TINY_FINETUNE, Reports, finetune_batches
from trainables import finetune as finetune_module
from trainables.finetune import finetune, masked, seld_loss, turned_vectors
from trainables.steps import NonFiniteLossError


@pytest.mark.parametrize("output_format", ["accdoa", "multi_accdoa"])
def test_resumed_run_equals_uninterrupted_one_bit_for_bit(output_format: str, tmp_path) -> None:
    settings = dataclasses.replace(
        TINY_FINETUNE, output_format=output_format, validate_every=1, select_best=True
    )
    common = {"class_count": CLASSES, "encoder_state": None, "validate": drifting_validation}
    whole = Reports()
    expected = finetune(settings, finetune_batches(settings), report=whole, **common)
    torch.save(whole.states[2], tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    torch.rand(3)
    rest = Reports()
    resumed = finetune(settings, finetune_batches(settings, 2), report=rest, start=state, **common)
    assert rest.metrics == {step: whole.metrics[step] for step in (3, 4)}
    for key, tensor in expected.network.state_dict().items():
        assert torch.equal(resumed.network.state_dict()[key], tensor), key


def drifting_validation(network: SeldNetwork) -> dict[str, float]:
    assert not network.training
    return {"seld_error": network.head.output.weight.abs().sum().item()}


def test_best_state_is_kept_and_patience_stops() -> None:
    errors = iter([0.5, 0.3, 0.4, 0.6, 0.7, 0.8])
    settings = dataclasses.replace(
        TINY_FINETUNE, steps=6, validate_every=1, select_best=True, patience=2, state_every=1
    )
    seen: list[dict[str, torch.Tensor]] = []

    def validate(network: SeldNetwork) -> dict[str, float]:
        seen.append({key: value.clone() for key, value in network.state_dict().items()})
        return {"seld_error": next(errors)}

    reports = Reports()
    result = finetune(
        settings,
        finetune_batches(settings),
        class_count=CLASSES,
        encoder_state=None,
        report=reports,
        validate=validate,
    )
    assert result.best_step == 2
    assert len(seen) == 4
    for key, tensor in seen[1].items():
        assert torch.equal(result.network.state_dict()[key], tensor), key
    # A run killed after its last report goes on from a state before it, and stops there again.
    assert max(reports.states) == 3


def test_starts_from_the_pretrained_encoder() -> None:
    torch.manual_seed(9)
    encoder = AudioEncoder(TINY_FINETUNE.audio)
    settings = dataclasses.replace(TINY_FINETUNE, steps=1, encoder_rate=0.0, weight_decay=0.0)
    result = finetune(
        settings,
        finetune_batches(settings),
        class_count=CLASSES,
        encoder_state=encoder.state_dict(),
        report=Reports(),
    )
    for key, parameter in encoder.named_parameters():
        assert torch.equal(dict(result.network.encoder.named_parameters())[key], parameter), key


@pytest.mark.parametrize("swap", range(8))
def test_targets_turn_with_the_sound(swap: int) -> None:
    """A plane wave's intensity in the turned sound points where its turned target does."""
    matrix = channel_swaps().float()[swap]
    direction = torch.nn.functional.normalize(torch.tensor([0.3, -0.5, 0.4]), dim=0)
    foa = encode(torch.randn(4800, generator=torch.Generator().manual_seed(0)), direction)
    turned = rotate(foa, matrix)
    intensity = (turned[:1] * turned[[3, 1, 2]]).sum(1)
    expected = turned_vectors(direction[None], matrix[None])[0]
    assert torch.allclose(torch.nn.functional.normalize(intensity, dim=0), expected, atol=1e-4)


@pytest.mark.parametrize(("rotations", "swaps"), [("vertical", False), ("any", True)])
def test_sound_and_target_undergo_the_same_rotation(
    rotations: str, swaps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the network is shown and what it is asked for are turned alike, by a new turn a step."""
    settings = dataclasses.replace(TINY_FINETUNE, swaps=swaps, rotations=rotations)
    turned: dict[str, torch.Tensor] = {}

    def note_features(spectra: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
        turned["sound"] = matrices
        return turned_features(spectra, matrices)

    def note_vectors(vectors: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
        turned["target"] = matrices
        return turned_vectors(vectors, matrices)

    monkeypatch.setattr(finetune_module, "turned_features", note_features)
    monkeypatch.setattr(finetune_module, "turned_vectors", note_vectors)
    network = SeldNetwork(SeldNetworkSettings(encoder=TINY_FINETUNE.audio, class_count=CLASSES))
    batch = next(finetune_batches(settings))
    drawn = []
    for seed in (0, 1):
        seld_loss(network, batch, settings, torch.Generator().manual_seed(seed), "cpu")
        assert torch.equal(turned["sound"], turned["target"])
        drawn.append(turned["sound"])
    assert not torch.allclose(drawn[0], drawn[1])
    eye = torch.eye(3).expand(3, 3, 3)
    assert torch.allclose(drawn[0] @ drawn[0].transpose(1, 2), eye, atol=1e-5)
    if rotations == "vertical":
        assert torch.allclose(drawn[0][:, 2, 2], torch.ones(3))


def test_multi_accdoa_targets_turn_in_their_xyz_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the matrices that the sound is turned with; the activity before them stays."""
    given: dict[str, torch.Tensor] = {}

    def note_features(spectra: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
        given["matrices"] = matrices
        return turned_features(spectra, matrices)

    def note_target(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        given["target"] = target
        return adpit_loss(prediction, target)

    monkeypatch.setattr(finetune_module, "turned_features", note_features)
    monkeypatch.setattr(finetune_module, "adpit_loss", note_target)
    settings = dataclasses.replace(TINY_FINETUNE, output_format="multi_accdoa", rotations="any")
    network = SeldNetwork(
        SeldNetworkSettings(
            encoder=TINY_FINETUNE.audio, class_count=CLASSES, output_format="multi_accdoa"
        )
    )
    batch = next(finetune_batches(settings))
    seld_loss(network, batch, settings, torch.Generator().manual_seed(0), "cpu")
    activity, xyz = batch["target"].split([1, 3], dim=3)
    expected = torch.einsum("bij,bftjc->bftic", given["matrices"], xyz)
    assert not torch.allclose(expected, xyz, atol=0.1)
    assert torch.equal(given["target"][:, :, :, :1], activity)
    assert torch.allclose(given["target"][:, :, :, 1:], expected, atol=1e-6)


def test_masks_blank_one_stretch_of_bands_and_frames() -> None:
    features = torch.ones(6, 7, 20, 64)
    blanked = masked(features, TINY_FINETUNE, torch.Generator().manual_seed(1)) == 0
    for window in blanked:
        bands = window[0].all(dim=0).nonzero().flatten()
        frames = window[0].all(dim=1).nonzero().flatten()
        assert len(bands) <= 8
        assert len(frames) <= 4
        assert (bands.diff() == 1).all()
        assert (frames.diff() == 1).all()
        assert window[0].sum() == len(bands) * 20 + len(frames) * 64 - len(bands) * len(frames)
    assert blanked.any()


@pytest.mark.parametrize(("name", "axis"), [("mask_bands", 3), ("mask_frames", 2)])
def test_each_axis_is_masked_by_itself(name: str, axis: int) -> None:
    """At each width up to the widest, anywhere, and in each window at another place."""
    settings = dataclasses.replace(TINY_FINETUNE, **{"mask_bands": 0, "mask_frames": 0, name: 5})
    features = torch.ones(300, 7, 20, 64)
    blank = masked(features, settings, torch.Generator().manual_seed(1)) == 0
    stretches = blank.any(dim=5 - axis).all(dim=1)  # (window, band or frame)
    whole = stretches[:, None, None, :] if axis == 3 else stretches[:, None, :, None]
    assert torch.equal(blank, whole.expand_as(blank))
    assert set(stretches.sum(dim=1).tolist()) == {0, 1, 2, 3, 4, 5}
    assert stretches.any(dim=0).all()
    assert len({tuple(stretch) for stretch in stretches.tolist()}) > 50


@pytest.mark.parametrize(("bands", "frames"), [(8, 4), (0, 0)])
def test_the_network_is_shown_masked_features(bands: int, frames: int) -> None:
    settings = dataclasses.replace(TINY_FINETUNE, mask_bands=bands, mask_frames=frames)
    network = SeldNetwork(SeldNetworkSettings(encoder=TINY_FINETUNE.audio, class_count=CLASSES))
    shown: list[torch.Tensor] = []
    network.encoder.network.register_forward_pre_hook(lambda _, given: shown.append(given[0]))
    batch = next(finetune_batches(settings))
    for seed in range(5):
        seld_loss(network, batch, settings, torch.Generator().manual_seed(seed), "cpu")
    blank = torch.cat(shown) == 0  # (window, channel, frame, band)
    assert blank.all(dim=2).any() == (bands > 0)
    assert blank.all(dim=3).any() == (frames > 0)


def test_non_finite_loss_stops_before_the_step() -> None:
    batches = list(finetune_batches(TINY_FINETUNE))
    batches[1]["target"][0, 0, 0] = torch.inf
    with pytest.raises(NonFiniteLossError, match="step 1"):
        finetune(TINY_FINETUNE, batches, class_count=CLASSES, encoder_state=None, report=Reports())


def test_selecting_without_validation_is_refused() -> None:
    with pytest.raises(InputError, match="validate_every"):
        dataclasses.replace(TINY_FINETUNE, select_best=True)


@pytest.mark.parametrize("window_s", [2.07, 2.05, 0.07, 1e-9, 0.0, -0.4, math.inf, math.nan])
def test_windows_off_the_label_clock_are_refused(window_s: float) -> None:
    with pytest.raises(InputError, match=r"window_s is .*, expected a positive multiple of 0\.1 s"):
        dataclasses.replace(TINY_FINETUNE, window_s=window_s)


def test_windows_of_any_whole_number_of_label_frames_are_accepted() -> None:
    for frames in range(1, 200):
        dataclasses.replace(TINY_FINETUNE, window_s=frames / 10)
        dataclasses.replace(TINY_FINETUNE, window_s=frames * 0.1)

"""Shapes, lengths, precision and what each part of the networks promises."""

from __future__ import annotations

import dataclasses
import itertools
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import sph_harm_y
from torch import Tensor, nn
from torchvision.models.video import r2plus1d_18
from torchvision.models.video.resnet import BasicBlock, Conv2Plus1D

from seld.ambisonics import FeatureSettings
from seld.errors import InputError
from seld.geometry import unit_vectors
from seld.models.heads import (
    DirectionConditionedHead,
    GridProjectionHead,
    PooledProjectionHead,
    ProjectionSettings,
    SeldHead,
    real_spherical_harmonics,
)
from seld.models.r2plus1d import (
    VISUAL_ENCODER_PRESETS,
    ResidualBlock,
    VisualEncoder,
    VisualEncoderSettings,
)
from seld.models.resnet_conformer import (
    RESNET_CONFORMER_PRESETS,
    AudioEncoder,
    AudioEncoderSettings,
    ResNetConformer,
    ResNetConformerSettings,
    SelfAttention,
    _rotate_by_position,
)
from seld.settings import from_mapping, to_mapping
from tests.sound_fields import encode

DEMO = RESNET_CONFORMER_PRESETS["demo"]


def parameter_count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def features(frames: int, batch: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(batch, 7, frames, 64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("name", "fewest", "most"), [("demo", 2e5, 4.1e5), ("small", 8e5, 3e6), ("paper", 8e6, 12e6)]
)
def test_presets_have_their_size_and_any_length_goes_through(
    name: str, fewest: float, most: float
) -> None:
    network = ResNetConformer(RESNET_CONFORMER_PRESETS[name]).eval()
    assert fewest < parameter_count(network) < most
    with torch.no_grad():
        for frames in (5, 33, 100):
            latents = network(features(frames, batch=1))
            assert latents.shape == (1, frames // 5, network.settings.dim)
            assert torch.isfinite(latents).all()


@pytest.mark.parametrize("normalisation", ["batch", "weight"])
def test_every_parameter_is_trained_under_bfloat16(normalisation: str) -> None:
    settings = from_mapping(
        ResNetConformerSettings, to_mapping(DEMO) | {"normalisation": normalisation}, "test"
    )
    torch.manual_seed(0)
    network = ResNetConformer(settings)
    for name, parameter in network.named_parameters():
        if name.endswith("branch_gain"):
            torch.nn.init.constant_(parameter, 0.5)  # starts at 0, behind which nothing learns
    with torch.autocast("cpu", torch.bfloat16):
        latents = network(features(50))
    assert latents.dtype == torch.float32
    (latents * torch.randn_like(latents)).sum().backward()
    idle = [
        name
        for name, parameter in network.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    assert idle == []


def test_bfloat16_is_near_float32() -> None:
    torch.manual_seed(0)
    network = ResNetConformer(DEMO).eval()
    with torch.no_grad():
        exact = network(features(100))
        with torch.autocast("cpu", torch.bfloat16):
            rounded = network(features(100))
    assert F.cosine_similarity(exact, rounded, dim=-1).min() > 0.99


def test_float32_training_step_is_the_same_bit_for_bit() -> None:
    gradients = []
    for _ in range(2):
        torch.manual_seed(1)
        network = ResNetConformer(DEMO)
        network(features(50)).square().sum().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_weight_normalisation_makes_clips_independent_of_their_batch() -> None:
    torch.manual_seed(0)
    settings = dataclasses.replace(DEMO, normalisation="weight", dropout=0.0)
    network = ResNetConformer(settings).train()
    torch.testing.assert_close(
        network(features(50))[:1], network(features(50)[:1]), atol=1e-4, rtol=1e-4
    )


def test_rotary_positions_are_relative_and_make_order_matter() -> None:
    torch.manual_seed(0)
    latents = torch.randn(1, 6, DEMO.dim)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    blind = SelfAttention(dataclasses.replace(DEMO, positions="none")).eval()
    torch.testing.assert_close(blind(latents)[:, order], blind(latents[:, order]))
    rotary = SelfAttention(DEMO).eval()
    assert not torch.allclose(rotary(latents)[:, order], rotary(latents[:, order]), atol=1e-4)
    # One query and one key at all frames: their score depends on the distance alone.
    query, key = torch.randn(2, 1, 1, 1, 24).expand(2, 1, 1, 8, 24)
    scores = _rotate_by_position(query) @ _rotate_by_position(key).transpose(-1, -2)
    torch.testing.assert_close(scores[0, 0, :-1, :-1], scores[0, 0, 1:, 1:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"time_pooling": (2, 1, 1)}, "divides 5"),
        ({"stage_blocks": (1, 1)}, "stage_blocks"),
        ({"dim": 97}, "dim"),
        ({"convolution_kernel": 4}, "odd"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_impossible_settings_are_explained(changed: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_mapping(ResNetConformerSettings, to_mapping(DEMO) | changed, "test")


def test_audio_encoder_from_sound_to_latents() -> None:
    encoder = AudioEncoder(AudioEncoderSettings(network=DEMO)).eval()
    sound = torch.randn(2, 4, 48_000)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert encoder.normalised_features(sound).dtype == torch.float32
        assert encoder(sound).shape == (2, 20, encoder.dim)
    with pytest.raises(InputError, match=r"waveform is 'torch\.int16'"):
        encoder(sound.to(torch.int16))  # as clips hold it


@pytest.mark.parametrize("changed", [{"sample_rate_hz": 16_000}, {"hop_size": 240}])
def test_features_that_shards_and_labels_do_not_fit_are_refused(changed: dict[str, int]) -> None:
    (name,) = changed
    with pytest.raises(InputError, match=rf"audio encoder: features\.{name}"):
        AudioEncoderSettings(features=FeatureSettings(**changed))


@pytest.mark.parametrize("size", ["demo", "small"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_first_stage_hears_every_direction_alike_whatever_the_seed(
    seed: int, size: str
) -> None:
    torch.manual_seed(seed)
    encoder = AudioEncoder(AudioEncoderSettings(network=RESNET_CONFORMER_PRESETS[size])).eval()
    given: list[torch.Tensor] = []
    encoder.network.stages[0].register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    noise = torch.randn(1, 24_000, generator=torch.Generator().manual_seed(0))
    far_apart = unit_vectors([0.0, 130.0, -70.0, 20.0], [0.0, -40.0, 60.0, -85.0])
    directions = torch.as_tensor(far_apart, dtype=torch.float32)
    for direction in directions:
        with torch.no_grad():
            encoder(encode(noise, direction))
    heard = torch.stack([hidden[0, -3:].mean((1, 2)) for hidden in given])  # (direction, axis)
    lengths = heard.norm(dim=1)
    torch.testing.assert_close(heard / lengths[:, None], directions, rtol=0, atol=0.02)
    torch.testing.assert_close(lengths, lengths[:1].expand_as(lengths), rtol=0.05, atol=0)


# --- visual encoder -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("demo", (3, 3, 3, 16, 16)),
        ("demo", (2, 3, 8, 24, 24)),
        ("small", (2, 3, 4, 32, 32)),
        ("small", (2, 3, 5, 64, 64)),
        ("paper", (1, 3, 8, 56, 56)),
    ],
)
def test_clips_become_one_embedding_each(name: str, shape: tuple[int, ...]) -> None:
    encoder = VisualEncoder(VISUAL_ENCODER_PRESETS[name])
    encoder.eval()
    with torch.no_grad():
        embeddings = encoder(torch.rand(shape))
    assert embeddings.shape == (shape[0], encoder.settings.embedding_dim)


def test_narrow_encoder_sees_motion() -> None:
    torch.manual_seed(0)
    encoder = VisualEncoder(VISUAL_ENCODER_PRESETS["demo"]).eval()
    clip = torch.rand(1, 3, 3, 16, 16)
    with torch.no_grad():
        assert not torch.allclose(encoder(clip), encoder(clip.flip(2)), atol=1e-5)


@pytest.mark.parametrize(("channels", "width", "stride"), [(16, 16, 1), (16, 32, 2), (24, 48, 1)])
def test_blocks_are_torchvisions(channels: int, width: int, stride: int) -> None:
    torch.manual_seed(0)
    block = ResidualBlock(channels, width, stride, stride)
    shortcut = None
    if not isinstance(block.downsample, nn.Identity):
        strides = (stride, stride, stride)
        convolution = nn.Conv3d(channels, width, 1, strides, bias=False)
        shortcut = nn.Sequential(convolution, nn.BatchNorm3d(width))
    theirs = BasicBlock(channels, width, Conv2Plus1D, stride, shortcut)
    theirs.load_state_dict(block.state_dict())
    clips = torch.randn(2, channels, 5, 8, 8)
    torch.testing.assert_close(block(clips), theirs(clips))
    shorter = ResidualBlock(channels, width, stride, 1)(clips)
    assert shorter.shape[2:] == (5, 8 // stride, 8 // stride)


def test_paper_size_takes_local_weights(tmp_path) -> None:
    torch.manual_seed(0)
    state = r2plus1d_18().state_dict()
    torch.save(state, tmp_path / "weights.pt")
    encoder = VisualEncoder(VisualEncoderSettings(weights=str(tmp_path / "weights.pt")))
    kept = encoder.trunk.state_dict()
    assert kept.keys() == {name for name in state if not name.startswith("fc.")}
    assert all(torch.equal(kept[name], state[name]) for name in kept)
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pt")
    (tmp_path / "text.pt").write_text("no weights")
    for path, message in (
        ("other.pt", "r2plus1d_18"),
        ("nowhere.pt", "or a file"),
        ("text.pt", "r2plus1d_18's state dict"),
    ):
        with pytest.raises(InputError, match=message):
            VisualEncoder(VisualEncoderSettings(weights=str(tmp_path / path)))


def test_weights_that_cannot_be_downloaded_are_explained(monkeypatch) -> None:
    def offline(*, weights: object) -> None:
        raise URLError("no route")

    monkeypatch.setattr("torchvision.models.video.r2plus1d_18", offline)
    with pytest.raises(InputError, match=r"'kinetics400', expected a local file .*no route"):
        VisualEncoder(VisualEncoderSettings(weights="kinetics400"))


def test_weights_need_the_paper_size() -> None:
    with pytest.raises(InputError, match="only the paper size"):
        dataclasses.replace(VISUAL_ENCODER_PRESETS["demo"], weights="kinetics400")


# --- heads --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hidden_dim", "pooling"), list(itertools.product([0, 32], ["mean", "attention"]))
)
def test_grid_head_gives_each_direction_its_own_embedding(hidden_dim: int, pooling: str) -> None:
    settings = ProjectionSettings(embedding_dim=8, hidden_dim=hidden_dim, time_pooling=pooling)  # pyright: ignore
    embeddings = GridProjectionHead(16, 5, settings)(torch.randn(2, 7, 16))
    assert embeddings.shape == (2, 5, 8)
    assert (embeddings[:, 0] - embeddings[:, 1]).abs().max() > 1e-3
    assert PooledProjectionHead(16, settings)(torch.randn(2, 7, 16)).shape == (2, 8)


def test_mean_pooling_of_a_linear_head_is_the_mean_of_frames() -> None:
    head = GridProjectionHead(16, 5, ProjectionSettings(embedding_dim=8, hidden_dim=0))
    latents = torch.randn(2, 7, 16)
    per_frame = torch.stack([head(latents[:, frame : frame + 1]) for frame in range(7)])
    torch.testing.assert_close(head(latents), per_frame.mean(0), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_a_direction_is_answered_the_same_in_any_company(pooling: str) -> None:
    settings = ProjectionSettings(embedding_dim=8, time_pooling=pooling)  # pyright: ignore
    head = DirectionConditionedHead(16, settings)
    latents, directions = torch.randn(2, 7, 16), F.normalize(torch.randn(2, 9, 3), dim=-1)
    together = head(latents, directions)
    assert together.shape == (2, 9, 8)
    torch.testing.assert_close(head(latents, directions[:, 4:5]), together[:, 4:5])
    assert (together[:, 0] - together[:, 1]).abs().max() > 1e-3


def test_direction_conditioned_head_cannot_be_linear() -> None:
    with pytest.raises(InputError, match="hidden_dim"):
        DirectionConditionedHead(16, ProjectionSettings(hidden_dim=0))


def test_harmonics_equal_scipys() -> None:
    order = 6
    directions = F.normalize(torch.randn(200, 3, dtype=torch.float64), dim=-1)
    ours = real_spherical_harmonics(directions, order).numpy()
    x, y, z = directions.numpy().T
    polar, azimuth = np.arccos(z), np.arctan2(y, x)
    column = 0
    for degree in range(order + 1):
        for m in range(-degree, degree + 1):
            complex_value = sph_harm_y(degree, abs(m), polar, azimuth) * (-1) ** m
            part = complex_value.real if m >= 0 else complex_value.imag
            scale = np.sqrt(4 * np.pi) * (1 if m == 0 else np.sqrt(2))
            np.testing.assert_allclose(ours[:, column], scale * part, atol=1e-10)
            column += 1
    assert ours.shape[1] == column


def test_first_order_harmonics_are_the_foa_gains() -> None:
    direction = torch.as_tensor(unit_vectors(50.0, -20.0), dtype=torch.float32)
    gains = encode(torch.ones(1), direction).squeeze(-1)
    n3d = gains * torch.tensor([1.0, 3**0.5, 3**0.5, 3**0.5])
    torch.testing.assert_close(real_spherical_harmonics(direction, 1), n3d)


@pytest.mark.parametrize(
    ("output_format", "shape"), [("accdoa", (2, 7, 13, 3)), ("multi_accdoa", (2, 7, 3, 13, 3))]
)
def test_seld_head_is_bounded_and_float32(output_format, shape: tuple[int, ...]) -> None:
    head = SeldHead(16, 13, output_format)
    with torch.autocast("cpu", torch.bfloat16):
        vectors = head(100 * torch.randn(2, 7, 16))
    assert vectors.shape == shape
    assert vectors.dtype == torch.float32
    assert vectors.abs().max() <= 1

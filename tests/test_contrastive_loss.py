"""The pretraining loss of planted embeddings is the one put together by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from seld.geometry import angular_distance_deg
from seld.losses import avc_loss, doa_wise_loss, own_window_loss, recording_wise_loss
from tests.tiny_training import OBJECTIVES, TINY, pretrain_batches
from trainables import contrast as contrast_module
from trainables.contrast import EarlierPairs, PretrainNetworks, contrastive_loss, picture_loss
from trainables.directions import Directions
from trainables.pretrain import PretrainSettings
from trainables.steps import seed_step

WINDOWS = TINY.batch_size


def planted(seed: int, *shape: int) -> Tensor:
    """Embeddings with a large common part, and of other sizes in each dimension."""
    generator = torch.Generator().manual_seed(seed)
    spread = 1.0 + torch.arange(shape[-1])
    return 3.0 + spread * torch.randn(shape, generator=generator)


def by_hand(embeddings: Tensor, like: Tensor | None = None) -> Tensor:
    """Standardised by the mean and the variance of all rows, or of those of ``like``."""
    rows = (embeddings if like is None else like).flatten(0, -2)
    centred = rows - rows.mean(dim=0)
    deviation = (centred.square().mean(dim=0) + 1e-5).sqrt()
    return (embeddings - rows.mean(dim=0)) / deviation


class Planted(PretrainNetworks):
    """Embeddings as long as the directions and crops that are asked for, whatever they hold.

    ``asked`` are the directions (window, K, 3) that the sound was asked at.
    """

    def __init__(self, settings: PretrainSettings, seed: int = 0) -> None:
        super().__init__(settings)
        self.seed = seed

    def embed_sound(self, features: Tensor, directions: Tensor, segments: int = 1) -> Tensor:
        self.asked = directions
        self.sound = planted(self.seed + 1, WINDOWS * segments, directions.shape[1], 8)
        return self.sound

    def embed_pictures(self, crops: Tensor, segments: int = 1) -> Tensor:
        self.pictures = planted(self.seed + 2, WINDOWS * segments, crops.shape[1], 8)
        return self.pictures


def plant_directions(monkeypatch: pytest.MonkeyPatch) -> Directions:
    """The directions of every batch: with uneven weights, and exclusions one way only."""
    generator = torch.Generator().manual_seed(3)
    vectors = torch.nn.functional.normalize(torch.randn(WINDOWS, 3, 3, generator=generator), dim=-1)
    weights = torch.rand(WINDOWS, 3, generator=generator) + 0.1
    excluded = torch.zeros(WINDOWS, 3, 3, dtype=torch.bool)
    excluded[:2, 0, 1] = True
    excluded[3, 2, 0] = True
    chosen = Directions(vectors, weights, excluded)
    monkeypatch.setattr(contrast_module, "choose_directions", lambda *_: chosen)
    return chosen


def loss_of(settings: PretrainSettings) -> tuple[float, Planted]:
    """The loss of one batch, and the networks that were asked."""
    networks = Planted(settings)
    batch = next(pretrain_batches(settings))
    loss = contrastive_loss(networks, batch, settings, seed_step(0, 0), "cpu")
    return loss.item(), networks


def test_avc_compares_the_mean_standardised_embeddings() -> None:
    loss, networks = loss_of(dataclasses.replace(OBJECTIVES["avc"], temperature=0.2))
    sound, pictures = by_hand(networks.sound), by_hand(networks.pictures)
    expected = avc_loss(sound.mean(dim=1), pictures.mean(dim=1), 0.2)
    assert loss == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("rotated_negatives", [0, 2])
def test_recording_wise_has_each_windows_rotated_pictures_as_negatives(
    rotated_negatives: int,
) -> None:
    """Six directions: the first six crops are the window's own, then each rotation's six."""
    loss, networks = loss_of(
        dataclasses.replace(OBJECTIVES["recording_wise"], rotated_negatives=rotated_negatives)
    )
    assert networks.sound.shape[:2] == (WINDOWS, 6)
    assert networks.pictures.shape[:2] == (WINDOWS, 6 * (1 + rotated_negatives))
    own, *rotations = by_hand(networks.pictures).split(6, dim=1)
    expected = recording_wise_loss(
        by_hand(networks.sound),
        own,
        0.1,
        rotated_visual=torch.stack(rotations, dim=1) if rotations else None,
    )
    assert loss == pytest.approx(expected.item(), rel=1e-4)


def test_negatives_are_rotated_as_the_settings_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each window by a rotation of its own, at least as far as asked."""
    drawn: list[dict[str, Any]] = []
    draw = contrast_module.random_rotations

    def note(count: int, *, generator: torch.Generator, **how: Any) -> Tensor:
        drawn.append({"count": count} | how)
        return draw(count, generator=generator, **how)

    monkeypatch.setattr(contrast_module, "random_rotations", note)
    loss_of(
        dataclasses.replace(
            OBJECTIVES["recording_wise"],
            rotated_negatives=3,
            negative_axes="vertical",
            minimum_rotation_deg=70.0,
        )
    )
    assert drawn == 3 * [{"count": WINDOWS, "axes": "vertical", "minimum_angle_deg": 70.0}]


@pytest.mark.parametrize("segments", [1, 2])
@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_doa_wise_is_both_losses_by_their_shares(
    share: float, segments: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With three directions that are only heard."""
    vectors, weights, excluded = plant_directions(monkeypatch)
    settings = dataclasses.replace(
        TINY,
        own_window_share=share,
        listening_directions=3,
        directions=dataclasses.replace(TINY.directions, exclusion_deg=60.0),
        segment_s=TINY.window_s / segments,
    )
    loss, networks = loss_of(settings)
    assert torch.equal(networks.asked[:, :3], vectors)
    if share == 0.0:  # nothing is asked that the loss does not look at
        assert networks.asked.shape == (WINDOWS, 3, 3)
        weights, excluded = (t.repeat_interleave(segments, dim=0) for t in (weights, excluded))
        sound, pictures = by_hand(networks.sound), by_hand(networks.pictures)
        expected = doa_wise_loss(sound, pictures, 0.1, weights=weights, exclude=excluded)
        assert loss == pytest.approx(expected.item(), rel=1e-4)
        return
    assert networks.asked.shape == (WINDOWS, 6, 3)
    listening = networks.asked[:, 3:]
    near = angular_distance_deg(vectors[:, :, None], listening[:, None]) < 60.0
    assert 0 < near.sum() < near.numel() / 2

    def of_pieces(tensor: Tensor) -> Tensor:
        return tensor.repeat_interleave(segments, dim=0)

    seen = networks.sound[:, :3]
    compared = {"weights": of_pieces(weights), "exclude": of_pieces(excluded)}
    sound, pictures = by_hand(seen), by_hand(networks.pictures)
    everywhere = doa_wise_loss(sound, pictures, 0.1, **compared)
    own_window = own_window_loss(
        sound,
        pictures,
        0.1,
        **compared,
        heard_only=by_hand(networks.sound[:, 3:], like=seen),
        near=of_pieces(near),
    )
    expected = (1.0 - share) * everywhere + share * own_window
    assert loss == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("objective", ["doa_wise", "avc"])
def test_embeddings_of_the_last_steps_are_negatives(
    objective: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two steps here, as they were then: the fourth has those of the second and the third."""
    settings = dataclasses.replace(TINY, objective=objective, memory_steps=2)
    _, weights, excluded = plant_directions(monkeypatch)
    earlier = EarlierPairs(settings.memory_steps)
    batch = next(pretrain_batches(settings))
    rows: list[tuple[Tensor, Tensor]] = []
    for step in range(4):
        networks = Planted(settings, seed=10 * step)
        loss = contrastive_loss(networks, batch, settings, seed_step(0, step), "cpu", earlier)
        sound, pictures = by_hand(networks.sound), by_hand(networks.pictures)
        held = rows[-2:]
        pairs = (torch.cat([a for a, _ in held]), torch.cat([v for _, v in held])) if held else None
        if objective == "avc":
            sound, pictures = sound.mean(dim=1), pictures.mean(dim=1)
            expected = avc_loss(sound, pictures, 0.1, earlier=pairs)
            rows.append((sound, pictures))
        else:
            expected = doa_wise_loss(
                sound, pictures, 0.1, weights=weights, exclude=excluded, earlier=pairs
            )
            rows.append((sound.flatten(0, 1), pictures.flatten(0, 1)))
        assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    # What is kept with a checkpoint is what the next step would have.
    restored = EarlierPairs(settings.memory_steps, earlier.state()).pairs()
    assert restored is not None
    for kept, expected_rows in zip(restored, zip(*rows[-2:], strict=True), strict=True):
        assert torch.allclose(kept, torch.cat(expected_rows), atol=1e-5)


@pytest.mark.parametrize("segments", [1, 2])
def test_pictures_are_compared_with_other_views_of_theirs(
    segments: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first K crops of each window with the other K; weights and exclusions as with sounds."""
    _, weights, excluded = plant_directions(monkeypatch)
    settings = dataclasses.replace(TINY, temperature=0.3, segment_s=TINY.window_s / segments)
    networks = Planted(settings)
    batch = next(pretrain_batches(settings))
    loss = picture_loss(networks, batch, settings, seed_step(0, 0), "cpu")
    first, second = networks.pictures.split(3, dim=1)
    expected = doa_wise_loss(
        by_hand(first),
        by_hand(second),
        0.3,
        weights=weights.repeat_interleave(segments, dim=0),
        exclude=excluded.repeat_interleave(segments, dim=0),
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_pieces_of_a_window_are_embedded_each_by_itself() -> None:
    """Piece s of window n is row 2 n + s, of the pictures and of what is heard."""
    torch.manual_seed(0)
    networks = PretrainNetworks(TINY).eval()
    crops = torch.rand(3, 2, 4, 3, 8, 8)
    features = torch.randn(3, 7, 20, 64)
    directions = torch.nn.functional.normalize(torch.randn(3, 2, 3), dim=-1)
    with torch.inference_mode():
        seen = networks.embed_pictures(crops, 2)
        heard = networks.embed_sound(features, directions, 2)
        encoder = networks.audio_encoder
        latents = encoder.network(encoder.normalisation(features))
        half = latents.shape[1] // 2
        assert seen.shape[:2] == heard.shape[:2] == (6, 2)
        for window in range(3):
            for piece in range(2):
                row = 2 * window + piece
                times = slice(piece * half, (piece + 1) * half)
                expected = networks.project_sound(
                    latents[window : window + 1, times], directions[window : window + 1]
                )
                assert torch.allclose(heard[row], expected[0], atol=1e-5)
                for crop in range(2):
                    alone = crops[window, crop, 2 * piece : 2 * piece + 2]
                    expected = networks.embed_pictures(alone[None, None])
                    assert torch.allclose(seen[row, crop], expected[0, 0], atol=1e-5)

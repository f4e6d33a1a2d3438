"""Probes: known latents and embeddings give the figures worked out by hand."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from seld.geometry import unit_vectors
from seld.models.heads import GridProjectionHead
from seld.spatial_spectra import turned_features
from tests.slow_losses import slow_doa_wise
from tests.test_panorama import pixel_directions
from tests.tiny_training import OBJECTIVES, TINY
from trainables.contrast import PretrainNetworks
from trainables.directions import choose_directions
from trainables.probes import (
    ProbeWindows,
    empty_direction_metrics,
    has_learnt_classes,
    linear_probe_metrics,
    probe_pretraining,
    retrieval_metrics,
    sounding_directions,
    spread_metrics,
)


def test_participation_ratio_counts_equal_dimensions() -> None:
    generator = torch.Generator().manual_seed(0)
    latents = torch.zeros(400, 10, 8)
    latents[..., :3] = torch.randn(400, 10, 3, generator=generator)
    assert spread_metrics(latents)["participation_ratio"] == pytest.approx(3.0, rel=0.02)
    latents[..., 0] *= 1000.0
    assert spread_metrics(latents)["participation_ratio"] == pytest.approx(1.0, rel=0.02)


def test_temporal_share_is_the_within_window_part() -> None:
    generator = torch.Generator().manual_seed(0)
    between = torch.randn(2000, 1, 4, generator=generator).expand(-1, 10, -1)
    assert spread_metrics(between)["temporal_variance_share"] == pytest.approx(0.0, abs=1e-6)
    within = torch.randn(2000, 10, 4, generator=generator)
    within = within - within.mean(dim=1, keepdim=True)
    assert spread_metrics(within)["temporal_variance_share"] == pytest.approx(1.0, rel=1e-3)


def planted_activity() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One source per frame: activity (window, frame, class, 3), group, latents that hold both."""
    generator = torch.Generator().manual_seed(0)
    windows, frames, classes = 60, 5, 4
    direction = torch.randn(windows, frames, 3, generator=generator)
    direction = direction / direction.norm(dim=-1, keepdim=True)
    drawn = torch.randint(classes, (windows, frames), generator=generator)
    presence = torch.nn.functional.one_hot(drawn, classes).float()
    activity = presence[..., None] * direction[:, :, None]
    latents = torch.cat([presence * 3.0, direction, torch.zeros(windows, frames, 2)], dim=-1)
    return activity, torch.arange(windows), latents


def one_source(activity: torch.Tensor) -> torch.Tensor:
    return torch.ones(activity.shape[:2], dtype=torch.long)


def test_linear_probes_read_what_is_planted() -> None:
    activity, group, latents = planted_activity()
    metrics = linear_probe_metrics(latents, activity, one_source(activity), group)
    assert metrics["linear_class_accuracy"] == 1.0
    assert metrics["linear_doa_error_deg"] < 3.0


def test_frames_with_two_sources_of_one_class_are_not_probed() -> None:
    """Their targets keep one of both; here the latents tell the truth of the other frames only."""
    activity, group, latents = planted_activity()
    source_count = one_source(activity)
    source_count[:, 1::2] = 2
    latents[:, 1::2] = 50.0 * torch.randn(60, 2, 9, generator=torch.Generator().manual_seed(2))
    metrics = linear_probe_metrics(latents, activity, source_count, group)
    assert metrics["linear_class_accuracy"] == 1.0
    assert metrics["linear_doa_error_deg"] < 3.0


def test_linear_probes_of_noise_stay_at_chance() -> None:
    activity, group, _ = planted_activity()
    noise = torch.randn(60, 5, 4, generator=torch.Generator().manual_seed(1))
    metrics = linear_probe_metrics(noise, activity, one_source(activity), group)
    assert metrics["linear_class_accuracy"] < metrics["linear_class_accuracy_chance"] + 0.12
    assert metrics["linear_doa_error_deg"] > 80.0
    assert metrics["linear_doa_error_deg_chance"] == pytest.approx(90.0, abs=8.0)


def test_linear_probes_know_nothing_of_the_recordings_they_are_scored_on() -> None:
    """Latents tell the recording alone, whose class and place are drawn at random.

    Whoever has seen a recording knows both; who has not, neither.
    """
    generator = torch.Generator().manual_seed(0)
    recordings, windows, frames, classes = 40, 4, 5, 4
    group = torch.arange(recordings).repeat_interleave(windows)
    direction = torch.randn(recordings, 3, generator=generator)
    direction = direction / direction.norm(dim=-1, keepdim=True)
    sounding = torch.randint(classes, (recordings,), generator=generator)
    presence = torch.nn.functional.one_hot(sounding, classes)
    vectors = presence[..., None] * direction[:, None]  # (recording, class, 3)
    activity = vectors[group, None].repeat(1, frames, 1, 1)
    latents = torch.eye(recordings)[group, None].repeat(1, frames, 1)
    metrics = linear_probe_metrics(latents, activity, one_source(activity), group)
    assert metrics["linear_class_accuracy"] < 0.6
    assert metrics["linear_doa_error_deg"] > 60.0


def probe_windows() -> ProbeWindows:
    generator = torch.Generator().manual_seed(0)
    count, classes = 8, 3
    directions = torch.randn(count, 3, generator=generator)
    directions = directions / directions.norm(dim=-1, keepdim=True)
    event_class = torch.arange(count) % classes
    activity = torch.zeros(count, 4, classes, 3)
    for window in range(count):
        activity[window, :, event_class[window]] = directions[window]
    return ProbeWindows(
        spectra=torch.randn(count, 11, 20, 64, generator=generator).abs().half(),
        pictures=torch.randint(0, 256, (count, 2, 3, 16, 32), generator=generator).byte(),
        group=torch.arange(count),
        activity=activity,
        event_window=torch.arange(count),
        event_class=event_class,
        event_direction=directions,
        row_window=torch.arange(count).repeat_interleave(4),
        row_frame=torch.arange(4).repeat(count),
        row_direction=directions.repeat_interleave(4, dim=0),
    )


class PlantedNetworks(PretrainNetworks):
    """Pictures are their mean colour; sounds the colours their latents hold.

    Latents (window, 1, 9) are the colour heard at a direction, that direction, and the colour
    heard elsewhere.
    """

    def project_sound(self, latents: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
        there, direction, elsewhere = latents.split(3, dim=2)
        asked_there = (directions * direction).sum(dim=2, keepdim=True) > 0.99
        return torch.where(asked_there, there, elsewhere)

    def embed_pictures(self, crops: torch.Tensor, segments: int = 1) -> torch.Tensor:
        return crops.mean(dim=(2, 4, 5))


def test_retrieval_is_that_counted_by_hand() -> None:
    """Six windows with one event each, a spot of its class's colour where it is heard.

    The third class is in one recording alone, so that its two events have nothing to find in
    another. Asked elsewhere, the sound tells other classes, but for the first and fourth event.
    """
    classes, elsewhere = torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([0, 1, 2, 1, 0, 0])
    windows = probe_windows()
    directions, colours = windows.event_direction[:6], torch.eye(3)
    spots = (pixel_directions() @ directions.T).permute(2, 0, 1) > 0.995
    pictures = 255 * spots[:, None] * colours[classes][:, :, None, None]
    planted = dataclasses.replace(
        windows,
        pictures=pictures[:, None].byte(),
        group=torch.tensor([0, 1, 2, 3, 4, 4]),
        event_window=torch.arange(6),
        event_class=classes,
        event_direction=directions,
    )
    latents = torch.cat([colours[classes], directions, colours[elsewhere]], dim=1)[:, None]
    # Crops small enough that none off an event's direction (by 35°) shows its spot.
    settings = dataclasses.replace(TINY, field_of_view_deg=40.0)
    metrics = retrieval_metrics(PlantedNetworks(settings), latents, planted, settings)
    assert metrics["retrieval_top1"] == pytest.approx(4 / 6)
    assert metrics["retrieval_direction_shuffled_top1"] == pytest.approx(2 / 6)
    assert metrics["retrieval_direction_top1"] == 1.0
    # Each of the first four has one of its class among five others.
    assert metrics["retrieval_top1_chance"] == pytest.approx(4 / 6 / 5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_can_be_probed(name: str) -> None:
    torch.manual_seed(0)
    settings = OBJECTIVES[name]
    networks = PretrainNetworks(settings).eval()
    metrics = probe_pretraining(networks, probe_windows(), settings)
    expected = {"retrieval_top1", "retrieval_top1_chance", "linear_doa_error_deg"}
    assert expected <= set(metrics)
    assert all(torch.isfinite(torch.tensor(value)) for value in metrics.values())
    # 8 events of 3 classes in turn: 2, 2 and 1 others of the own class among 7.
    assert metrics["retrieval_top1_chance"] == pytest.approx((6 * 2 + 2 * 1) / 8 / 7)


def test_events_of_one_recording_alone_have_no_retrieval() -> None:
    networks = PretrainNetworks(TINY).eval()
    alone = dataclasses.replace(probe_windows(), group=torch.zeros_like(probe_windows().group))
    metrics = probe_pretraining(networks, alone, TINY)
    assert "retrieval_top1" not in metrics
    assert has_learnt_classes(metrics) is None
    assert "participation_ratio" in metrics


def test_empty_directions_are_those_without_an_event() -> None:
    torch.manual_seed(0)
    settings = dataclasses.replace(OBJECTIVES["doa_wise_grid"])
    windows = probe_windows()
    grid = torch.from_numpy(settings.directions.grid.vectors())
    heard_at = grid[torch.arange(8) % len(grid)]
    on_grid = dataclasses.replace(windows, row_direction=heard_at.repeat_interleave(4, dim=0))
    networks = PretrainNetworks(settings).eval()
    assert isinstance(networks.audio_head, GridProjectionHead)
    metrics = probe_pretraining(networks, on_grid, settings)
    assert metrics["empty_direction_share"] == pytest.approx(1 - 1 / len(grid))
    assert 0.0 < metrics["loss_share_empty_directions"] < 1.0


class PlantedEmbeddings(PretrainNetworks):
    """Sounds and pictures are what it is told, (window, K, embedding), whatever is asked."""

    sound: torch.Tensor
    picture: torch.Tensor

    def project_sound(self, latents: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
        return self.sound

    def embed_pictures(self, crops: torch.Tensor, segments: int = 1) -> torch.Tensor:
        return self.picture


def test_loss_share_of_empty_directions_is_that_counted_pair_by_pair() -> None:
    """Two windows, in one of which two directions sound, in the other one."""
    # Wide enough that neighbours on the grid are no negatives of each other.
    directions = dataclasses.replace(OBJECTIVES["doa_wise_grid"].directions, exclusion_deg=80.0)
    settings = dataclasses.replace(OBJECTIVES["doa_wise_grid"], directions=directions)
    grid = torch.from_numpy(directions.grid.vectors())
    rows = probe_windows()
    windows = dataclasses.replace(
        rows,
        spectra=rows.spectra[:2],
        pictures=rows.pictures[:2],
        row_window=torch.tensor([0, 0, 1]),
        row_frame=torch.tensor([0, 2, 3]),
        row_direction=grid[[1, 4, 2]],
    )
    features = turned_features(windows.spectra.float(), torch.eye(3).expand(2, 3, 3))
    generator = torch.Generator().manual_seed(1)
    networks = PlantedEmbeddings(settings).eval()
    networks.sound = torch.randn(2, len(grid), 5, generator=generator)
    networks.picture = networks.sound + torch.randn(2, len(grid), 5, generator=generator)
    metrics = empty_direction_metrics(networks, features, torch.zeros(2, 1, 1), windows, settings)

    chosen = choose_directions(
        features[:, 4:], windows.spectra[:, 0].float(), directions, torch.Generator()
    )
    near = torch.rad2deg(torch.arccos((grid @ grid.T).clamp(-1.0, 1.0))) < 80.0
    assert near.sum() > len(near)
    assert len(chosen.weights.unique()) > 2
    empty = torch.ones(2, len(grid))
    empty[0, [1, 4]] = empty[1, 2] = 0.0
    sound, picture = (
        (planted - planted.mean(dim=(0, 1))) / planted.std(dim=(0, 1), correction=0)
        for planted in (networks.sound, networks.picture)
    )
    temperature = networks.log_temperature.exp().item()
    losses = [
        slow_doa_wise(sound, picture, temperature, weights, near.expand(2, -1, -1)) * weights.sum()
        for weights in (chosen.weights * empty, chosen.weights * (1.0 - empty))
    ]
    assert metrics["empty_direction_share"] == pytest.approx(9 / 12)
    expected = float(losses[0] / sum(losses))
    assert metrics["loss_share_empty_directions"] == pytest.approx(expected, rel=1e-4)
    assert not 0.74 < expected < 0.76  # or it might be the share of the directions


def test_whatever_sounds_in_a_window_leaves_no_direction_empty() -> None:
    """Briefly, moving, and of the same class as another: none of it is an event of retrieval."""
    azimuths_deg = torch.tensor([0.0, 10.0, 50.0, 90.0, 180.0])
    level = torch.zeros(5)
    windows = dataclasses.replace(
        probe_windows(),
        row_window=torch.tensor([0, 0, 1, 1]),
        row_frame=torch.tensor([0, 1, 3, 3]),
        row_direction=unit_vectors(torch.tensor([0.0, 90.0, 179.0, 31.0]), level[:4]),
    )
    asked = unit_vectors(azimuths_deg, level).expand(8, 5, 3)
    found = sounding_directions(windows, asked)
    assert found[0].tolist() == [True, True, False, True, False]
    assert found[1].tolist() == [False, False, True, False, True]
    assert not found[2:].any()
    assert windows.source_count[:3].tolist() == [[1, 1, 0, 0], [0, 0, 0, 2], [0, 0, 0, 0]]


def test_probing_leaves_the_networks_alone() -> None:
    torch.manual_seed(0)
    networks = PretrainNetworks(TINY).eval()
    before = {key: value.clone() for key, value in networks.state_dict().items()}
    probe_pretraining(networks, probe_windows(), TINY)
    assert all(torch.equal(before[key], value) for key, value in networks.state_dict().items())


def test_classes_learnt_means_more_than_luck_explains() -> None:
    # Of 100 events at chance 0.1, luck's standard error is 0.03.
    metrics = {"retrieval_top1_chance": 0.1, "retrieval_events": 100.0}
    assert has_learnt_classes(metrics | {"retrieval_top1": 0.20}) is True
    assert has_learnt_classes(metrics | {"retrieval_top1": 0.18}) is False
    assert has_learnt_classes({}) is None

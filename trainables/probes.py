"""What a pretrained encoder knows, measured on held-out annotated windows.

Annotations are used for measuring only. Every figure whose luck is not obvious comes with its
chance level under ``<name>_chance``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from seld.geometry import DoaGrid, angular_distance_deg
from seld.losses import cosines, doa_wise_loss, standardise
from seld.panorama import camera_matrices, perspective_crops
from seld.spatial_spectra import turned_features
from trainables.directions import choose_directions
from trainables.steps import Metrics, network_precision

if TYPE_CHECKING:
    from trainables.contrast import PretrainNetworks
    from trainables.pretrain import PretrainSettings

#: Directions without a sound, against which the true one must win.
_OTHER_DIRECTIONS = DoaGrid(kind="fibonacci", count=16)

#: How far off an event a direction is that does not show it as well.
_OFF_EVENT_DEG = 35.0

#: A direction is empty where no annotated event is within this angle (the metric's threshold).
_EMPTY_DEG = 20.0


@dataclass(frozen=True, kw_only=True)
class ProbeWindows:
    """Held-out windows with what is truly there.

    ``spectra`` (window, 11, frame, mel), ``pictures`` (window, time, 3, height, width) uint8,
    ``group`` (window,) number of the recording. ``activity`` (window, label frame, class, 3) are
    ACCDOA targets. Events, the classes that sound for at least half of a window:
    ``event_window`` (event,), ``event_class`` (event,), ``event_direction`` (event, 3), the mean.
    All rows of the annotation, one per source and label frame: ``row_window`` (row,),
    ``row_frame`` (row,), ``row_direction`` (row, 3). Directions are unit vectors.
    """

    spectra: Tensor
    pictures: Tensor
    group: Tensor
    activity: Tensor
    event_window: Tensor
    event_class: Tensor
    event_direction: Tensor
    row_window: Tensor
    row_frame: Tensor
    row_direction: Tensor

    @property
    def source_count(self) -> Tensor:
        """How many sources sound, those of one class counted singly: (window, label frame)."""
        windows, frames = self.activity.shape[:2]
        cells = self.row_window * frames + self.row_frame
        return cells.bincount(minlength=windows * frames).view(windows, frames)


@torch.no_grad()
def probe_pretraining(
    networks: PretrainNetworks, windows: ProbeWindows, settings: PretrainSettings
) -> Metrics:
    """Retrieval, linear probes and spread of networks in evaluation mode, on their device."""
    device = next(networks.parameters()).device
    eye = torch.eye(3).expand(len(windows.spectra), 3, 3)
    features = turned_features(windows.spectra.float(), eye).to(device)
    with network_precision(settings.precision, device):
        latents = torch.cat(
            [
                networks.audio_encoder.network(networks.audio_encoder.normalisation(part))
                for part in features.split(settings.batch_size)
            ]
        )
    latents = latents.float().cpu()
    metrics = spread_metrics(latents)
    metrics |= linear_probe_metrics(latents, windows.activity, windows.source_count, windows.group)
    metrics |= retrieval_metrics(networks, latents, windows, settings)
    if settings.objective == "doa_wise":
        metrics |= empty_direction_metrics(networks, features, latents, windows, settings)
    return metrics


def has_learnt_classes(probes: Mapping[str, float]) -> bool | None:
    """Whether sound finds pictures of its class better than by luck, by three standard errors.

    None where the probes hold no retrieval (no annotated pictures to measure on).
    """
    if "retrieval_top1" not in probes:
        return None
    chance = probes["retrieval_top1_chance"]
    standard_error = math.sqrt(chance * (1.0 - chance) / probes["retrieval_events"])
    return probes["retrieval_top1"] > chance + 3.0 * standard_error


def spread_metrics(latents: Tensor) -> Metrics:
    """How many dimensions the latents (window, frame, dim) use, and how they vary over time.

    ``participation_ratio`` is (Σλ)²/Σλ² of the covariance's eigenvalues, from 1 (a line) to the
    dimension (a ball); ``temporal_variance_share`` is the part of the variance within windows.
    """
    flat = latents.flatten(0, 1).double()
    flat = flat - flat.mean(dim=0)
    covariance = flat.T @ flat / len(flat)
    ratio = covariance.trace().square() / covariance.square().sum()
    within = latents.double() - latents.double().mean(dim=1, keepdim=True)
    share = within.square().sum(dim=-1).mean() / covariance.trace()
    return {"participation_ratio": ratio.item(), "temporal_variance_share": share.item()}


def linear_probe_metrics(
    latents: Tensor, activity: Tensor, source_count: Tensor, group: Tensor
) -> Metrics:
    """Ridge regressions from frozen latents to class and direction, where one source sounds.

    Fitted on the recordings of even number and scored on those of odd number, and the other way
    round.

    Args:
        latents: (window, frame, dim).
        activity: (window, frame, class, 3) ACCDOA targets.
        source_count: (window, frame); two sources of one class are two, which the targets hide.
        group: (window,) number of the recording.
    """
    frames = min(latents.shape[1], activity.shape[1])
    single = source_count[:, :frames] == 1  # (window, frame)
    inputs = latents[:, :frames][single].double()
    vectors = activity[:, :frames][single].double()  # (sample, class, 3)
    fold = (group % 2)[:, None].expand(-1, frames)[single]
    presence = (vectors.norm(dim=-1) > 0.5).double()
    direction = vectors.sum(dim=1)
    right, guessed, error, error_chance, scored = 0.0, 0.0, 0.0, 0.0, 0
    for held_out in (0, 1):
        test = fold == held_out
        if not test.any() or test.all():
            return {}
        predicted = _ridge(inputs[~test], torch.cat([presence, direction], 1)[~test], inputs[test])
        classes = presence.shape[1]
        truth = presence[test].argmax(dim=1)
        majority = presence[~test].sum(dim=0).argmax()
        right += (predicted[:, :classes].argmax(dim=1) == truth).double().sum().item()
        guessed += (truth == majority).double().sum().item()
        error += angular_distance_deg(predicted[:, classes:], direction[test]).sum().item()
        constant = direction[~test].mean(dim=0).expand(len(truth), 3)
        error_chance += angular_distance_deg(constant, direction[test]).sum().item()
        scored += len(truth)
    return {
        "linear_class_accuracy": right / scored,
        "linear_class_accuracy_chance": guessed / scored,
        "linear_doa_error_deg": error / scored,
        "linear_doa_error_deg_chance": error_chance / scored,
    }


def retrieval_metrics(
    networks: PretrainNetworks, latents: Tensor, windows: ProbeWindows, settings: PretrainSettings
) -> Metrics:
    """Whether sound finds the right picture.

    ``retrieval_top1``: of all event crops of other recordings, the nearest to the sound at an
    event's direction shows the event's class. ``retrieval_direction_shuffled_top1``: the same
    when the sound is asked for a random other direction. ``retrieval_direction_top1``: among the
    crops of the same window at the event's and up to 16 directions off it, its own is nearest.
    """
    if len(windows.event_class) < 2:
        return {}
    device = next(networks.parameters()).device
    at = windows.event_direction[:, None]  # (event, 1, 3)
    generator = torch.Generator().manual_seed(0)
    elsewhere = torch.randn(at.shape, generator=generator)
    elsewhere = elsewhere / elsewhere.norm(dim=-1, keepdim=True)
    asked = torch.cat([at, elsewhere], dim=1).to(device)
    event_latents = latents[windows.event_window].to(device)
    sound = networks.project_sound(event_latents, asked).float().cpu()  # (event, 2, embed)
    others = torch.from_numpy(_OTHER_DIRECTIONS.vectors()).expand(len(at), -1, 3)
    event_pictures = windows.pictures[windows.event_window]
    pictures = _embedded_crops(
        networks, event_pictures, torch.cat([at, others], 1), settings
    ).cpu()  # (event, 17, embed)

    sound_at, sound_elsewhere = standardise(sound[:, 0]), standardise(sound[:, 1])
    own = standardise(pictures[:, 0])
    recording = windows.group[windows.event_window]
    same_recording = recording[:, None] == recording[None]
    same_class = (windows.event_class[:, None] == windows.event_class[None]).float()
    candidates = (~same_recording).float()
    usable = candidates.sum(dim=1) > 0
    if not usable.any():  # all events are of one recording
        return {}
    chance = (same_class * candidates).sum(dim=1) / candidates.sum(dim=1).clamp(min=1.0)

    def class_top1(embedded: Tensor) -> float:
        similarity = cosines(embedded, own).masked_fill(same_recording, -torch.inf)
        hit = same_class.gather(1, similarity.argmax(dim=1, keepdim=True))[:, 0]
        return hit[usable].mean().item()

    all_pictures = standardise(pictures)
    near = F.cosine_similarity(sound_at[:, None], all_pictures, dim=-1)
    apart = (others * at).sum(dim=-1) < math.cos(math.radians(_OFF_EVENT_DEG))
    near[:, 1:] = near[:, 1:].masked_fill(~apart, -torch.inf)
    return {
        "retrieval_top1": class_top1(sound_at),
        "retrieval_top1_chance": chance[usable].mean().item(),
        "retrieval_events": float(usable.sum()),
        "retrieval_direction_shuffled_top1": class_top1(sound_elsewhere),
        "retrieval_direction_top1": (near.argmax(dim=1) == 0).float().mean().item(),
        "retrieval_direction_top1_chance": (1.0 / (1.0 + apart.sum(dim=1))).mean().item(),
    }


def empty_direction_metrics(
    networks: PretrainNetworks,
    features: Tensor,
    latents: Tensor,
    windows: ProbeWindows,
    settings: PretrainSettings,
) -> Metrics:
    """How much of the DOA-wise loss goes to directions where no annotated event is.

    Whatever sounds in any frame of a window counts, however briefly and wherever it moves. The
    listening directions, which have no crop, are not among those asked here.
    """
    generator = torch.Generator().manual_seed(0)
    level = windows.spectra[:, 0].float().to(features.device)
    # A turned grid is the first rank's turn, which no other rank asks for here: one alone probes.
    unturned = replace(settings.directions, grid_rotation="none")
    chosen = choose_directions(features[:, 4:], level, unturned, generator)
    sound = networks.project_sound(latents.to(features.device), chosen.vectors).float()
    pictures = _embedded_crops(networks, windows.pictures, chosen.vectors, settings)
    present = sounding_directions(windows, chosen.vectors.cpu())
    empty = ~present
    sound, pictures = standardise(sound), standardise(pictures)
    temperature = networks.log_temperature.exp()
    weights = chosen.weights.cpu()
    sound, pictures, excluded = sound.cpu(), pictures.cpu(), chosen.excluded.cpu()
    losses = [
        doa_wise_loss(
            sound, pictures, temperature.cpu(), weights=weights * chosen_part, exclude=excluded
        ).item()
        * (weights * chosen_part).sum().item()
        for chosen_part in (empty, present)
    ]
    return {
        "empty_direction_share": empty.float().mean().item(),
        "loss_share_empty_directions": losses[0] / max(sum(losses), 1e-12),
    }


def sounding_directions(windows: ProbeWindows, vectors: Tensor) -> Tensor:
    """Which directions (window, K, 3) have an annotated event of any frame near: (window, K)."""
    cosine = (vectors[windows.row_window] * windows.row_direction[:, None]).sum(dim=-1)  # (row, K)
    near = (cosine > math.cos(math.radians(_EMPTY_DEG))).long()
    events = torch.zeros(vectors.shape[:2], dtype=torch.long)
    return events.index_add(0, windows.row_window, near) > 0


def _embedded_crops(
    networks: PretrainNetworks, pictures: Tensor, directions: Tensor, settings: PretrainSettings
) -> Tensor:
    """Embeddings (window, K, embed) of the crops at directions (window, K, 3), a few at a time."""
    device = next(networks.parameters()).device
    embedded = []
    for part, at in zip(pictures.split(16), directions.split(16), strict=True):
        crops = perspective_crops(
            part.to(device),
            camera_matrices(at.to(device)),
            field_of_view_deg=settings.field_of_view_deg,
            size_px=settings.crop_px,
        )
        embedded.append(networks.embed_pictures(crops.div_(255.0)).float())
    return torch.cat(embedded)


def _ridge(inputs: Tensor, targets: Tensor, test_inputs: Tensor) -> Tensor:
    mean, deviation = inputs.mean(dim=0), inputs.std(dim=0).clamp(min=1e-6)
    design = (inputs - mean) / deviation
    offset = targets.mean(dim=0)
    # One sample in a hundred per dimension as a prior: frames of a window are nearly copies.
    gram = design.T @ design + 0.01 * len(design) * torch.eye(design.shape[1]).double()
    solution = torch.linalg.solve(gram, design.T @ (targets - offset))
    return (test_inputs - mean) / deviation @ solution + offset

"""What pretraining minimises: its networks, what they see, and what is compared with what.

A step turns sound and picture together at random, draws directions in the turned scene
(:mod:`trainables.directions`), embeds the sound at the K directions and the K crops of the picture
and compares them (:mod:`seld.losses`).
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, NamedTuple, assert_never

import torch
from torch import Tensor, nn

from seld.geometry import random_rotations, random_transforms
from seld.losses import (
    avc_loss,
    doa_wise_loss,
    gather_with_gradients,
    own_window_loss,
    recording_wise_loss,
    standardise,
)
from seld.models.heads import (
    DirectionConditionedHead,
    GridProjectionHead,
    PooledProjectionHead,
)
from seld.models.r2plus1d import VisualEncoder
from seld.models.resnet_conformer import AudioEncoder
from seld.panorama import camera_matrices, perspective_crops
from seld.spatial_spectra import turned_features
from trainables.clips import Batch, batch_spectra
from trainables.directions import (
    Directions,
    choose_directions,
    near_directions,
    random_directions,
)
from trainables.steps import network_precision

if TYPE_CHECKING:
    from trainables.pretrain import PretrainSettings

#: How far apart two views of one direction are, for pictures compared with pictures: standard
#: deviations of the camera's roll, pitch and yaw, and the most by which a colour channel of either
#: is brighter or darker. [ours]
_VIEW_TURNS_DEG = (20.0, 6.0, 6.0)
_VIEW_GAIN = 0.3


class PretrainNetworks(nn.Module):
    """The two encoders with their projections; only ``audio_encoder`` outlives pretraining."""

    grid_vectors: Tensor

    def __init__(self, settings: PretrainSettings) -> None:
        super().__init__()
        self.objective = settings.objective
        self.audio_encoder = AudioEncoder(settings.audio)
        dim = self.audio_encoder.dim
        self.audio_head: nn.Module
        if settings.objective == "avc":
            self.audio_head = PooledProjectionHead(dim, settings.projection)
        elif settings.head == "grid":
            directions = settings.directions.grid.count
            self.audio_head = GridProjectionHead(dim, directions, settings.projection)
        else:
            self.audio_head = DirectionConditionedHead(dim, settings.projection)
        grid_vectors = torch.from_numpy(settings.directions.grid.vectors())
        self.register_buffer("grid_vectors", grid_vectors, persistent=False)
        self.visual_encoder = VisualEncoder(settings.visual)
        self.log_temperature = nn.Parameter(
            torch.tensor(math.log(settings.temperature)), requires_grad=settings.learn_temperature
        )

    def embed_sound(self, features: Tensor, directions: Tensor, segments: int = 1) -> Tensor:
        """Features (batch, 7, frame, mel) → (batch × segments, K, embedding); of AVC, K alike."""
        latents = self.audio_encoder.network(self.audio_encoder.normalisation(features))
        latents = latents.unflatten(1, (segments, -1)).flatten(0, 1)
        return self.project_sound(latents, directions.repeat_interleave(segments, dim=0))

    def project_sound(self, latents: Tensor, directions: Tensor) -> Tensor:
        """Latents (batch, frame, dim) at directions (batch, K, 3) → (batch, K, embedding).

        The fixed grid's head answers for its nearest direction, the pooled head the same for all.
        """
        if isinstance(self.audio_head, DirectionConditionedHead):
            return self.audio_head(latents, directions)
        if isinstance(self.audio_head, PooledProjectionHead):
            pooled = self.audio_head(latents)
            return pooled[:, None].expand(-1, directions.shape[1], -1)
        nearest = (directions @ self.grid_vectors.T).argmax(dim=-1)  # (batch, K)
        embeddings = self.audio_head(latents)
        return embeddings.gather(1, nearest[:, :, None].expand(-1, -1, embeddings.shape[2]))

    def embed_pictures(self, crops: Tensor, segments: int = 1) -> Tensor:
        """Crops (batch, K, time, 3, size, size) → (batch × segments, K, embed)."""
        batch, count = crops.shape[:2]
        clips = crops.unflatten(2, (segments, -1)).transpose(1, 2).flatten(0, 2)
        embeddings = self.visual_encoder(clips.transpose(1, 2))
        return embeddings.unflatten(0, (batch * segments, count))


class EarlierPairs:
    """Embeddings of the last steps, which are negatives of the present one.

    Cross-batch memory (Wang et al., CVPR 2020): networks change little from step to step, so that
    yesterday's embeddings make a batch larger at the price of a matrix product. They are those of
    all ranks, standardised, and have no gradient.

    Args:
        steps: how many steps are kept; with 0 there never are any.
        state: of :meth:`state`, to continue from.
        device: where the embeddings live.
    """

    def __init__(
        self,
        steps: int,
        state: dict[str, Tensor] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self._steps: deque[tuple[Tensor, Tensor]] = deque(maxlen=steps)
        if state:
            audio, visual = state["audio"].to(device), state["visual"].to(device)
            self._steps.extend(zip(audio, visual, strict=True))

    def pairs(self) -> tuple[Tensor, Tensor] | None:
        """Audio and visual embeddings, each (row, embedding); None where nothing is held."""
        if not self._steps:
            return None
        audio, visual = zip(*self._steps, strict=True)
        return torch.cat(audio), torch.cat(visual)

    def add(self, audio: Tensor, visual: Tensor) -> None:
        """Those of one step, each (row, embedding); the oldest give way."""
        self._steps.append((audio.detach(), visual.detach()))

    def state(self) -> dict[str, Tensor]:
        """Copies on the CPU, each (step, row, embedding); empty where nothing is held."""
        if not self._steps:
            return {}
        audio, visual = zip(*self._steps, strict=True)
        return {"audio": torch.stack(audio).cpu(), "visual": torch.stack(visual).cpu()}


def contrastive_loss(
    networks: PretrainNetworks,
    batch: Batch,
    settings: PretrainSettings,
    generator: torch.Generator,
    device: torch.device | str,
    earlier: EarlierPairs | None = None,
) -> Tensor:
    """The loss of one batch: what the networks see, and what is compared with what.

    Args:
        batch: ``spectra`` (or ``foa``) and ``frames`` of N windows, see :mod:`trainables.clips`.
        generator: the only source of randomness besides dropout.
        earlier: further negatives of ``doa_wise`` and ``avc``, to which this batch's are added.
    """
    scene = _turned_scene(networks, batch, settings, generator, device)
    directions = scene.directions
    crops = _crops(scene, _cameras(directions.vectors, settings, generator), settings)

    asked = directions.vectors
    compares_own_window = settings.objective == "doa_wise" and settings.own_window_share > 0.0
    if compares_own_window and settings.listening_directions:
        listening = random_directions(len(asked), settings.listening_directions, generator)
        asked = torch.cat([asked, listening.to(device)], dim=1)
    with network_precision(settings.precision, device):
        audio = networks.embed_sound(scene.features, asked, settings.segments)
        visual = networks.embed_pictures(crops, settings.segments)
    # Gathered in float32: "auto" may mean bfloat16 on one rank's machine and float32 on another's.
    audio = gather_with_gradients(audio.float())
    visual = gather_with_gradients(visual.float())
    temperature = networks.log_temperature.exp()
    if settings.objective == "avc":
        audio, visual = standardise(audio).mean(dim=1), standardise(visual).mean(dim=1)
        return avc_loss(audio, visual, temperature, earlier=_recalled(earlier, audio, visual))
    if settings.objective == "doa_wise":
        return _doa_wise_loss(audio, visual, temperature, asked, directions, settings, earlier)
    if settings.objective == "recording_wise":
        audio, visual, count = standardise(audio), standardise(visual), audio.shape[1]
        rotated = visual[:, count:].unflatten(1, (-1, count)) if visual.shape[1] > count else None
        return recording_wise_loss(audio, visual[:, :count], temperature, rotated_visual=rotated)
    assert_never(settings.objective)


def picture_loss(
    networks: PretrainNetworks,
    batch: Batch,
    settings: PretrainSettings,
    generator: torch.Generator,
    device: torch.device | str,
) -> Tensor:
    """Pictures compared with pictures: two views of each direction are the positive pair. [ours]

    What the visual encoder is warmed up with (``visual_warmup_share``): instance discrimination (as
    Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML
    2020) among the crops that the objective would look at. The sound only says where to look. The
    arguments are those of :func:`contrastive_loss`.
    """
    scene = _turned_scene(networks, batch, settings, generator, device)
    cameras = camera_matrices(scene.directions.vectors)
    views = torch.cat([_viewed_anew(cameras, generator), _viewed_anew(cameras, generator)], dim=1)
    crops = _crops(scene, views, settings)
    drawn = torch.rand((*crops.shape[:2], 1, 3, 1, 1), generator=generator)  # per crop and colour
    crops = crops * (1.0 + _VIEW_GAIN * (2.0 * drawn - 1.0)).to(crops.device)
    with network_precision(settings.precision, device):
        visual = networks.embed_pictures(crops, settings.segments)
    first, second = gather_with_gradients(visual.float()).chunk(2, dim=1)
    # At the temperature that the objective starts from: one learnt here would be another's.
    return doa_wise_loss(
        standardise(first),
        standardise(second),
        settings.temperature,
        weights=_of_all_segments(scene.directions.weights, settings),
        exclude=_of_all_segments(scene.directions.excluded, settings),
    )


class _Scene(NamedTuple):
    """A batch after the joint transformation of sound and picture.

    ``features`` (N, 7, frame, mel) and ``directions`` are as the listener hears it. ``frames``
    (N, time, 3, height, width) are untouched: looking at the transformed picture is looking at them
    with cameras turned back, by ``back`` (N, 3, 3).
    """

    features: Tensor
    directions: Directions
    frames: Tensor
    back: Tensor


def _turned_scene(
    networks: PretrainNetworks,
    batch: Batch,
    settings: PretrainSettings,
    generator: torch.Generator,
    device: torch.device | str,
) -> _Scene:
    spectra = batch_spectra(batch, networks.audio_encoder, device)
    frames = batch["frames"].to(device, non_blocking=True)
    transform = random_transforms(
        len(frames),
        rotations=settings.augmentation_axes if "rotations" in settings.augmentation else "none",
        swaps="swaps" in settings.augmentation,
        generator=generator,
    ).to(device)
    features = turned_features(spectra, transform)
    directions = choose_directions(features[:, 4:], spectra[:, 0], settings.directions, generator)
    return _Scene(features, directions, frames, transform.transpose(1, 2))


def _crops(scene: _Scene, cameras: Tensor, settings: PretrainSettings) -> Tensor:
    """What cameras (N, K, 3, 3) see: (N, K, time, 3, size, size), colours from 0 to 1."""
    return perspective_crops(
        scene.frames,
        scene.back[:, None] @ cameras,
        field_of_view_deg=settings.field_of_view_deg,
        size_px=settings.crop_px,
    ).div_(255.0)


def _viewed_anew(cameras: Tensor, generator: torch.Generator) -> Tensor:
    """Cameras (..., 3, 3), each turned a little about its own axes."""
    drawn = torch.randn((*cameras.shape[:-2], 3), generator=generator)
    forward, left, up = torch.deg2rad(drawn * torch.tensor(_VIEW_TURNS_DEG)).unbind(-1)
    zero = torch.zeros_like(up)
    rows = [zero, -up, left, up, zero, -forward, -left, forward, zero]
    turn = torch.linalg.matrix_exp(torch.stack(rows, dim=-1).unflatten(-1, (3, 3)))
    return cameras @ turn.to(cameras.device)


def _cameras(vectors: Tensor, settings: PretrainSettings, generator: torch.Generator) -> Tensor:
    """Cameras (batch, K × (1 + rotations), 3, 3) at directions (batch, K, 3).

    Those of the rotated negatives, which only ``recording_wise`` has, come after the K.
    """
    cameras = camera_matrices(vectors)
    if settings.objective != "recording_wise":
        return cameras
    views = [cameras]
    for _ in range(settings.rotated_negatives):
        turn = random_rotations(
            len(vectors),
            axes=settings.negative_axes,
            generator=generator,
            minimum_angle_deg=settings.minimum_rotation_deg,
        ).to(vectors.device)
        views.append(turn.transpose(1, 2)[:, None] @ cameras)
    return torch.cat(views, dim=1)


def _recalled(
    earlier: EarlierPairs | None, audio: Tensor, visual: Tensor
) -> tuple[Tensor, Tensor] | None:
    """What ``earlier`` holds, before these rows (row, embedding) are added to it."""
    if earlier is None:
        return None
    held = earlier.pairs()
    earlier.add(audio, visual)
    return held


def _of_all_segments(tensor: Tensor, settings: PretrainSettings) -> Tensor:
    """Something of each window of this rank as that of each segment of all ranks."""
    return gather_with_gradients(tensor.repeat_interleave(settings.segments, dim=0))


def _doa_wise_loss(
    audio: Tensor,
    visual: Tensor,
    temperature: Tensor,
    asked: Tensor,
    directions: Directions,
    settings: PretrainSettings,
    earlier: EarlierPairs | None,
) -> Tensor:
    """The DOA-wise loss of all windows, and of each window alone where that has a share.

    Args:
        audio: (N, K + L, embedding) of all ranks, at the L listening directions too.
        visual: (N, K, embedding) of all ranks.
        temperature: scalar.
        asked: (windows of this rank, K + L, 3): where ``audio`` was asked.
        directions: of this rank's windows.
        settings: all choices.
        earlier: further negatives of the first.
    """

    def of_all_segments(tensor: Tensor) -> Tensor:
        return _of_all_segments(tensor, settings)

    count = visual.shape[1]
    seen, heard_only = audio[:, :count], audio[:, count:]
    heard_only = standardise(heard_only, like=seen)
    seen, visual = standardise(seen), standardise(visual)
    weights, excluded = of_all_segments(directions.weights), of_all_segments(directions.excluded)
    loss = doa_wise_loss(
        seen,
        visual,
        temperature,
        weights=weights,
        exclude=excluded,
        earlier=_recalled(earlier, seen.flatten(0, 1), visual.flatten(0, 1)),
    )
    if settings.own_window_share == 0.0:
        return loss
    vectors = of_all_segments(asked)
    own = own_window_loss(
        seen,
        visual,
        temperature,
        weights=weights,
        exclude=excluded,
        heard_only=heard_only,
        near=near_directions(vectors[:, :count], vectors[:, count:], settings.directions),
    )
    return (1.0 - settings.own_window_share) * loss + settings.own_window_share * own

"""Contrastive losses of audio-visual pretraining and the regression losses of SELD.

Embeddings enter unnormalised; similarity is the cosine divided by a temperature, and every
contrastive loss is the mean of audio→visual and visual→audio cross-entropy. All of it is computed
in float32 whatever autocast surrounds it: bfloat16 keeps three digits of a cosine, which a
temperature of 0.07 turns into logits that are several hundredths off.

Several workers: every rank passes its embeddings (and weights and masks) through
:func:`gather_with_gradients` and computes the loss of the joined batch, so that all ranks hold the
same loss. The gather's backward sums what all ranks say about one rank's embeddings, and the loop
averages parameter gradients over ranks (:func:`trainables.steps.average_gradients`, as
``DistributedDataParallel`` does): together that is exactly the gradient of one rank on the joined
batch. Do not sum them, and do not divide the loss by the number of ranks.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor

from seld.errors import InputError


def doa_wise_loss(
    audio: Tensor,
    visual: Tensor,
    temperature: float | Tensor,
    *,
    weights: Tensor | None = None,
    exclude: Tensor | None = None,
    earlier: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """InfoNCE over all directions of all recordings: (n, k) against every (m, l).

    Positives are the pairs of one recording and one direction. The exact form is [ours]; the
    paper only asks that such pairs be close.

    Args:
        audio: (recording, direction, embedding) audio embeddings.
        visual: embeddings of the crops at the same directions, same shape.
        temperature: positive; a tensor where it is learnt.
        weights: (recording, direction), at least 0: how much each pair counts as an anchor; only
            ratios matter. A pair of weight 0 (an empty direction, where every other empty
            direction would be a false negative) pulls nothing together, but stays among the
            negatives of the others.
        exclude: (recording, direction k, direction l) bool: true where the sound at k and the
            crop at l of one recording are too near to be negatives. The diagonal is ignored.
        earlier: audio and visual embeddings (row, embedding) of other recordings: the visual ones
            are further negatives of each sound, the audio ones of each crop.

    Returns:
        Scalar; 0 where all weights are 0.
    """
    directions = audio.shape[1]
    with _full_precision(audio):
        audio, visual = audio.flatten(0, 1), visual.flatten(0, 1)
        logits = cosines(audio, visual) / _checked(temperature)
        if exclude is not None:
            off_diagonal = ~torch.eye(directions, dtype=torch.bool, device=exclude.device)
            logits = logits.masked_fill(torch.block_diag(*(exclude & off_diagonal)), float("-inf"))
        return _symmetric_cross_entropy(
            logits,
            None if weights is None else weights.flatten(),
            *_earlier_logits(audio, visual, temperature, earlier),
        )


def own_window_loss(
    audio: Tensor,
    visual: Tensor,
    temperature: float | Tensor,
    *,
    weights: Tensor,
    exclude: Tensor,
    heard_only: Tensor,
    near: Tensor,
) -> Tensor:
    """InfoNCE over the directions of each window alone: (n, k) against every (n, l). [ours]

    Most negatives of the DOA-wise loss are other windows, told apart by what is heard; these are
    told apart only by where it is.

    Args:
        audio: (window, K, embedding) audio embeddings.
        visual: embeddings of the crops at the same directions, same shape.
        temperature: positive; a tensor where it is learnt.
        weights: (window, K), at least 0 and not all 0: how much each pair counts.
        exclude: (window, K, K) bool, false on the diagonal: pairs that are no negatives.
        heard_only: (window, L, embedding) audio embeddings at directions without a crop: further
            negatives of each crop.
        near: (window, K, L) bool: which of these are too near a crop's direction to be negatives.
    """
    with _full_precision(audio):
        scale = _checked(temperature)
        audio = F.normalize(audio.float(), dim=-1)
        visual = F.normalize(visual.float(), dim=-1)
        elsewhere = F.normalize(heard_only.float(), dim=-1)
        logits = (audio @ visual.transpose(1, 2) / scale).masked_fill(exclude, -torch.inf)
        further = (visual @ elsewhere.transpose(1, 2) / scale).masked_fill(near, -torch.inf)
        heard = torch.cat([logits.transpose(1, 2), further], dim=2)  # (window, crop, K + L)
        both = logits.logsumexp(dim=2) + heard.logsumexp(dim=2)
        losses = 0.5 * both - logits.diagonal(dim1=1, dim2=2)
        return (losses * weights).sum() / weights.sum()


def recording_wise_loss(
    audio: Tensor,
    visual: Tensor,
    temperature: float | Tensor,
    *,
    rotated_visual: Tensor | None = None,
) -> Tensor:
    """InfoNCE over recordings whose similarity is the mean cosine over directions.

    Args:
        audio: (recording, direction, embedding).
        visual: the crops' embeddings at the same directions, same shape.
        temperature: positive; a tensor where it is learnt.
        rotated_visual: (recording, rotation, direction, embedding): the same recordings' pictures
            turned at random while the sound stays. Each recording's sound has them as extra
            negatives, which it can only tell from the positive by knowing where things are.
            As candidates for a sound they enter audio→visual only; [ours].
    """
    with _full_precision(audio):
        scale = _checked(temperature)
        audio = F.normalize(audio.float(), dim=-1)
        visual = F.normalize(visual.float(), dim=-1)
        # The mean of cosines over directions is one inner product of the concatenated unit vectors.
        logits = audio.flatten(1) @ visual.flatten(1).T / audio.shape[1] / scale
        rotated_logits = None
        if rotated_visual is not None:
            rotated = F.normalize(rotated_visual.float(), dim=-1)
            rotated_logits = torch.einsum("nkd,nrkd->nr", audio, rotated) / audio.shape[1] / scale
        return _symmetric_cross_entropy(logits, extra_visual=rotated_logits)


def avc_loss(
    audio: Tensor,
    visual: Tensor,
    temperature: float | Tensor,
    *,
    earlier: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Audio-visual correspondence without directions: InfoNCE over (recording, embedding).

    ``earlier`` is that of :func:`doa_wise_loss`.
    """
    with _full_precision(audio):
        logits = cosines(audio, visual) / _checked(temperature)
        return _symmetric_cross_entropy(
            logits, None, *_earlier_logits(audio, visual, temperature, earlier)
        )


def standardise(embeddings: Tensor, *, like: Tensor | None = None) -> Tensor:
    """Zero mean and unit variance per dimension over all leading axes; no parameters. [ours]

    ``like`` takes mean and variance from other embeddings instead.

    Keeps embeddings from sharing one large common component, which the cosine would see as
    similarity. With several workers, apply it after the gather, so that the statistics are the
    joined batch's.
    """
    with _full_precision(embeddings):
        rows = (embeddings if like is None else like).float().flatten(0, -2)
        variance, mean = torch.var_mean(rows, dim=0, correction=0)
        return (embeddings.float() - mean) * torch.rsqrt(variance + 1e-5)


def gather_with_gradients(tensor: Tensor) -> Tensor:
    """Concatenate every rank's ``tensor`` along its first axis, in order of rank.

    All ranks must pass the same shape. Differentiable: a rank's gradient is the sum of what all
    ranks' losses say about its part (see the module's docstring for what that means under DDP).
    Without ``torch.distributed``, or with one rank, this is ``tensor`` itself.
    """
    if not distributed():
        return tensor
    return _Gather.apply(tensor)  # pyright: ignore[reportReturnType]


def distributed() -> bool:
    """Whether several ranks train together."""
    # Ray Train makes a process group of one, too, whose every operation is a detour.
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    return torch.distributed.get_world_size() > 1


def cosines(first: Tensor, second: Tensor) -> Tensor:
    """Cosine similarities (n, m) of embeddings (n, dim) and (m, dim)."""
    return F.normalize(first.float(), dim=-1) @ F.normalize(second.float(), dim=-1).T


def accdoa_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of activity-coupled direction vectors, both (batch, frame, class, 3)."""
    return F.mse_loss(prediction.float(), target.float())


def adpit_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Multi-ACCDOA loss: auxiliary duplicating permutation invariant training.

    Per frame and class, the squared error of the best of all ways to give each track one of the
    active sources so that every source is given (Shimada et al., ICASSP 2022; the mean over
    everything, as in the DCASE 2022 baseline).

    Args:
        prediction: (batch, frame, track = 3, class, 3).
        target: (batch, frame, 6, 4, class): activity, x, y, z of the dummy tracks A0 (a class
            with one source), B0 B1 (two) and C0 C1 C2 (three); at most one group is active.
    """
    activity = target[:, :, :, 0].float()
    vectors = (target[:, :, :, 1:].float() * activity.unsqueeze(3)).transpose(3, 4)
    errors = (prediction.float().unsqueeze(3) - vectors.unsqueeze(2)).square().sum(-1)
    # errors: (batch, frame, track, dummy, class)

    active = torch.stack([activity[:, :, members].amax(2) > 0 for members in _GROUPS], dim=2)
    usable = active.clone()
    usable[:, :, 0] |= ~active.any(2)  # silence: the silent A0 has every track aim at zero
    costs = []
    for group, assignment in _ASSIGNMENTS:
        cost = sum(errors[:, :, track, dummy] for track, dummy in enumerate(assignment))
        assert isinstance(cost, Tensor)
        costs.append(cost.masked_fill(~usable[:, :, group], float("inf")))
    best = torch.stack(costs).min(0).values
    return best.mean() / (len(_GROUPS) * 3)


#: The dummy tracks of a class with one, two and three simultaneous sources.
_GROUPS: tuple[tuple[int, ...], ...] = ((0,), (1, 2), (3, 4, 5))

#: (group, dummy track of each of the three predicted tracks): every assignment that leaves out
#: no source of its group, 1 + 6 + 6 in all.
_ASSIGNMENTS: tuple[tuple[int, tuple[int, ...]], ...] = tuple(
    (group, assignment)
    for group, members in enumerate(_GROUPS)
    for assignment in itertools.product(members, repeat=len(_GROUPS))
    if set(assignment) == set(members)
)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        parts = [torch.empty_like(tensor) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        # A copy: the same memory may be the gradient of something else, as of a sum's other term.
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(gradient)
        return gradient.chunk(torch.distributed.get_world_size())[torch.distributed.get_rank()]


def _earlier_logits(
    audio: Tensor,
    visual: Tensor,
    temperature: float | Tensor,
    earlier: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor | None, Tensor | None]:
    """Logits (n, m) of sounds with earlier pictures, and of pictures with earlier sounds."""
    if earlier is None:
        return None, None
    sounds, pictures = earlier
    return cosines(audio, pictures) / temperature, cosines(visual, sounds) / temperature


def _symmetric_cross_entropy(
    logits: Tensor,
    weights: Tensor | None = None,
    extra_visual: Tensor | None = None,
    extra_audio: Tensor | None = None,
) -> Tensor:
    """Mean over both directions of the cross-entropy with the diagonal as the right answer.

    Args:
        logits: (sound, picture), square; -inf takes a candidate out, both ways.
        weights: (pair,) relative weights.
        extra_visual: (sound, extra) further pictures, each a wrong answer for the sounds.
        extra_audio: (picture, extra) further sounds, each a wrong answer for the pictures.
    """
    to_visual = logits if extra_visual is None else torch.cat([logits, extra_visual], dim=1)
    to_audio = logits.T if extra_audio is None else torch.cat([logits.T, extra_audio], dim=1)
    losses = (to_visual.logsumexp(1) + to_audio.logsumexp(1)) / 2 - logits.diagonal()
    if weights is None:
        return losses.mean()
    weights = weights.to(losses.dtype)
    return (losses * weights).sum() / weights.sum().clamp_min(torch.finfo(losses.dtype).tiny)


def _checked(temperature: float | Tensor) -> float | Tensor:
    # A learnt temperature is not looked at: reading it would make the GPU wait.
    if not isinstance(temperature, Tensor) and not temperature > 0:
        raise InputError("contrastive loss", "temperature", temperature, "a positive number")
    return temperature


def _full_precision(tensor: Tensor) -> torch.autocast:
    return torch.autocast(tensor.device.type, enabled=False)

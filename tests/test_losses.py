"""Losses against slow, independent references, and what must hold of them."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from seld.errors import InputError
from seld.losses import (
    accdoa_loss,
    adpit_loss,
    avc_loss,
    doa_wise_loss,
    gather_with_gradients,
    own_window_loss,
    recording_wise_loss,
    standardise,
)
from tests.ranks import RANKS, run_in_ranks
from tests.slow_losses import cosine, cross_entropy, slow_doa_wise


def embeddings(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_doa_wise_loss_is_the_loop_over_all_pairs(temperature: float) -> None:
    audio, visual = embeddings(0, 3, 4, 5), embeddings(1, 3, 4, 5)
    weights = torch.rand(3, 4, generator=torch.Generator().manual_seed(2))
    weights[1, 2] = 0.0
    exclude = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(3)) < 0.4  # asymmetric
    plain = doa_wise_loss(audio, visual, temperature).item()
    none = torch.zeros_like(exclude)
    assert plain == pytest.approx(
        slow_doa_wise(audio, visual, temperature, torch.ones(3, 4), none), rel=1e-5
    )
    full = doa_wise_loss(audio, visual, temperature, weights=weights, exclude=exclude).item()
    assert full == pytest.approx(
        slow_doa_wise(audio, visual, temperature, weights, exclude), rel=1e-5
    )


def test_earlier_embeddings_are_wrong_answers_for_either_side() -> None:
    audio, visual = embeddings(0, 3, 4, 5), embeddings(1, 3, 4, 5)
    weights = torch.rand(3, 4, generator=torch.Generator().manual_seed(2))
    exclude = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(3)) < 0.4
    earlier = embeddings(4, 6, 5), embeddings(5, 7, 5)
    loss = doa_wise_loss(audio, visual, 0.2, weights=weights, exclude=exclude, earlier=earlier)
    expected = slow_doa_wise(audio, visual, 0.2, weights, exclude, earlier)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss = avc_loss(audio[:, 0], visual[:, 0], 0.2, earlier=earlier)
    first = slice(0, 1)
    everything, nothing = torch.ones(3, 1), torch.zeros(3, 1, 1)
    expected = slow_doa_wise(audio[:, first], visual[:, first], 0.2, everything, nothing, earlier)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_own_window_loss_is_the_doa_wise_loss_of_each_window_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    audio, visual = torch.randn(2, 3, 4, 8, generator=generator)
    weights = torch.rand(3, 4, generator=generator)
    excluded = torch.rand(3, 4, 4, generator=generator) < 0.2
    excluded &= ~torch.eye(4, dtype=torch.bool)
    temperature = torch.tensor(0.2)
    alone = [
        doa_wise_loss(
            audio[[window]],
            visual[[window]],
            temperature,
            weights=weights[[window]],
            exclude=excluded[[window]],
        )
        * weights[window].sum()
        for window in range(3)
    ]
    loss = own_window_loss(
        audio,
        visual,
        temperature,
        weights=weights,
        exclude=excluded,
        heard_only=torch.zeros(3, 0, 8),
        near=torch.zeros(3, 4, 0, dtype=torch.bool),
    )
    assert torch.allclose(loss, torch.stack(alone).sum() / weights.sum(), atol=1e-6)


def test_directions_without_a_crop_are_further_wrong_answers_for_each_crop() -> None:
    """Against a plain loop over windows and crops."""
    generator = torch.Generator().manual_seed(3)
    audio, visual = torch.randn(2, 3, 4, 8, generator=generator)
    heard_only = torch.randn(3, 5, 8, generator=generator)
    weights = torch.rand(3, 4, generator=generator)
    excluded = torch.zeros(3, 4, 4, dtype=torch.bool)
    near = torch.rand(3, 4, 5, generator=generator) < 0.3
    temperature = torch.tensor(0.2)

    def logit(first: Tensor, second: Tensor) -> float:
        return cosine(first, second) / 0.2

    total = 0.0
    for window in range(3):
        for own in range(4):
            right = logit(audio[window, own], visual[window, own])
            crops = [logit(audio[window, own], visual[window, other]) for other in range(4)]
            sounds = [logit(audio[window, other], visual[window, own]) for other in range(4)]
            sounds += [
                logit(heard_only[window, far], visual[window, own])
                for far in range(5)
                if not near[window, own, far]
            ]
            loss = 0.0
            for candidates in (crops, sounds):
                loss += 0.5 * (math.log(sum(math.exp(value) for value in candidates)) - right)
            total += loss * weights[window, own].item()
    found = own_window_loss(
        audio,
        visual,
        temperature,
        weights=weights,
        exclude=excluded,
        heard_only=heard_only,
        near=near,
    )
    assert found.item() == pytest.approx(total / weights.sum().item(), rel=1e-5)


def test_an_embedding_that_ignores_direction_pays_for_every_direction_without_a_crop() -> None:
    """The same embedding at all L + K directions: v → a is a draw among them."""
    same = torch.randn(1, 1, 8, generator=torch.Generator().manual_seed(0))
    audio, heard_only = same.expand(2, 1, 8), same.expand(2, 7, 8)
    visual = torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(1))
    loss = own_window_loss(
        audio,
        visual,
        torch.tensor(0.1),
        weights=torch.ones(2, 1),
        exclude=torch.zeros(2, 1, 1, dtype=torch.bool),
        heard_only=heard_only,
        near=torch.zeros(2, 1, 7, dtype=torch.bool),
    )
    assert loss.item() == pytest.approx(0.5 * math.log(8), rel=1e-5)


def slow_recording_wise(audio, visual, rotated, temperature) -> float:
    def similarity(sound: Tensor, pictures: Tensor) -> float:
        cosines = [cosine(a, v) for a, v in zip(sound, pictures, strict=True)]
        return sum(cosines) / len(cosines) / temperature

    losses = []
    for n in range(len(audio)):
        right = similarity(audio[n], visual[n])
        to_visual = [similarity(audio[n], pictures) for pictures in visual]
        to_visual += [similarity(audio[n], pictures) for pictures in rotated[n]]
        to_audio = [similarity(sound, visual[n]) for sound in audio]
        losses += [cross_entropy(right, to_visual), cross_entropy(right, to_audio)]
    return sum(losses) / len(losses)


def test_recording_wise_loss_is_the_loop_over_recordings_and_own_rotations() -> None:
    audio, visual, rotated = (
        embeddings(0, 4, 3, 6),
        embeddings(1, 4, 3, 6),
        embeddings(2, 4, 2, 3, 6),
    )
    assert recording_wise_loss(audio, visual, 0.2).item() == pytest.approx(
        slow_recording_wise(audio, visual, rotated[:, :0], 0.2), rel=1e-5
    )
    assert recording_wise_loss(audio, visual, 0.2, rotated_visual=rotated).item() == pytest.approx(
        slow_recording_wise(audio, visual, rotated, 0.2), rel=1e-5
    )


def test_rotated_negatives_only_ever_raise_the_loss() -> None:
    audio = embeddings(0, 4, 3, 6)
    turned = audio.roll(1, dims=1).unsqueeze(1)
    without = recording_wise_loss(audio, audio, 0.1)
    assert recording_wise_loss(audio, audio, 0.1, rotated_visual=turned) > without


def test_avc_loss_is_doa_wise_with_one_direction() -> None:
    audio, visual = embeddings(0, 7, 5), embeddings(1, 7, 5)
    expected = slow_doa_wise(
        audio[:, None], visual[:, None], 0.1, torch.ones(7, 1), torch.zeros(7, 1, 1)
    )
    assert avc_loss(audio, visual, 0.1).item() == pytest.approx(expected, rel=1e-5)


def test_alignment_beats_misalignment_and_scale_does_not_matter() -> None:
    audio = embeddings(0, 5, 4, 16)
    aligned = doa_wise_loss(audio, 3 * audio, 0.02)
    assert aligned < 1e-3
    assert doa_wise_loss(audio, audio.roll(1, dims=1), 0.02) > 10
    torch.testing.assert_close(doa_wise_loss(7 * audio, audio, 0.02), aligned)


def test_order_of_recordings_and_directions_does_not_matter() -> None:
    audio, visual = embeddings(0, 5, 4, 8), embeddings(1, 5, 4, 8)
    rows, columns = torch.randperm(5), torch.randperm(4)
    for loss in (doa_wise_loss, recording_wise_loss):
        torch.testing.assert_close(
            loss(audio[rows][:, columns], visual[rows][:, columns], 0.1),
            loss(audio, visual, 0.1),
        )


def test_infinite_temperature_gives_chance() -> None:
    audio, visual = embeddings(0, 5, 4, 8), embeddings(1, 5, 4, 8)
    assert doa_wise_loss(audio, visual, 1e6).item() == pytest.approx(math.log(20), abs=1e-4)
    assert recording_wise_loss(audio, visual, 1e6).item() == pytest.approx(math.log(5), abs=1e-4)


def test_a_row_without_any_negative_costs_nothing_and_moves_nothing() -> None:
    audio = embeddings(0, 1, 3, 8).requires_grad_()
    visual = embeddings(1, 1, 3, 8)
    loss = doa_wise_loss(audio, visual, 0.1, exclude=torch.ones(1, 3, 3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert audio.grad is not None
    torch.testing.assert_close(audio.grad, torch.zeros_like(audio))


def test_all_weights_zero_is_zero_with_finite_gradients() -> None:
    audio = embeddings(0, 2, 3, 8).requires_grad_()
    loss = doa_wise_loss(audio, embeddings(1, 2, 3, 8), 0.1, weights=torch.zeros(2, 3))
    loss.backward()
    assert loss.item() == 0
    assert audio.grad is not None
    assert not audio.grad.any()


def test_temperature_can_be_learnt_and_must_be_positive() -> None:
    temperature = torch.tensor(0.1, requires_grad=True)
    doa_wise_loss(embeddings(0, 2, 3, 8), embeddings(1, 2, 3, 8), temperature).backward()
    assert temperature.grad is not None
    assert temperature.grad != 0
    for wrong in (0.0, -1.0, math.nan):
        with pytest.raises(InputError, match="temperature"):
            avc_loss(embeddings(0, 2, 3), embeddings(1, 2, 3), wrong)


def test_autocast_does_not_touch_the_losses() -> None:
    audio, visual = embeddings(0, 4, 3, 16), embeddings(1, 4, 3, 16)
    outside = doa_wise_loss(audio, visual, 0.01)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(doa_wise_loss(audio, visual, 0.01), outside)


def test_standardise_has_zero_mean_and_unit_variance() -> None:
    result = standardise(3 + 5 * embeddings(0, 20, 3, 8)).flatten(0, 1)
    torch.testing.assert_close(result.mean(0), torch.zeros(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(result.var(0, correction=0), torch.ones(8), atol=1e-4, rtol=0)


def test_accdoa_loss_by_hand() -> None:
    prediction, target = torch.zeros(1, 1, 2, 3), torch.zeros(1, 1, 2, 3)
    target[0, 0, 0] = torch.tensor([0.0, 1.0, 0.0])
    prediction[0, 0, 0] = torch.tensor([0.5, 1.0, 0.0])
    assert accdoa_loss(prediction, target).item() == pytest.approx(0.25 / 6)


def adpit_target(sources: list[list[np.ndarray]]) -> Tensor:
    """(1, 1, 6, 4, class) of each class' list of up to three unit vectors."""
    target = torch.zeros(1, 1, 6, 4, len(sources))
    first_dummy = {1: 0, 2: 1, 3: 3}
    for class_id, vectors in enumerate(sources):
        for index, vector in enumerate(vectors):
            dummy = first_dummy[len(vectors)] + index
            target[0, 0, dummy, :, class_id] = torch.tensor([1.0, *vector])
    return target


def brute_force_adpit(prediction: np.ndarray, sources: list[list[np.ndarray]]) -> float:
    """The cheapest way to give the tracks to the sources with no source left out."""
    total = 0.0
    for class_id, vectors in enumerate(sources):
        vectors = vectors or [np.zeros(3)]
        total += min(
            sum(
                float(np.square(prediction[track, class_id] - vectors[source]).sum())
                for track, source in enumerate(choice)
            )
            for choice in itertools.product(range(len(vectors)), repeat=3)
            if len(set(choice)) == len(vectors)
        )
    return total / (len(sources) * 9)


def literal_adpit(output: Tensor, target: Tensor) -> Tensor:
    """The 13 permutations written out with their pads, after the published description.

    output (batch, frame, 3 tracks × 3 axes, class), target (batch, frame, 6, 4, class).
    """
    track = [target[:, :, dummy, 0:1] * target[:, :, dummy, 1:] for dummy in range(6)]
    a0, b0, b1, c0, c1, c2 = track

    def joined(*parts: Tensor) -> Tensor:
        return torch.cat(parts, dim=2)

    group_a = [joined(a0, a0, a0)]
    group_b = [
        joined(b0, b0, b1), joined(b0, b1, b0), joined(b0, b1, b1),
        joined(b1, b0, b0), joined(b1, b0, b1), joined(b1, b1, b0),
    ]  # fmt: skip
    group_c = [
        joined(c0, c1, c2), joined(c0, c2, c1), joined(c1, c0, c2),
        joined(c1, c2, c0), joined(c2, c0, c1), joined(c2, c1, c0),
    ]  # fmt: skip
    candidates = [a + group_b[0] + group_c[0] for a in group_a]
    candidates += [b + group_a[0] + group_c[0] for b in group_b]
    candidates += [c + group_a[0] + group_b[0] for c in group_c]
    errors = torch.stack([(output - candidate).square().mean(2) for candidate in candidates])
    return errors.amin(0).mean()


def random_sources(generator: np.random.Generator, classes: int) -> list[list[np.ndarray]]:
    sources = []
    for _ in range(classes):
        vectors = generator.normal(size=(generator.integers(4), 3))
        sources.append([vector / np.linalg.norm(vector) for vector in vectors])
    return sources


@pytest.mark.parametrize("seed", range(10))
def test_adpit_is_the_cheapest_assignment(seed: int) -> None:
    generator = np.random.default_rng(seed)
    sources = random_sources(generator, 6)
    prediction = generator.normal(size=(3, 6, 3))
    tensor = torch.tensor(prediction)[None, None]
    target = adpit_target(sources)
    loss = adpit_loss(tensor, target).item()
    assert loss == pytest.approx(brute_force_adpit(prediction, sources), rel=1e-5)
    literal = literal_adpit(tensor.transpose(3, 4).flatten(2, 3).float(), target)
    assert loss == pytest.approx(literal.item(), rel=1e-5)


def test_adpit_gradient_is_that_of_the_written_out_form() -> None:
    generator = np.random.default_rng(3)
    target = torch.cat([adpit_target(random_sources(generator, 5)) for _ in range(4)], dim=1)
    prediction = embeddings(0, 1, 4, 3, 5, 3).requires_grad_()
    adpit_loss(prediction, target).backward()
    ours = prediction.grad
    prediction.grad = None
    literal_adpit(prediction.transpose(3, 4).flatten(2, 3), target).backward()
    torch.testing.assert_close(ours, prediction.grad)


def test_adpit_ignores_the_order_of_tracks() -> None:
    target = adpit_target(random_sources(np.random.default_rng(1), 5))
    prediction = embeddings(0, 1, 1, 3, 5, 3)
    expected = adpit_loss(prediction, target)
    for order in itertools.permutations(range(3)):
        torch.testing.assert_close(adpit_loss(prediction[:, :, list(order)], target), expected)


# --- several workers ----------------------------------------------------------------------------


class TwoTowers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.audio, self.visual = nn.Linear(6, 8).double(), nn.Linear(5, 8).double()

    def forward(self, sound: Tensor, pictures: Tensor) -> tuple[Tensor, Tensor]:
        return self.audio(sound), self.visual(pictures)


def joined_batch() -> tuple[Tensor, Tensor, Tensor]:
    return (
        embeddings(0, 6, 3, 6).double(),
        embeddings(1, 6, 3, 5).double(),
        embeddings(2, 6, 3).abs(),
    )


def loss_of(module: nn.Module, sound: Tensor, pictures: Tensor, weights: Tensor) -> Tensor:
    audio, visual = module(sound, pictures)
    # Both terms of a sum have one and the same gradient.
    together = (gather_with_gradients(audio) + gather_with_gradients(visual)).square().mean()
    audio, visual = standardise(gather_with_gradients(audio)), gather_with_gradients(visual)
    weights = gather_with_gradients(weights)
    recording_wise = recording_wise_loss(
        audio, visual, 0.1, rotated_visual=visual.roll(1, dims=1).unsqueeze(1)
    )
    return doa_wise_loss(audio, visual, 0.1, weights=weights) + recording_wise + together


def run_rank(rank: int, folder: Path) -> None:
    module = nn.parallel.DistributedDataParallel(TwoTowers())
    share = slice(rank * 3, (rank + 1) * 3)
    loss = loss_of(module, *(part[share] for part in joined_batch()))
    loss.backward()
    gradients = [parameter.grad for parameter in module.parameters()]
    torch.save((loss.detach(), gradients), folder / f"rank{rank}.pt")


@pytest.mark.slow  # starts two Python processes
def test_two_ranks_have_the_loss_and_gradients_of_one_on_the_joined_batch(tmp_path: Path) -> None:
    module = TwoTowers()
    expected = loss_of(module, *joined_batch())
    expected.backward()
    run_in_ranks(run_rank, tmp_path)
    for rank in range(RANKS):
        loss, gradients = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-6, atol=0)
        for gradient, parameter in zip(gradients, module.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-6)


def test_gather_without_distributed_is_the_tensor_itself() -> None:
    tensor = embeddings(0, 2, 3)
    assert gather_with_gradients(tensor) is tensor

"""Losses written out pair by pair, in plain Python."""

from __future__ import annotations

import itertools
import math

from torch import Tensor


def cosine(first: Tensor, second: Tensor) -> float:
    first, second = first.double(), second.double()
    return float(first @ second / (first.norm() * second.norm()))


def cross_entropy(right: float, candidates: list[float]) -> float:
    return math.log(sum(math.exp(candidate - right) for candidate in candidates))


def slow_doa_wise(audio, visual, temperature, weights, exclude, earlier=((), ())) -> float:
    """Every pair of the loss in turn; all arguments as those of ``doa_wise_loss``."""
    pairs = list(itertools.product(range(audio.shape[0]), range(audio.shape[1])))
    total, weight_sum = 0.0, 0.0
    for n, k in pairs:
        right = cosine(audio[n, k], visual[n, k]) / temperature
        to_visual, to_audio = [right], [right]
        earlier_audio, earlier_visual = earlier
        to_visual += [cosine(audio[n, k], picture) / temperature for picture in earlier_visual]
        to_audio += [cosine(sound, visual[n, k]) / temperature for sound in earlier_audio]
        for m, l in pairs:  # noqa: E741
            if (m, l) == (n, k):
                continue
            if not (m == n and exclude[n, k, l]):
                to_visual.append(cosine(audio[n, k], visual[m, l]) / temperature)
            if not (m == n and exclude[n, l, k]):
                to_audio.append(cosine(audio[m, l], visual[n, k]) / temperature)
        loss = (cross_entropy(right, to_visual) + cross_entropy(right, to_audio)) / 2
        total += float(weights[n, k]) * loss
        weight_sum += float(weights[n, k])
    return total / weight_sum

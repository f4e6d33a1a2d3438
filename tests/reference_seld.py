"""The DCASE 2022 metric, slow and literal: one Python loop per block, class, frame and track.

Written from the description of the evaluator, shares no code with ``seld.metrics``, and exists to
be compared with it. Rows are ``(frame, class_id, azimuth_deg, elevation_deg)`` in file order.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from scipy import stats
from scipy.optimize import linear_sum_assignment

Row = tuple[int, int, float, float]
Direction = tuple[float, float]
#: class → frame → directions
Block = dict[int, dict[int, list[Direction]]]


class ReferenceSeld:
    """Collects recordings one at a time, then tells their scores."""

    def __init__(self, class_count: int) -> None:
        self.class_count = class_count
        self.true = [0] * class_count
        self.spatial = [0] * class_count
        self.false_positives = [0] * class_count
        self.false_negatives = [0] * class_count
        self.references = [0] * class_count
        self.distance = [0.0] * class_count
        self.localised = [0] * class_count
        self.not_localised = [0] * class_count
        self.substitutions = self.deletions = self.insertions = 0

    def add(self, reference: Sequence[Row], prediction: Sequence[Row]) -> ReferenceSeld:
        """Count one recording."""
        last_frame = max(row[0] for row in reference)
        for block in range(math.ceil(last_frame / 10)):
            self._add_block(_block(reference, block), _block(prediction, block))
        return self

    def _add_block(self, reference: Block, prediction: Block) -> None:
        block_fp = block_fn = 0
        for class_id in range(self.class_count):
            fp, fn = self._add_class(
                class_id, reference.get(class_id, {}), prediction.get(class_id, {})
            )
            block_fp += fp
            block_fn += fn
        self.substitutions += min(block_fp, block_fn)
        self.deletions += max(0, block_fn - block_fp)
        self.insertions += max(0, block_fp - block_fn)

    def _add_class(
        self,
        class_id: int,
        reference: dict[int, list[Direction]],
        prediction: dict[int, list[Direction]],
    ) -> tuple[int, int]:
        n_ref = max((len(rows) for rows in reference.values()), default=0)
        n_pred = max((len(rows) for rows in prediction.values()), default=0)
        self.references[class_id] += n_ref
        fp = fn = spatial = 0
        if n_ref and n_pred:
            tracks: dict[int, list[float]] = defaultdict(list)
            for frame in sorted(reference):
                if frame in prediction:
                    cost = np.array(
                        [[_distance(a, b) for b in prediction[frame]] for a in reference[frame]]
                    )
                    for row, column in zip(*linear_sum_assignment(cost), strict=True):
                        tracks[int(row)].append(float(cost[row, column]))
            if not tracks:
                fn = n_pred
            else:
                for distances in tracks.values():
                    average = sum(distances) / len(distances)
                    self.distance[class_id] += average
                    self.localised[class_id] += 1
                    if average <= 20:
                        self.true[class_id] += 1
                    else:
                        spatial += 1
                fp = max(0, n_pred - n_ref)
                fn = max(0, n_ref - n_pred)
        elif n_ref:
            fn = n_ref
        elif n_pred:
            fp = n_pred
        self.spatial[class_id] += spatial
        self.false_positives[class_id] += fp
        self.false_negatives[class_id] += fn
        self.not_localised[class_id] += fn
        return fp + spatial, fn

    def scores(self, average: str) -> list[float]:
        """ER, F, LE, LR and the SELD error."""
        errors = self.substitutions + self.deletions + self.insertions
        er = errors / sum(self.references)
        if average == "micro":
            rows = [[sum(column) for column in self._columns()]]
        else:
            rows = list(zip(*self._columns(), strict=True))
        per_class = []
        for true, spatial, fp, fn, distance, localised, not_localised in rows:
            f = _ratio(true, true + spatial + (fp + fn) / 2)
            le = distance / localised if localised else 180.0
            lr = _ratio(localised, localised + not_localised)
            per_class.append([er, f, le, lr, (er + 1 - f + le / 180 + 1 - lr) / 4])
        return [float(value) for value in np.mean(per_class, axis=0)]

    def _columns(self) -> list[list[float]]:
        return [
            list(column)
            for column in (
                self.true,
                self.spatial,
                self.false_positives,
                self.false_negatives,
                self.distance,
                self.localised,
                self.not_localised,
            )
        ]


def jackknife_interval(whole: float, partial: Sequence[float]) -> tuple[float, float]:
    """95 % interval from the value over all and those with one recording left out."""
    count = len(partial)
    mean = sum(partial) / count
    bias = (count - 1) * (mean - whole)
    error = math.sqrt((count - 1) * sum((value - mean) ** 2 for value in partial) / count)
    reach = float(stats.t.ppf(0.975, count - 1)) * error
    return whole - bias - reach, whole - bias + reach


def _block(rows: Sequence[Row], block: int) -> Block:
    frames: Block = defaultdict(lambda: defaultdict(list))
    for frame, class_id, azimuth_deg, elevation_deg in rows:
        if 10 * block <= frame < 10 * block + 10:
            frames[class_id][frame].append((azimuth_deg, elevation_deg))
    return frames


def _distance(first: Direction, second: Direction) -> float:
    azimuth, elevation = (np.float64(angle) * np.pi / 180.0 for angle in first)
    other_azimuth, other_elevation = (np.float64(angle) * np.pi / 180.0 for angle in second)
    cosine = np.sin(elevation) * np.sin(other_elevation) + np.cos(elevation) * np.cos(
        other_elevation
    ) * np.cos(abs(azimuth - other_azimuth))
    return float(np.arccos(np.clip(cosine, -1, 1)) * 180 / np.pi)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0

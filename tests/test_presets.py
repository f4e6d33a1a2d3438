"""Every recipe builds and takes a step, at every size."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from seld.geometry import DoaGrid
from seld.settings import flat_mapping, to_mapping
from tests.tiny_training import Reports
from trainables.clips import Batch
from trainables.finetune import finetune
from trainables.presets import RECIPES
from trainables.pretrain import PretrainSettings, pretrain

OBJECTIVES = ("doa_wise", "recording_wise", "avc")


def one_batch(settings: PretrainSettings) -> Batch:
    generator = torch.Generator().manual_seed(0)
    frames = round(settings.window_s * 50)
    shape = (settings.batch_size, 11, frames, settings.audio.features.mel_bands)
    pictures = (settings.batch_size, settings.frame_count, 3, 64, 128)
    return {
        "spectra": torch.randn(shape, generator=generator),
        "frames": torch.randint(0, 256, pictures, generator=generator, dtype=torch.uint8),
    }


def step(settings: PretrainSettings) -> dict[str, float]:
    """Metrics of one step with a tiny batch: the first would only warm the learning rate up."""
    tiny = dataclasses.replace(
        settings, steps=1, batch_size=2, windows_per_clip=1, precision="float32", state_every=1
    )
    return pretrain(tiny, [one_batch(tiny)], report=Reports()).metrics


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("size", ["demo", "evidence", "small"])
def test_recipe_takes_a_step(size: str, objective: str) -> None:
    metrics = step(getattr(RECIPES[size](), objective))
    assert 0.0 < metrics["loss"] < 20.0


@pytest.mark.slow
def test_paper_recipe_takes_a_step() -> None:
    settings = RECIPES["paper"]().doa_wise
    # Whole networks and crops, but few directions: each is a clip of 8 pictures of 112 × 112.
    directions = dataclasses.replace(settings.directions, grid=DoaGrid(kind="fibonacci", count=4))
    metrics = step(dataclasses.replace(settings, directions=directions))
    assert 0.0 < metrics["loss"] < 20.0


@pytest.mark.parametrize("size", RECIPES)
def test_finetuning_recipe_takes_a_step(size: str) -> None:
    settings = dataclasses.replace(
        RECIPES[size]().finetune, steps=1, batch_size=2, precision="float32"
    )
    frames = round(settings.window_s * 50)
    batch = {
        "spectra": torch.randn(2, 11, frames, 64, generator=torch.Generator().manual_seed(0)),
        "target": torch.zeros(2, frames // 5, 13, 3),
    }
    result = finetune(settings, [batch], class_count=13, encoder_state=None, report=Reports())
    assert 0.0 <= result.metrics["loss"] < 2.0


@pytest.mark.parametrize("size", RECIPES)
def test_objectives_of_a_size_differ_in_where_they_look_and_in_nothing_else(size: str) -> None:
    recipe = RECIPES[size]()
    flat = {name: flat_mapping(to_mapping(getattr(recipe, name))) for name in OBJECTIVES}
    differ = {"objective"}
    if size != "paper":
        differ |= {
            "field_of_view_deg",
            "directions.sampling",
            "directions.grid_rotation",
            "directions.random_count",
            "directions.exclusion_deg",
        }
    if size in ("demo", "evidence"):  # 16 directions, as by default, where DOA-wise has no grid
        differ.add("directions.grid.count")
    for objective in ("recording_wise", "avc"):
        settings, doa_wise = flat[objective], flat["doa_wise"]
        assert settings["objective"] == objective
        assert settings.keys() == doa_wise.keys()
        assert {name for name in settings if settings[name] != doa_wise[name]} == differ
    assert recipe.doa_wise.audio == recipe.finetune.audio

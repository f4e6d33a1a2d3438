"""The pretraining loop: resumes bit for bit, never steps on a bad loss, looks where it hears."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import pickle
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from seld.ambisonics import FoaFeatures
from seld.clips import ShardIndex
from seld.errors import InputError
from seld.geometry import azimuth_elevation, unit_vectors
from seld.models.heads import ProjectionSettings
from seld.panorama import camera_matrices
from seld.spatial_spectra import spatial_spectra
from tests.sound_fields import encode
from tests.test_panorama import pixel_directions
from tests.tiny_training import GRID, OBJECTIVES, TINY, Reports, pretrain_batches
from trainables import contrast as contrast_module
from trainables import pretrain as pretrain_module
from trainables import steps
from trainables.clips import (
    Batch,
    LongClips,
    PairReader,
    WindowSchedule,
    batches_on,
    clip_schedule,
)
from trainables.contrast import PretrainNetworks, contrastive_loss, picture_loss
from trainables.directions import DirectionSettings, arriving_amplitude, choose_directions
from trainables.pretrain import (
    PretrainSettings,
    pretrain,
    refuse_broken_convolution,
)
from trainables.steps import NonFiniteLossError, computes_bf16, seed_step


@pytest.mark.parametrize("name", OBJECTIVES)
def test_resumed_run_equals_uninterrupted_one_bit_for_bit(name: str, tmp_path) -> None:
    settings = OBJECTIVES[name]
    whole = Reports()
    expected = pretrain(settings, pretrain_batches(settings), report=whole)

    torch.save(whole.states[2], tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    torch.rand(7)  # a resumed process has another global random state
    rest = Reports()
    resumed = pretrain(settings, pretrain_batches(settings, 2), report=rest, start=state)

    assert rest.metrics == {step: whole.metrics[step] for step in (3, 4)}
    for key, tensor in expected.state["networks"].items():
        assert torch.equal(resumed.state["networks"][key], tensor), key


def test_probes_are_kept_apart_from_the_training_metrics(tmp_path) -> None:
    reports = Reports()
    probed = pretrain(
        TINY,
        pretrain_batches(TINY),
        report=reports,
        probe=lambda networks: {"retrieval_top1": float(networks.training)},
    )
    training = {"loss", "gradient_norm", "learning_rate", "temperature"}
    assert probed.probes == {"retrieval_top1": 0.0}
    assert set(reports.metrics[3]) == training
    assert set(reports.metrics[4]) == training | {"retrieval_top1"}  # for curves and the console
    torch.save(reports.states[4], tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True)["probes"] == probed.probes
    # Without annotated pictures nothing is probed, and nothing says that it was.
    assert pretrain(TINY, pretrain_batches(TINY), report=Reports()).probes == {}


def test_a_learnt_temperature_at_its_bound_can_rise_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five steps push it down, and five up."""
    settings = dataclasses.replace(
        TINY, steps=10, temperature=0.0101, learning_rate=0.05, warmup_steps=0, weight_decay=0.0
    )
    loss_of = contrastive_loss
    gradients: list[float] = []

    def pushing(networks: PretrainNetworks, *arguments: Any) -> torch.Tensor:
        loss = loss_of(networks, *arguments)
        (gradient,) = torch.autograd.grad(loss, networks.log_temperature, retain_graph=True)
        gradients.append(gradient.item())
        return 0.0 * loss + (1.0 if len(gradients) <= 5 else -1.0) * networks.log_temperature

    monkeypatch.setattr(pretrain_module, "contrastive_loss", pushing)
    reports = Reports()
    pretrain(settings, pretrain_batches(settings), report=reports)
    assert all(gradients), gradients
    temperatures = [reports.metrics[step]["temperature"] for step in range(1, 11)]
    assert min(temperatures) == pytest.approx(pretrain_module.LOWEST_TEMPERATURE, rel=1e-6)


def test_every_trainable_parameter_receives_a_gradient() -> None:
    for name, settings in OBJECTIVES.items():
        torch.manual_seed(0)
        networks = PretrainNetworks(settings)
        batch = next(pretrain_batches(settings))
        generator = torch.Generator().manual_seed(0)
        contrastive_loss(networks, batch, settings, generator, "cpu").backward()
        without = [
            key
            for key, parameter in networks.named_parameters()
            if parameter.requires_grad and parameter.grad is None
        ]
        assert not without, (name, without)


def test_non_finite_loss_stops_before_the_step() -> None:
    reports = Reports()
    batches = list(pretrain_batches(TINY))
    batches[2] = {"spectra": torch.full((4, 11, 20, 64), torch.nan), "frames": batches[2]["frames"]}
    with pytest.raises(NonFiniteLossError) as raised:
        pretrain(TINY, batches, report=reports)
    assert raised.value.step == 2
    assert max(reports.metrics) == 2


def test_report_may_stop_the_run() -> None:
    class StopNowError(Exception):
        pass

    def report(step: int, metrics: object, state: object) -> None:
        if step == 2:
            raise StopNowError

    with pytest.raises(StopNowError):
        pretrain(TINY, pretrain_batches(TINY), report=report)


def test_bf16_loss_is_near_the_float32_one() -> None:
    torch.manual_seed(0)
    networks = PretrainNetworks(TINY)
    batch = next(pretrain_batches(TINY))
    losses = {}
    for precision in ("float32", "bf16"):
        settings = dataclasses.replace(TINY, precision=precision)
        generator = seed_step(0, 0)
        losses[precision] = contrastive_loss(networks, batch, settings, generator, "cpu").item()
    assert losses["bf16"] == pytest.approx(losses["float32"], rel=0.05)
    assert losses["bf16"] != losses["float32"]


@pytest.mark.parametrize("instructions", [{}, {"avx512_bf16": True}, {"amx_bf16": True}])
def test_auto_is_bf16_where_the_cpu_has_instructions_for_it(
    instructions: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions)
    computes_bf16.cache_clear()
    torch.manual_seed(0)
    networks = PretrainNetworks(TINY)
    batch = next(pretrain_batches(TINY))
    losses = {}
    for precision in ("auto", "bf16" if instructions else "float32"):
        settings = dataclasses.replace(TINY, precision=precision)
        losses[precision] = contrastive_loss(networks, batch, settings, seed_step(0, 0), "cpu")
    computes_bf16.cache_clear()
    first, second = losses.values()
    assert torch.equal(first, second)


def planted_batch(settings: PretrainSettings) -> Batch:
    """Two sounds, one after the other; a red spot is where the first is, a blue one the second."""
    places = unit_vectors(torch.tensor([40.0, 62.0]), torch.tensor([10.0, 20.0]))
    signals = 3000.0 * torch.randn(2, 9600, generator=torch.Generator().manual_seed(0))
    signals[0, 4800:] = 0.0
    signals[1, :4800] = 0.0
    foa = encode(signals, places).sum(0).to(torch.int16)
    red, blue = (pixel_directions() @ places.T > math.cos(math.radians(7.0))).unbind(-1)
    picture = 255 * torch.stack([red, torch.zeros_like(red), blue]).to(torch.uint8)
    size = settings.batch_size
    return {
        "foa": foa.expand(size, -1, -1),
        "frames": picture.expand(size, settings.frame_count, -1, -1, -1),
    }


def heard_and_seen(settings: PretrainSettings) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What the networks are given of :func:`planted_batch`.

    Directions (window, 2, 3) of the two sounds by the features' intensity, directions
    (window, K, 3) asked for, and crops (window, view, 3, size, size).
    """
    given: dict[str, torch.Tensor] = {}

    class Networks(PretrainNetworks):
        def embed_sound(
            self, features: torch.Tensor, directions: torch.Tensor, segments: int = 1
        ) -> torch.Tensor:
            given.update(features=features, asked=directions)
            return torch.zeros(*directions.shape[:2], 16)

        def embed_pictures(self, crops: torch.Tensor, segments: int = 1) -> torch.Tensor:
            given.update(crops=crops)
            return torch.zeros(*crops.shape[:2], 16)

    contrastive_loss(Networks(settings), planted_batch(settings), settings, seed_step(0, 0), "cpu")
    intensity = given["features"][:, 4:].mean(dim=3)  # (window, 3, frame)
    heard = torch.stack([intensity[..., :8].mean(dim=2), intensity[..., -8:].mean(dim=2)], dim=1)
    heard = torch.nn.functional.normalize(heard, dim=-1)
    return heard, given["asked"], given["crops"][:, :, 0]


def colours_at(place: torch.Tensor, crops: torch.Tensor, looked_at: torch.Tensor) -> torch.Tensor:
    """The pixels (seen, 3) that show direction ``place``, in those crops that show it at all.

    ``crops`` (K, 3, size, size) of 90° have been taken upright at directions ``looked_at``.
    """
    azimuth_deg, elevation_deg = azimuth_elevation(looked_at)
    left = unit_vectors(azimuth_deg + 90.0, 0.0)
    up = unit_vectors(azimuth_deg, elevation_deg + 90.0)
    ahead = looked_at @ place
    size = crops.shape[-1]
    columns, rows = (size / 2 * (1.0 - axis @ place / ahead) for axis in (left, up))
    inside = (ahead > 0) & (torch.stack([rows, columns]) > 0).all(0)
    inside &= (torch.stack([rows, columns]) < size).all(0)
    return crops[inside, :, rows[inside].long(), columns[inside].long()]


RED, BLUE = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
LOOKING = {"field_of_view_deg": 90.0, "crop_px": 32, "batch_size": 32}


@pytest.mark.parametrize("augmentation", ["none", "swaps", "rotations", "swaps_and_rotations"])
def test_each_sound_is_seen_where_it_is_heard(augmentation: Any) -> None:
    """However sound and picture are turned or mirrored."""
    settings = dataclasses.replace(TINY, augmentation=augmentation, **LOOKING)
    heard, asked, crops = heard_and_seen(settings)
    different = {tuple(place) for place in (heard[:, 0] * 100).round().int().tolist()}
    assert len(different) == {"none": 1, "swaps": 8}.get(augmentation, 32)
    for places, window_crops, looked_at in zip(heard, crops, asked, strict=True):
        for place, colour in zip(places, (RED, BLUE), strict=True):
            seen = colours_at(place, window_crops, looked_at)
            assert len(seen) >= 1  # the crop at the loudest direction shows both
            assert torch.allclose(seen, colour.expand_as(seen), atol=0.1)


def test_rotated_negatives_show_the_heard_scene_rotated(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a quarter to the left here, after it has been turned with the sound."""
    quarter = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    monkeypatch.setattr(
        contrast_module, "random_rotations", lambda count, **how: quarter.expand(count, 3, 3)
    )
    settings = dataclasses.replace(OBJECTIVES["recording_wise"], **LOOKING)
    heard, asked, crops = heard_and_seen(settings)
    shown = 0
    for places, window_crops, looked_at in zip(heard, crops, asked, strict=True):
        for (x, y, z), colour in zip(places, (RED, BLUE), strict=True):
            own, rotated = window_crops.split(len(looked_at))
            for place, views in (((x, y, z), own), ((-y, x, z), rotated)):
                seen = colours_at(torch.stack(place), views, looked_at)
                assert torch.allclose(seen, colour.expand_as(seen), atol=0.1)
                shown += len(seen)
    assert shown > 100


def test_views_to_compare_look_at_the_sounds_in_the_turned_scene() -> None:
    """Both views of both peaks show a spot, however the scene is turned, and not one picture."""
    settings = dataclasses.replace(
        TINY,
        augmentation="swaps_and_rotations",
        directions=DirectionSettings(peak_count=2, random_count=0, suppression_deg=10.0),
        **LOOKING | {"field_of_view_deg": 60.0},
    )
    seen: list[torch.Tensor] = []

    class Networks(PretrainNetworks):
        def embed_pictures(self, crops: torch.Tensor, segments: int = 1) -> torch.Tensor:
            seen.append(crops[:, :, 0])
            return torch.randn(*crops.shape[:2], 16)

    picture_loss(Networks(settings), planted_batch(settings), settings, seed_step(0, 0), "cpu")
    (crops,) = seen
    first, second = crops.split(2, dim=1)  # each (window, peak, 3, size, size)
    for views in (first, second):
        assert (views[:, :, [0, 2]].amax(dim=(2, 3, 4)) > 0.6).all()
    assert ((first - second).abs().amax(dim=(2, 3, 4)) > 0.3).all()


def test_views_of_a_direction_differ_by_a_small_turn_of_the_camera() -> None:
    directions = torch.nn.functional.normalize(
        torch.randn(4000, 3, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    cameras = camera_matrices(directions)
    turned = contrast_module._viewed_anew(cameras, torch.Generator().manual_seed(1))
    assert torch.allclose(turned.transpose(1, 2) @ turned, torch.eye(3), atol=1e-5)
    assert torch.allclose(torch.linalg.det(turned), torch.ones(4000), atol=1e-5)
    # In the camera's own axes: forward, left, up; small turns about different axes nearly add.
    forward, left, _ = (cameras.transpose(1, 2) @ turned).unbind(-1)
    yaw, pitch = torch.atan2(forward[:, 1], forward[:, 0]), torch.asin(-forward[:, 2])
    roll = torch.asin(left[:, 2])
    spread_deg = torch.rad2deg(torch.stack([roll, pitch, yaw])).std(dim=1)
    assert spread_deg.tolist() == pytest.approx([20.0, 6.0, 6.0], rel=0.06)


def test_pictures_alone_leave_the_audio_encoder_and_the_temperature_alone() -> None:
    """For as many of the steps as the settings say."""
    settings = dataclasses.replace(TINY, visual_warmup_share=0.5, state_every=1, warmup_steps=0)
    reports = Reports()
    pretrain(settings, pretrain_batches(settings), report=reports)
    states = [reports.states[step]["networks"] for step in range(1, 5)]
    for key in states[0]:
        in_warm_up = not torch.equal(states[0][key], states[1][key])
        afterwards = not torch.equal(states[1][key], states[2][key])
        moves = "running" in key or "num_batches" in key or key in dict(trained(settings))
        assert in_warm_up == (moves and key.startswith("visual_encoder.")), key
        assert afterwards == moves, key


def trained(settings: PretrainSettings) -> Iterator[tuple[str, torch.nn.Parameter]]:
    for name, parameter in PretrainNetworks(settings).named_parameters():
        if parameter.requires_grad:
            yield name, parameter


def test_energy_peaks_point_at_the_sources() -> None:
    generator = torch.Generator().manual_seed(0)
    directions = torch.from_numpy(
        np.asarray(unit_vectors(np.array([40.0, -100.0]), np.array([10.0, -20.0])))
    ).float()
    signals = torch.randn(2, 24_000, generator=generator)
    # The two sources sound in turn, as sounds mostly do.
    signals[0, 12_000:] = 0.0
    signals[1, :12_000] = 0.0
    foa = encode(signals, directions).sum(0)[None] * 0.1
    spectra = spatial_spectra(foa, FoaFeatures(TINY.audio.features))
    settings = DirectionSettings(peak_count=2, random_count=1, jitter_deg=0.0)
    chosen = choose_directions(spectra[:, 8:], spectra[:, 0], settings, generator)
    angles = torch.rad2deg(torch.acos((chosen.vectors[0] @ directions.T).clamp(-1, 1)))
    assert angles[:2].amin(dim=0).max() < 15.0
    assert chosen.weights[0, 2] == pytest.approx(0.15 * 3, rel=1e-3)


def test_schedule_is_a_pure_function_of_seed_and_step() -> None:
    clips = np.arange(100, 140)
    durations = np.full(40, 5.0)
    common = {"seed": 3, "batch_size": 8, "window_s": 2.0, "world_size": 2}
    first = clip_schedule(clips, durations, step=5, rank=0, **common)
    assert first == clip_schedule(clips, durations, step=5, rank=0, **common)
    other_rank = clip_schedule(clips, durations, step=5, rank=1, **common)
    assert not {window.clip for window in first} & {window.clip for window in other_rank}
    assert first != clip_schedule(clips, durations, step=6, rank=0, **common)
    starts = [
        window.start_s
        for step in range(200)
        for window in clip_schedule(clips, durations, step=step, rank=0, **common)
    ]
    assert min(starts) == 0.0
    assert max(starts) == pytest.approx(3.0)


def test_four_times_the_energy_is_twice_the_amplitude() -> None:
    generator = torch.Generator().manual_seed(0)
    intensity = torch.randn(2, 3, 20, 8, generator=generator)
    level, directions = torch.zeros(2, 20, 8), GRID.grid.vectors()
    quiet = arriving_amplitude(intensity, level, torch.from_numpy(directions))
    loud = arriving_amplitude(intensity, level + math.log(4.0), torch.from_numpy(directions))
    torch.testing.assert_close(loud, 2.0 * quiet)


def test_schedule_with_few_clips_draws_with_replacement() -> None:
    windows = clip_schedule(
        np.array([7]), np.array([2.0]), seed=0, step=0, batch_size=3, window_s=2.0
    )
    assert windows == [(7, 0.0)] * 3


def test_several_windows_of_a_clip_do_not_overlap() -> None:
    """Four at a time, in any part of clips of any length, and of each clip for one rank only."""
    durations_s = np.linspace(3.0, 9.97, 40)
    clips = np.arange(100, 140)
    gaps_s, ends = [], []
    for step in range(100):
        seen: list[int] = []
        for rank in (0, 1):
            windows = clip_schedule(
                clips,
                durations_s,
                seed=3,
                step=step,
                batch_size=8,
                window_s=0.7,
                windows_per_clip=4,
                rank=rank,
                world_size=2,
            )
            assert len(windows) == 8
            for group in (windows[:4], windows[4:]):
                (clip,) = {window.clip for window in group}
                seen.append(clip)
                starts_s = np.array([window.start_s for window in group])
                duration_s = durations_s[clip - 100]
                assert starts_s.min() >= 0.0
                assert starts_s.max() + 0.7 <= duration_s + 1e-6
                assert starts_s * 10 == pytest.approx(np.rint(starts_s * 10))
                gaps_s += np.diff(np.sort(starts_s)).tolist()
                ends.append((starts_s.max() + 0.7) / duration_s)
        assert len(set(seen)) == 4
    assert min(gaps_s) == pytest.approx(0.7)
    assert max(gaps_s) > 2.0
    assert max(ends) > 0.97


def test_windows_longer_than_their_clip_overlap_evenly() -> None:
    windows = clip_schedule(
        np.array([7]), np.array([5.0]), seed=0, step=0, batch_size=4, window_s=2.0,
        windows_per_clip=4,
    )  # fmt: skip
    assert [window.start_s for window in windows] == [0.0, 1.2, 2.5, 3.0]


def test_dropout_draws_what_nothing_else_draws() -> None:
    for seed, step in ((0, 0), (3, 17)):
        by_name = torch.rand(4, generator=seed_step(seed, step))
        assert not torch.equal(torch.rand(4), by_name)


def test_grid_head_refuses_directions_that_move() -> None:
    with pytest.raises(InputError, match="direction_conditioned"):
        dataclasses.replace(TINY, head="grid")


def test_grid_head_refuses_listening_directions() -> None:
    """It would answer with a crop's own positive, as a negative of that crop."""
    gridded = OBJECTIVES["doa_wise_grid"]
    with pytest.raises(InputError, match=r"listening_directions is 3, expected 0 with the 'grid'"):
        dataclasses.replace(gridded, own_window_share=0.5, listening_directions=3)
    # Other objectives ask no such directions.
    dataclasses.replace(gridded, objective="avc", listening_directions=3)


def test_recording_wise_refuses_sampled_directions() -> None:
    with pytest.raises(InputError, match="grid"):
        dataclasses.replace(TINY, objective="recording_wise")


def test_two_frames_in_bf16_on_a_cpu_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = dataclasses.replace(TINY, precision="bf16", frame_count=2)
    with pytest.raises(InputError, match="two frames"):
        pretrain(settings, pretrain_batches(settings), report=Reports())
    # The first stage halves five frames to three, the second to two.
    visual = dataclasses.replace(
        TINY.visual,
        time_stride=True,
        stage_channels=(8, 8),
        stage_blocks=(1, 1),
        stage_strides=(2, 2),
    )
    halved = dataclasses.replace(settings, frame_count=5, visual=visual)
    with pytest.raises(InputError, match="two frames"):
        refuse_broken_convolution(halved, "cpu")
    for uses_bf16 in (True, False):
        monkeypatch.setattr(steps, "computes_bf16", lambda kind, answer=uses_bf16: answer)
        automatic = dataclasses.replace(settings, precision="auto")
        with pytest.raises(InputError) if uses_bf16 else contextlib.nullcontext():
            refuse_broken_convolution(automatic, "cpu")


@pytest.mark.parametrize(
    "changed",
    [
        {"temperature": 0.005},
        {"segment_s": 0.0},
        {"segment_s": -0.2},
        {"segment_s": 0.15},
        {"weight_decay": -1.0},
        {"warmup_steps": -1},
        {"minimum_rotation_deg": 200.0},
        {"memory_steps": 1},  # of other directions than the present step's
        {"visual_warmup_share": 1.0},
        {"visual_warmup_share": -0.1},
    ],
)
def test_settings_without_a_meaning_are_refused(changed: dict[str, float]) -> None:
    (name,) = changed
    with pytest.raises(InputError, match=rf"{name} is {changed[name]}"):
        dataclasses.replace(TINY, objective="recording_wise", directions=GRID, **changed)


def test_windows_longer_than_all_clips_are_refused() -> None:
    clips = pd.DataFrame({"duration_s": [2.0, 3.0]})
    schedule = WindowSchedule(seed=0, batch_size=2, window_s=4.0)
    with pytest.raises(InputError, match=r"window_s is 4.0, expected at most the 3 of the longest"):
        schedule.clips(ShardIndex("shards", clips))


def test_clips_are_looked_through_once_for_all_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that has drawn is sent with what it has found, and draws what a new one does."""
    table = pd.DataFrame({"duration_s": [2.0, 0.3, 3.0, 5.0]}, index=[4, 7, 8, 11])
    schedule = WindowSchedule(seed=3, batch_size=2, window_s=1.0)
    looks: list[ShardIndex] = []
    look = WindowSchedule.clips

    def counted(schedule: WindowSchedule, index: ShardIndex) -> LongClips:
        looks.append(index)
        return look(schedule, index)

    monkeypatch.setattr(WindowSchedule, "clips", counted)
    monkeypatch.setattr("trainables.clips._sound", lambda reader, store, windows, *_: windows)
    reader: Any = SimpleNamespace(index=ShardIndex("shards", table))
    new = pickle.dumps(PairReader(reader=reader, schedule=schedule, frame_count=1))
    read = PairReader(reader=reader, schedule=schedule, frame_count=1)
    drawn = [read(step) for step in range(5)]
    assert len(looks) == 1
    assert drawn == [
        clip_schedule(
            np.array([4, 8, 11]),
            np.array([2.0, 3.0, 5.0]),
            seed=3,
            step=step,
            batch_size=2,
            window_s=1.0,
        )
        for step in range(5)
    ]
    for sent in (new, pickle.dumps(read)):
        assert [pickle.loads(sent)(step) for step in range(5)] == drawn


def test_only_pretraining_lets_cudnn_look_for_the_fastest_convolution(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It pays where all batches have one shape. Without a GPU here, both stop right after."""
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    with contextlib.suppress(Exception):
        list(batches_on("cuda", []))
    assert not torch.backends.cudnn.benchmark
    with contextlib.suppress(Exception):
        pretrain(TINY, [], device="cuda", report=Reports())
    assert torch.backends.cudnn.benchmark


def test_embedding_sizes_must_agree() -> None:
    with pytest.raises(InputError, match="visual encoder"):
        dataclasses.replace(TINY, projection=ProjectionSettings(embedding_dim=8, hidden_dim=8))


def test_spectra_and_waveform_batches_give_the_same_loss() -> None:
    torch.manual_seed(0)
    networks = PretrainNetworks(TINY)
    batch = next(pretrain_batches(TINY))
    spectra = spatial_spectra(batch["foa"].float() / 32768.0, networks.audio_encoder.features)
    kept = {"spectra": spectra.half(), "frames": batch["frames"]}
    losses = [
        contrastive_loss(networks, given, TINY, seed_step(0, 0), "cpu").item()
        for given in (batch, kept)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)


def test_axes_of_negatives_and_of_the_augmentation_are_two_settings() -> None:
    """Each changes the loss where its rotations are drawn, and only there."""

    def first_loss(**changes: Any) -> float:
        settings = dataclasses.replace(OBJECTIVES["recording_wise"], steps=1, **changes)
        return pretrain(settings, pretrain_batches(settings), report=Reports()).metrics["loss"]

    for augmentation in ("swaps", "rotations"):
        both = {"augmentation": augmentation}
        usual = first_loss(**both)
        assert first_loss(**both, negative_axes="vertical") != usual
        changed = first_loss(**both, augmentation_axes="vertical") != usual
        assert changed == (augmentation == "rotations")
    unrotated = first_loss(rotated_negatives=0)
    assert first_loss(rotated_negatives=0, negative_axes="vertical") == unrotated

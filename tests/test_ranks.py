"""Several workers per pretraining: the loop in two processes equals one on the joined batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from seld.losses import distributed
from tests.ranks import RANKS, run_in_ranks
from tests.test_probes import probe_windows
from tests.tiny_training import GRID, TINY, Reports, pretrain_batches
from trainables.clips import Batch
from trainables.contrast import PretrainNetworks
from trainables.joined_norm import JoinedBatchNorm, join_batch_norms
from trainables.pretrain import PretrainSettings, pretrain
from trainables.probes import probe_pretraining
from trainables.steps import Metrics

# Draws differ between ranks by intent; without any, one process can see what two see. Only the
# turn of a grid is the same for all.
UNDRAWN = dataclasses.replace(
    TINY,
    steps=3,
    directions=GRID,
    augmentation="none",
    audio=dataclasses.replace(
        TINY.audio, network=dataclasses.replace(TINY.audio.network, dropout=0.0)
    ),
)
SETTINGS = {
    "doa_wise": UNDRAWN,
    "doa_wise, turned grid": dataclasses.replace(
        UNDRAWN,
        directions=dataclasses.replace(GRID, grid_rotation="any"),
        head="direction_conditioned",
    ),
    "doa_wise, memory": dataclasses.replace(UNDRAWN, memory_steps=2),
    "avc": dataclasses.replace(UNDRAWN, objective="avc"),
    "recording_wise": dataclasses.replace(UNDRAWN, objective="recording_wise", rotated_negatives=0),
    "recording_wise, turned grid": dataclasses.replace(
        UNDRAWN,
        objective="recording_wise",
        rotated_negatives=0,
        directions=dataclasses.replace(GRID, grid_rotation="any"),
        head="direction_conditioned",
    ),
}


def share_of(rank: int, settings: PretrainSettings) -> Iterator[Batch]:
    """This rank's part of the joined batches."""
    size = settings.batch_size
    joined = dataclasses.replace(settings, batch_size=size * RANKS)
    for batch in pretrain_batches(joined):
        yield {name: values[rank * size : (rank + 1) * size] for name, values in batch.items()}


def run_rank(rank: int, folder: Path) -> None:
    for name, settings in SETTINGS.items():
        reports = Reports()

        def probe(networks: PretrainNetworks, settings: PretrainSettings = settings) -> Metrics:
            return probe_pretraining(networks, probe_windows(), settings)

        result = pretrain(
            settings,
            share_of(rank, settings),
            report=reports,
            probe=probe if rank == 0 else None,  # as in trainings
        )
        outcome = {"metrics": reports.metrics, "networks": result.state["networks"]}
        torch.save(outcome, folder / f"{name}-{rank}.pt")
    run_norm(rank, folder)


def uneven_rows() -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn((7, 4, 3), generator=generator).mul(3).add(2)


def run_norm(rank: int, folder: Path) -> None:
    norm = nn.Sequential(nn.BatchNorm1d(4))
    join_batch_norms(norm)
    assert isinstance(norm[0], JoinedBatchNorm)
    rows = uneven_rows()[[slice(0, 2), slice(2, 7)][rank]].requires_grad_()
    output = norm(rows)
    output.pow(3).sum().backward()
    torch.save((output.detach(), rows.grad, norm.state_dict()), folder / f"norm-{rank}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    run_in_ranks(run_rank, folder)
    return folder


@pytest.mark.slow  # starts two Python processes
@pytest.mark.parametrize("name", SETTINGS)
def test_two_ranks_pretrain_like_one_on_the_joined_batch(name: str, folder: Path) -> None:
    joined = dataclasses.replace(SETTINGS[name], batch_size=SETTINGS[name].batch_size * RANKS)
    reports = Reports()
    expected = pretrain(joined, pretrain_batches(joined), report=reports)
    ranks = [torch.load(folder / f"{name}-{rank}.pt", weights_only=True) for rank in range(RANKS)]
    for outcome in ranks:
        for step, metrics in reports.metrics.items():
            for metric in ("loss", "gradient_norm"):
                assert outcome["metrics"][step][metric] == pytest.approx(metrics[metric], rel=1e-3)
        for key, tensor in expected.state["networks"].items():
            torch.testing.assert_close(
                outcome["networks"][key], tensor, rtol=1e-2, atol=2e-3, msg=key
            )
    # Both ranks have the same networks to the last bit, running statistics included.
    for key, tensor in ranks[0]["networks"].items():
        assert torch.equal(ranks[1]["networks"][key], tensor), key


@pytest.mark.slow
def test_joined_norm_is_batch_norm_of_all_rows(folder: Path) -> None:
    norm = nn.Sequential(nn.BatchNorm1d(4))
    rows = uneven_rows().requires_grad_()
    output = norm(rows)
    output.pow(3).sum().backward()
    parts = [torch.load(folder / f"norm-{rank}.pt", weights_only=True) for rank in range(RANKS)]
    torch.testing.assert_close(torch.cat([part[0] for part in parts]), output.detach())
    torch.testing.assert_close(torch.cat([part[1] for part in parts]), rows.grad)
    for _, _, state in parts:
        for key, tensor in norm.state_dict().items():
            torch.testing.assert_close(state[key], tensor)


@pytest.mark.parametrize(("world_size", "several"), [(1, False), (2, True)])
def test_a_process_group_of_one_is_not_distributed(
    monkeypatch: pytest.MonkeyPatch, world_size: int, several: bool
) -> None:
    assert not distributed()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: world_size)
    assert distributed() == several

"""Run a function in several processes that form one gloo group, as workers of a training do."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed
import torch.multiprocessing

RANKS = 2


def run_in_ranks(work: Callable[[int, Path], None], folder: Path) -> None:
    """Call ``work(rank, folder)``, a module's function, in each rank; raise what a rank raises.

    What the ranks find out they leave in ``folder``.
    """
    torch.multiprocessing.spawn(_one_rank, (work, folder), nprocs=RANKS)


def _one_rank(rank: int, work: Callable[[int, Path], None], folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=RANKS,
        timeout=timedelta(minutes=2),  # where one rank waits for what no other sends
    )
    work(rank, folder)
    torch.distributed.barrier()  # nobody leaves while another still needs it
    # Without the interpreter's shutdown: gloo's threads outlive destroy_process_group as long as
    # anything (DDP's reducer, a cycle) refers to the group, and one that drops a tensor while
    # Python is finalizing asks for the GIL and aborts the process: "terminate called without an
    # active exception". An exception above does not come here and is reported by spawn.
    os._exit(0)
